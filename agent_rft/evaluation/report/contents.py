"""What a report tells, as plain data: of a run as it ends, of its folder later, or out of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import Comparison
from agent_rft.evaluation.distribution import DistributionCheck
from agent_rft.evaluation.failures import Failures, failures
from agent_rft.evaluation.figures import Watched
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.scoreboard import Scoreboard, scoreboard
from agent_rft.evaluation.slices import DEFAULT_KEYS
from agent_rft.evaluation.tool_use import ToolUse, tool_use

BASE, TUNED = "base", "tuned"


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    run_id: str
    recipe: str
    finished_at: str
    seconds: float
    versions: Versions
    settings: dict[str, Any]
    """Without secrets: see `masked`."""
    prior: PriorCheck | None = None
    distribution: tuple[DistributionCheck, ...] = ()
    metrics: tuple[StepMetrics, ...] = ()
    undone: tuple[StepMetrics, ...] = ()
    """Steps at which a guard ended the run, and which were made again since."""
    watched: Watched = Watched()
    comparison: Comparison | None = None
    slice_keys: tuple[str, ...] = DEFAULT_KEYS
    scoreboard: Scoreboard | None = None
    uses: dict[str, ToolUse] = {}
    """By model, as the two below."""
    failures: dict[str, Failures] = {}
    base: tuple[GradedRollout, ...] = ()
    """The graded tries behind the comparison, for the stories of single rows."""
    tuned: tuple[GradedRollout, ...] = ()
    rounds: int = 1
    """Evaluations that both sides had; the newest of them is told."""
    regraded: str = ""
    """What the newest version of the grader makes of these tries, in a sentence; empty where the run's own grades stand."""
    halted: str = ""
    next_step: str = ""

    @property
    def every_line(self) -> list[StepMetrics]:
        """By step; of a step that was made again what was undone comes first."""
        return sorted((*self.undone, *self.metrics), key=lambda line: line.step)


def with_tries(report: RunReport, base: Sequence[GradedRollout], tuned: Sequence[GradedRollout], pass_at: float) -> RunReport:
    """With all that the evaluation's tries tell."""
    sides = {name: side for name, side in ((BASE, base), (TUNED, tuned)) if side}
    if not sides:
        return report
    return msgspec.structs.replace(
        report,
        scoreboard=scoreboard(sides, pass_at),
        uses={name: use for name, side in sides.items() if (use := tool_use(side))},
        failures={name: failures(side, pass_at) for name, side in sides.items()},
        base=tuple(base),
        tuned=tuple(tuned),
    )


def without_words(report: RunReport) -> RunReport:
    """As a store keeps it: what was asked, said and returned stays on the job cards, which are redacted."""
    comparison = report.comparison
    if comparison:
        rows = [
            msgspec.structs.replace(row, metadata={key: value for key, value in row.metadata.items() if key in report.slice_keys})
            for row in comparison.rows
        ]
        comparison = msgspec.structs.replace(comparison, rows=tuple(rows))
    return msgspec.structs.replace(report, comparison=comparison, base=(), tuned=())
