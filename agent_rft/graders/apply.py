"""A grader applied to a rollout. The one place that decides which endings are graded, and what a broken grader means."""

from __future__ import annotations

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rollouts import Ending, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.graders.samples import sample_of


def grade_rollout(row: Row, rollout: Rollout, grader: Grader) -> Grade | None:
    """None where infrastructure failed: no score exists.

    A grade with reward None says that the grader failed; the caller marks the rollout infra_failed with
    `failed_part(grade)`. Without an answer nothing is earned, whatever a grader finds in the empty text.
    """
    if rollout.ending is None:
        raise ValueError(f"rollout {rollout.rollout_id} has not ended: nothing to grade")
    if not rollout.ending.graded:
        return None
    try:
        grade = grader.grade(row.item(), sample_of(rollout))
    except Exception as error:  # whatever it is, it is the grader's and never the model's
        return Grade(grader.ref, None, errors={"other_error": f"{type(error).__name__}: {error}"})
    grade = checked(grade)
    if rollout.ending is not Ending.ANSWERED and grade.reward:
        return msgspec.structs.replace(grade, reward=0.0, passed=False, parts={**grade.parts, "unanswered": rollout.ending.value})
    return grade


def failed_part(grade: Grade) -> str:
    """How an infrastructure failure names this grader."""
    return f"grader:{grade.grader.name}"


def checked(grade: Grade) -> Grade:
    """A reward is a number from 0 to 1; anything else is a failed grader, and a failed grader says why."""
    reward = grade.reward
    if reward is None:
        return grade if grade.errors else msgspec.structs.replace(grade, errors={"other_error": "no reward, and no reason given"})
    if isinstance(reward, int | float) and 0 <= reward <= 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        return grade
    what = f"reward {reward!r} is not a number from 0 to 1"
    return msgspec.structs.replace(grade, reward=None, passed=None, errors={**grade.errors, "other_error": what})
