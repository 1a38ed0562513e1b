"""Texts with {{item.a.b[0].c}} and {{sample.output_tools[0].function.name}} in them, filled in.

Values are put in, nothing is run: no code, no filters, no conditions. Only `item` and `sample` can be named, and one of their
keys must be. A text goes in as it is, anything else as JSON. What was put in is not looked at again, so an answer that
contains {{item.reference_answer}} shows exactly these characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from agent_rft.contracts.grades import Grade, GraderRef

ANSWERS_SHAPE = ("output_json", "output_tools", "choices", "trajectory")
"""Keys of `sample` whose shape is the model's doing: what is missing below them, the answer lacks, and not the dataset."""

PLACE = r"\{\{[^{}]{0,1000}\}\}"
"""Where a value goes. Without braces within, and no longer than any path: a text of braces alone is looked through once."""
_VARIABLE = re.compile(PLACE)
_KEY = r"""[^\s.\[\]{}()|'"]+"""
_PATH = re.compile(rf"(item|sample)((?:\.{_KEY}|\[\d{{1,9}}\])+)")
_STEP = re.compile(rf"\.({_KEY})|\[(\d+)\]")
_MISSING = object()


class MissingVariable(Exception):
    """A text names what is not there."""

    def __init__(self, path: str, of_answer: bool = False) -> None:
        super().__init__(f"{{{{{path}}}}} is not there")
        self.path = path

        self.of_answer = of_answer
        """The model was to write it and did not: the answer is bad, and no grader failed."""


def render(text: str, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """Raises MissingVariable for the first variable that has no value."""
    roots = {"item": item, "sample": sample}
    return _VARIABLE.sub(lambda found: _shown(_value(found[0][2:-2].strip(), roots)), text)


def unusable_variables(text: str) -> list[str]:
    """What stands in braces and can never have a value, whatever item and sample hold."""
    paths = (found[0][2:-2].strip() for found in _VARIABLE.finditer(text))
    return [path for path in paths if not _names_a_key(path)]


def without_value(ref: GraderRef, missing: MissingVariable) -> Grade:
    """The grade where a variable is missing: zero where the answer lacks it, no score where item or sample do."""
    if missing.of_answer:
        return Grade(ref, 0.0, False, {"why": f"the answer has no {missing.path.removeprefix('sample.')}"})
    return Grade(ref, None, errors={"invalid_variable_error": str(missing)})


def _names_a_key(path: str) -> bool:
    match = _PATH.fullmatch(path)
    return bool(match and match[2].startswith("."))


def _value(path: str, roots: Mapping[str, Any]) -> Any:
    if not _names_a_key(path):
        raise MissingVariable(path)
    root = path.partition(".")[0]
    value = roots[root]
    steps = _STEP.findall(path[len(root) :])
    for key, index in steps:
        value = _step(value, key, index)
        if value is _MISSING:
            raise MissingVariable(path, root == "sample" and _lacks(roots[root], steps[0][0]))
    return value


def _lacks(sample: Mapping[str, Any], key: str) -> bool:
    """Whether it is the answer that lacks something below this key. `output_json` is there only for an answer that is JSON."""
    return key in ANSWERS_SHAPE and (key in sample or (key == "output_json" and isinstance(sample.get("output_text"), str)))


def _step(value: Any, key: str, index: str) -> Any:
    if key:
        return cast(Mapping[str, Any], value).get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
    if isinstance(value, Sequence) and not isinstance(value, str):
        held = cast(Sequence[Any], value)
        return held[int(index)] if int(index) < len(held) else _MISSING
    return _MISSING


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
