"""Graders that training never sees, asked what they think of a validation. What they say reaches guards and people, and no gradient."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader, waits
from agent_rft.graders.apply import grade_rollout

THREADS = 32
"""Gradings under way at once, of a grader that waits for others."""


async def holdout_grades(done: Sequence[GradedRollout], holdouts: Sequence[Grader]) -> dict[str, list[Grade | None]]:
    return await asyncio.to_thread(grades_by, done, holdouts) if holdouts else {}


def grades_by(done: Sequence[GradedRollout], holdouts: Sequence[Grader]) -> dict[str, list[Grade | None]]:
    """By name@version, a grade for each rollout. One that such a grader failed on has none with it, and stays what it was."""
    return {f"{holdout.ref.name}@{holdout.ref.version}": _grades(done, holdout) for holdout in holdouts}


def _grades(done: Sequence[GradedRollout], holdout: Grader) -> list[Grade | None]:
    def grade(graded: GradedRollout) -> Grade | None:
        return grade_rollout(graded.row, graded.rollout, holdout)

    if not waits(holdout):
        return [grade(graded) for graded in done]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="holdout") as pool:
        return list(pool.map(grade, done))
