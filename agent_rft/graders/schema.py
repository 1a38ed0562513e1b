"""Whether the output is JSON that fits a JSON Schema: 1 or 0. An output that is no JSON does not fit, and no grader failed.

The schema is read by the draft that its `$schema` names, else by 2020-12. It can refer to its own parts alone: nothing is
fetched, neither when it is read nor when it is used.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from agent_rft.contracts.grades import Grade
from agent_rft.graders import samples
from agent_rft.graders.base import grader_ref
from agent_rft.graders.samples import NOT_JSON, json_of

VERSION = "1"
SHOWN = 5
"""Of what does not fit."""


class SchemaGrader:
    def __init__(self, schema: dict[str, Any], name: str = "schema") -> None:
        library = importlib.metadata.version("jsonschema")
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], samples), {"schema": schema, "jsonschema": library})
        make = validator_for(schema, default=Draft202012Validator)
        self._validator: Any = make(schema, registry=Registry[Any]())

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        text = sample.get("output_text")
        if not isinstance(text, str):
            return Grade(self.ref, None, errors={"sample_parse_error": "sample.output_text is not a text"})
        value = json_of(text)
        if value is NOT_JSON:
            return Grade(self.ref, 0.0, False, {"why": "not JSON"})
        try:
            misfits = [f"{error.json_path}: {error.message[:200]}" for error in self._validator.iter_errors(value)]
        except RecursionError:
            misfits = ["nested too deep"]
        except Unresolvable as error:
            return Grade(self.ref, None, errors={"other_error": f"the schema refers to what it does not hold: {error.ref}"})
        parts = {"misfits": misfits[:SHOWN], "count": len(misfits)} if misfits else {}
        return Grade(self.ref, 0.0 if misfits else 1.0, not misfits, parts)


def schema_faults(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where in the schema, and what is wrong there."""
    if not isinstance(schema.get("$schema", ""), str):
        yield ".$schema", "is not a text"
        return
    make = cast(Any, validator_for(schema, default=Draft202012Validator))
    try:
        for error in make(make.META_SCHEMA, format_checker=make.FORMAT_CHECKER).iter_errors(schema):  # its format: regular expressions
            yield error.json_path.removeprefix("$"), error.message[:200]
    except RecursionError:
        yield "", "nested too deep"
        return
    yield from _foreign(schema, "")


def _foreign(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """References that lead out of the schema."""
    if isinstance(value, dict):
        held = cast(dict[str, Any], value)
        for key in ("$ref", "$dynamicRef"):
            if isinstance(reference := held.get(key), str) and not reference.startswith("#"):
                yield f"{path}.{key}", f"'{reference}' leads out of the schema: nothing is fetched"
        for key, each in held.items():
            yield from _foreign(each, f"{path}.{key}")
    elif isinstance(value, list):
        for at, each in enumerate(cast(list[Any], value)):
            yield from _foreign(each, f"{path}[{at}]")
