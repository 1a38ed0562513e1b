"""F1 of two sets: what the agent named against what it should have named, files to touch, say.

A text that is a JSON list holds its elements; any other text holds its lines. Spaces around them and empty ones do not
count, order and repetition neither. Two empty sets are equal: 1. A reference that is a JSON object is the dataset's fault.
"""

from __future__ import annotations

import json
import sys
from typing import Any, cast

from agent_rft.contracts.grades import Grade
from agent_rft.graders import samples, templating
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.samples import NOT_JSON, json_of
from agent_rft.graders.templating import MissingVariable, render, without_value

VERSION = "1"
SHOWN = 20


class F1SetGrader:
    def __init__(self, input: str, reference: str, pass_threshold: float | None = None, name: str = "f1_set") -> None:
        self._texts = input, reference
        self._threshold = PASS_THRESHOLD if pass_threshold is None else pass_threshold
        parameters = {"input": input, "reference": reference, "pass_threshold": self._threshold}
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], templating, samples), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        try:
            text, reference = (render(each, item, sample) for each in self._texts)
        except MissingVariable as missing:
            return without_value(self.ref, missing)
        if isinstance(json_of(reference), dict):
            return Grade(self.ref, None, errors={"invalid_variable_error": "the reference is an object, and not a list or lines"})
        named, wanted = elements(text), elements(reference)
        both = len(named & wanted)
        reward = 2 * both / (len(named) + len(wanted)) if named or wanted else 1.0
        parts = {
            "precision": both / len(named) if named else None,
            "recall": both / len(wanted) if wanted else None,
            "missed": sorted(wanted - named)[:SHOWN],
            "unasked": sorted(named - wanted)[:SHOWN],
        }
        return Grade(self.ref, reward, reward >= self._threshold, parts)


def elements(text: str) -> set[str]:
    value = json_of(text)
    if value is NOT_JSON or not isinstance(value, list):
        return {line.strip() for line in text.splitlines()} - {""}
    each = (one if isinstance(one, str) else json.dumps(one, sort_keys=True) for one in cast(list[Any], value))
    return {one.strip() for one in each} - {""}
