"""The numeric rule: 1 for the reference's number in any format, 0.5 for a rounding error, 0 for anything else."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any, cast

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade
from agent_rft.graders import quantities
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.quantities import Quantity, quantity_of, read_quantity

VERSION = "1"
TOLERANCE = 0.001
"""Off by a tenth of a percent of the reference, or less."""
ROUNDING_DIGITS = 2
"""A rounded number shows at least this many digits: $1B is no rounding of $998M."""
ROUNDING_LIMIT = Fraction(1, 100)
"""Rounding the reference further may cost at most this share of it: 13% is no rounding error for 13.4%."""


class NumericGrader:
    """Grades `sample.output_text` against `item.reference_answer`.

    `tolerance`: the share of the reference that an answer may be off for half the reward. With `use_row_tolerance`, a row's
    `expected.tolerance_rel` stands in for it.
    """

    def __init__(self, use_row_tolerance: bool = False, tolerance: float = TOLERANCE) -> None:
        exact = _share(tolerance)
        if exact is None:
            raise UserError(f"grader 'numeric' cannot use the tolerance {tolerance!r}", f"a number from 0 to 1, like {TOLERANCE}")
        self._use_row_tolerance, self._tolerance = use_row_tolerance, exact
        parameters = {"use_row_tolerance": use_row_tolerance, "tolerance": float(tolerance), "pass_threshold": PASS_THRESHOLD}
        self.ref = grader_ref("numeric", VERSION, (sys.modules[__name__], quantities), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        reference = quantity_of(item.get("reference_answer"))
        if reference is None:
            return self._failed("invalid_variable_error", f"item.reference_answer is not one number: {_clip(item.get('reference_answer'))}")
        tolerance = self._row_tolerance(item) if self._use_row_tolerance else self._tolerance
        if tolerance is None:
            return self._failed("invalid_variable_error", "item.expected.tolerance_rel is not a number from 0 to 1")
        text = sample.get("output_text")
        if not isinstance(text, str):
            return self._failed("sample_parse_error", "sample.output_text is not a text")
        answer = read_quantity(text)
        reward, why = credit(answer, reference, tolerance) if answer else (0.0, "not one plain number")
        parts = {"why": why, "answer": _shown(answer), "reference": _shown(reference)}
        return Grade(self.ref, reward, reward >= PASS_THRESHOLD, parts)

    def _row_tolerance(self, item: dict[str, Any]) -> Fraction | None:
        expected = item.get("expected")
        value = cast(dict[str, Any], expected).get("tolerance_rel") if isinstance(expected, dict) else None
        return self._tolerance if value is None else _share(value)

    def _failed(self, flag: str, what: str) -> Grade:
        """The dataset's or the caller's fault: no score, so that it cannot look like a bad answer."""
        return Grade(self.ref, None, errors={flag: what})


def credit(answer: Quantity, reference: Quantity, tolerance: Fraction) -> tuple[float, str]:
    """The reward and why. Exact arithmetic: no float decides a border case."""
    if answer.unit_contradicts(reference):
        return 0.0, "another unit"
    if answer.value == reference.value:
        return 1.0, "equal"
    off = abs(answer.value - reference.value)
    if off <= tolerance * abs(reference.value):
        return 0.5, "within tolerance"
    if is_rounding(reference, answer) or (is_rounding(answer, reference) and off <= ROUNDING_LIMIT * abs(reference.value)):
        return 0.5, "rounding"
    return 0.0, "another value"


def is_rounding(coarse: Quantity, fine: Quantity) -> bool:
    """Whether `coarse` is `fine` rounded to the digits that it shows, ties either way."""
    return coarse.significant >= ROUNDING_DIGITS and 2 * abs(coarse.value - fine.value) <= coarse.resolution


def _share(value: object) -> Fraction | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        return None
    return Fraction(repr(value))


def _shown(quantity: Quantity | None) -> float | None:
    return None if quantity is None else float(quantity.value)


def _clip(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
