"""How an agent uses its tools: which, how often, and whether it uses any before it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.guards.figures import step_figures

OF_TOOL = "calls."
"""Begins the name of a figure that is a tool's calls a try."""


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """Over the tries that infrastructure did not spoil."""

    tries: int
    figures: dict[str, float]
    """As guards see them during training."""
    refused: float | None
    """The share of the calls that the tool answered with an error; None where none was made."""
    by_calls: dict[int, int]
    """Tries by the number of their calls."""

    @property
    def calls(self) -> float:
        return self.figures["calls_a_try"]

    @property
    def tools(self) -> list[str]:
        """By name, the one called most first."""
        names = [name.removeprefix(OF_TOOL) for name in self.figures if name.startswith(OF_TOOL)]
        return sorted(names, key=lambda name: -self.share(name))

    def share(self, tool: str) -> float:
        """Of the calls, those to this tool."""
        return self.figures.get(f"{OF_TOOL}{tool}", 0.0) / self.calls if self.calls else 0.0


def tool_use(graded: Sequence[GradedRollout]) -> ToolUse | None:
    """None where no try is left to count."""
    done = [one for one in graded if not one.infra_failed]
    if not done:
        return None
    called = [turn.results.get(call.call_id) for one in done for turn in one.rollout.turns for call in turn.calls]
    return ToolUse(
        tries=len(done),
        figures=step_figures(done),
        refused=sum(bool(result and result.error) for result in called) / len(called) if called else None,
        by_calls=dict(sorted(Counter(one.rollout.tool_calls for one in done).items())),
    )
