"""Tries at the same row, put together. Only a try with a score counts as one; infrastructure failures are kept apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from agent_rft.contracts.graded import GradedRollout


class Tries(msgspec.Struct, frozen=True):
    """All tries at one row."""

    scored: tuple[GradedRollout, ...]
    rewards: tuple[float, ...]
    """Of the scored tries, in their order."""
    failed: int
    """Tries that infrastructure spoilt: no score, no part in any mean."""

    @property
    def mean_reward(self) -> float:
        return mean(self.rewards)

    @property
    def mean_calls(self) -> float:
        return mean([graded.rollout.tool_calls for graded in self.scored])


def score_of(graded: GradedRollout) -> float | None:
    """The reward, if the try counts."""
    return None if graded.infra_failed else graded.reward


def tries_by_row(graded: Iterable[GradedRollout]) -> dict[str, Tries]:
    """By row id, rows in the order they were first met."""
    rows: dict[str, list[GradedRollout]] = {}
    for one in graded:
        rows.setdefault(one.row.id, []).append(one)
    return {row_id: _together(tries) for row_id, tries in rows.items()}


def _together(tries: Sequence[GradedRollout]) -> Tries:
    scored = [(one, reward) for one in tries if (reward := score_of(one)) is not None]
    return Tries(tuple(one for one, _ in scored), tuple(reward for _, reward in scored), len(tries) - len(scored))


def mean(values: Sequence[float]) -> float:
    """Of at least one value: there is no mean of nothing."""
    return sum(values) / len(values)
