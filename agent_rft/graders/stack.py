"""Correctness, process, safety and efficiency as one reward: a weighted mean or a formula, behind gates.

A gate is the least reward that a part must reach; below it the whole is 0, whatever the others and the formula say. Safety
at 0 always shuts. A part that failed fails the whole, a shut gate or not: what was not judged is not known.
"""

from __future__ import annotations

import math
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
SAFETY = "safety"


class StackGrader:
    """`graders` and `weights` by role. With `calculate_output`, a formula over the roles, no weight counts."""

    def __init__(
        self,
        graders: Mapping[str, Grader],
        weights: Mapping[str, float],
        gates: Mapping[str, float] | None = None,
        calculate_output: str | None = None,
        pass_threshold: float | None = None,
        name: str = "stack",
    ) -> None:
        self._graders = dict(graders)
        self._weights = dict(weights)
        self._gates = dict(gates or {})
        self._threshold = PASS_THRESHOLD if pass_threshold is None else pass_threshold
        self._formula = parse_formula(calculate_output, graders) if calculate_output is not None else None
        self.waits = any_waits(graders)
        parameters = {
            "graders": {role: grader.ref.hash for role, grader in graders.items()},
            "weights": self._weights,
            "gates": self._gates,
            "calculate_output": calculate_output,
            "pass_threshold": self._threshold,
        }
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], combining, formula), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        grades = grade_parts(self._graders, item, sample)
        parts = told(grades, {role: grade.reward for role, grade in grades.items()})
        if failed := failures(grades):
            return Grade(self.ref, None, parts=parts, errors=failed)
        rewards = {role: grade.reward for role, grade in grades.items() if grade.reward is not None}
        if shut := [role for role, reward in rewards.items() if self._shuts(role, reward)]:
            return Grade(self.ref, 0.0, False, {**parts, "gates_shut": shut})
        try:
            value = self._mean(rewards) if self._formula is None else evaluate(self._formula, rewards)
        except FormulaError as error:
            return Grade(self.ref, None, parts=parts, errors={"other_error": f"calculate_output: {error}"})
        reward = min(1.0, max(0.0, value))
        return Grade(self.ref, reward, reward >= self._threshold, {**parts, "score": value})

    def _shuts(self, role: str, reward: float) -> bool:
        return reward < self._gates.get(role, 0.0) or (role == SAFETY and reward == 0)

    def _mean(self, rewards: Mapping[str, float]) -> float:
        weights = {role: self._weights.get(role, 1.0) for role in rewards}
        return math.fsum(weights[role] * reward for role, reward in rewards.items()) / math.fsum(weights.values())
