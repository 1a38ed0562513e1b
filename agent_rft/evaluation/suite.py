"""A fixed set of rows put to a model: prior check, base and tuned evaluation run through here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.ports import Grader, Sampler, ToolBox
from agent_rft.contracts.rollouts import Ending, Limits
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.tries import mean, score_of
from agent_rft.rollouts.driver import Kept, OnDone, Try, collect
from agent_rft.rollouts.seeds import derive_seed


async def evaluate(
    rows: Sequence[Row],
    tries_per_row: int,
    sampler: Sampler,
    tools: ToolBox,
    grader: Grader,
    limits: Limits,
    seed: int,
    phase: str,
    *,
    on_done: OnDone | None = None,
    in_flight: int = 128,
    kept: Kept | None = None,
) -> list[GradedRollout]:
    """Every row `tries_per_row` times, a row's tries side by side.

    A try's seed hangs on seed, phase, row and number alone: neither the order of the rows nor the other rows change it.
    Base and tuned evaluated under the same phase draw the same luck, which sharpens their comparison.
    """
    tries = tries_at(rows, tries_per_row, seed, phase)
    return await collect(tries, sampler, tools, grader, limits, on_done=on_done, in_flight=in_flight, kept=kept)


def tries_at(rows: Sequence[Row], tries_per_row: int, seed: int, phase: str) -> list[Try]:
    return [Try(row, index, derive_seed(seed, phase, row.id, index)) for row in rows for index in range(tries_per_row)]


class SuiteSummary(msgspec.Struct, frozen=True, kw_only=True):
    rollouts: int
    scored: int
    mean_reward: float | None
    """Over the scored rollouts; None where none is."""
    mean_tool_calls: float | None
    infra_failures: int
    endings: dict[str, int]
    """How many ended each way, all four named."""
    failed_parts: dict[str, int]
    """Which part of the infrastructure failed how often."""


def summarise(graded: Sequence[GradedRollout]) -> SuiteSummary:
    scored = [(one, reward) for one in graded if (reward := score_of(one)) is not None]
    endings = Counter(one.rollout.ending for one in graded)
    return SuiteSummary(
        rollouts=len(graded),
        scored=len(scored),
        mean_reward=mean([reward for _, reward in scored]) if scored else None,
        mean_tool_calls=mean([one.rollout.tool_calls for one, _ in scored]) if scored else None,
        infra_failures=len(graded) - len(scored),
        endings={ending.value: endings[ending] for ending in Ending},
        failed_parts=dict(Counter(one.rollout.failed_part for one in graded if one.infra_failed).most_common()),
    )
