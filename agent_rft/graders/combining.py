"""What multi and stack share: parts graded one by one, and a failed one fails the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader, waits


def grade_parts(graders: Mapping[str, Grader], item: dict[str, Any], sample: dict[str, Any]) -> dict[str, Grade]:
    """All of them, also after one that failed: a reviewer sees each. None raises; what one raises is its failure."""
    return {key: _graded(grader, item, sample) for key, grader in graders.items()}


def failures(grades: Mapping[str, Grade]) -> dict[str, Any]:
    """The flags of the parts that gave no reward: accuracy.invalid_variable_error."""
    failed = {key: grade for key, grade in grades.items() if grade.reward is None}
    return {
        f"{key}.{flag}": told
        for key, grade in failed.items()
        for flag, told in (grade.errors or {"other_error": "no reward, and no reason given"}).items()
    }


def told(grades: Mapping[str, Grade], scores: Mapping[str, float | None]) -> dict[str, Any]:
    """What the parts came to, for people and for OpenAI's answer."""
    return {"sub_rewards": dict(scores), "graders": {key: msgspec.to_builtins(grade) for key, grade in grades.items()}}


def any_waits(graders: Mapping[str, Grader]) -> bool:
    return any(waits(grader) for grader in graders.values())


def _graded(grader: Grader, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
        return grader.grade(item, sample)
    except Exception as error:  # whatever it is, it is that grader's and never the model's
        return Grade(grader.ref, None, errors={"other_error": f"{type(error).__name__}: {error}"})
