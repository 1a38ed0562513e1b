"""Several graders and a formula over them: OpenAI's multi.

The formula sees each grader's own score: a judge's from 0 to 10 is 7, and not 0.7, as in the files that were written for
OpenAI. Its value is cut to 0..1, with the uncut one in `parts`. A grader that failed makes the whole fail, with its flags
under its key; so does a formula without a value. A formula that cannot be read fails every grade.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader
from agent_rft.graders import combining, formula
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.combining import any_waits, failures, grade_parts, told
from agent_rft.graders.formula import FormulaError, evaluate, parse_formula

VERSION = "1"


class MultiGrader:
    def __init__(
        self, graders: Mapping[str, Grader], calculate_output: str, pass_threshold: float | None = None, name: str = "multi"
    ) -> None:
        self._graders = dict(graders)
        self._threshold = PASS_THRESHOLD if pass_threshold is None else pass_threshold
        self.waits = any_waits(graders)
        try:
            self._formula = parse_formula(calculate_output, graders)
        except FormulaError as error:
            self._formula = error
        parameters = {
            "graders": {key: grader.ref.hash for key, grader in graders.items()},
            "calculate_output": calculate_output,
            "pass_threshold": self._threshold,
        }
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], combining, formula), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        if isinstance(self._formula, FormulaError):
            return Grade(self.ref, None, errors={"formula_parse_error": str(self._formula)})
        grades = grade_parts(self._graders, item, sample)
        scores = {key: score_of(grade) for key, grade in grades.items()}
        parts = told(grades, scores)
        if failed := failures(grades):
            return Grade(self.ref, None, parts=parts, errors=failed)
        try:
            value = evaluate(self._formula, {key: score for key, score in scores.items() if score is not None})
        except FormulaError as error:
            return Grade(self.ref, None, parts=parts, errors={"other_error": f"calculate_output: {error}"})
        reward = min(1.0, max(0.0, value))
        return Grade(self.ref, reward, reward >= self._threshold, {**parts, "score": value})


def score_of(grade: Grade) -> float | None:
    """In the grader's own units, where those are not 0..1; None where it failed."""
    score = grade.parts.get("score")
    if grade.reward is not None and isinstance(score, int | float) and not isinstance(score, bool):
        return float(score)
    return grade.reward
