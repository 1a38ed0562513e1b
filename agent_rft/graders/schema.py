"""Whether the output is JSON that fits a JSON Schema: 1 or 0. An output that is no JSON does not fit, and no grader failed.

The schema is read by the draft that its `$schema` names, else by 2020-12. It can refer to its own parts alone: nothing is
fetched, neither when it is read nor when it is used.

Its regular expressions are RE2's, which takes time linear in the text whatever the expression: an answer that makes a
backtracking engine try for hours would hold up everything else in the process. The price is that look-around and
back-references are refused.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any, cast

import re2
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend, validator_for
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
        libraries = {library: importlib.metadata.version(library) for library in ("jsonschema", "google-re2")}
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], samples), {"schema": schema, **libraries})
        make = _in_linear_time(validator_for(schema, default=Draft202012Validator))
        # wherever the library meets a $schema it takes that draft's own validator in the place of this one
        self._validator: Any = make({key: each for key, each in schema.items() if key != "$schema"}, registry=Registry[Any]())

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
        except UnusablePattern as error:  # of the patternProperties of drafts 3 and 4, which are not looked at beforehand
            return Grade(self.ref, None, errors={"other_error": f"the schema's {error}"})
        parts = {"misfits": misfits[:SHOWN], "count": len(misfits)} if misfits else {}
        return Grade(self.ref, 0.0 if misfits else 1.0, not misfits, parts)


def schema_faults(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where in the schema, and what is wrong there."""
    if not isinstance(schema.get("$schema", ""), str):
        yield ".$schema", "is not a text"
        return
    make = cast(Any, validator_for(schema, default=Draft202012Validator))
    try:
        for error in make(make.META_SCHEMA, format_checker=PATTERNS).iter_errors(schema):
            yield error.json_path.removeprefix("$"), str(error.cause) if error.cause else error.message[:200]
    except RecursionError:
        yield "", "nested too deep"
        return
    yield from _foreign(schema, "")
    if {"patternProperties", "unevaluatedProperties"} <= set(_keys(schema)):
        yield "", "unevaluatedProperties beside patternProperties would be matched outside of RE2: take additionalProperties"


def _foreign(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """References that lead out of the schema, and what would take it out of RE2's hands."""
    if isinstance(value, dict):
        held = cast(dict[str, Any], value)
        if path and isinstance(held.get("$schema"), str):
            yield f"{path}.$schema", "is read at the top of the schema alone: leave it out here"
        for key in ("$ref", "$dynamicRef"):
            if isinstance(reference := held.get(key), str) and not reference.startswith("#"):
                yield f"{path}.{key}", f"'{reference}' leads out of the schema: nothing is fetched"
        for key, each in held.items():
            yield from _foreign(each, f"{path}.{key}")
    elif isinstance(value, list):
        for at, each in enumerate(cast(list[Any], value)):
            yield from _foreign(each, f"{path}[{at}]")


def _keys(value: Any) -> Iterator[str]:
    inner = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    yield from inner
    for each in inner.values() if inner else cast(list[Any], value) if isinstance(value, list) else ():
        yield from _keys(each)


# --- regular expressions ----------------------------------------------------------------------------------------------


class UnusablePattern(ValueError):
    pass


PATTERNS = FormatChecker(formats=())
"""What the drafts' own schemas ask for wherever a regular expression stands."""
ADDITIONAL: Any = Draft202012Validator.VALIDATORS["additionalProperties"]
"""The same in every draft."""


@PATTERNS.checks("regex", raises=UnusablePattern)
def _is_taken(pattern: object) -> bool:
    if isinstance(pattern, str):
        _compiled(pattern)
    return True


@functools.cache
def _in_linear_time(make: Any) -> Any:
    """A draft's validator, but for all that matches regular expressions."""
    return extend(make, {"pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional_properties})


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, schema: Any) -> Iterator[ValidationError]:
    for pattern, inner in patterns.items() if validator.is_type(instance, "object") else ():
        for key, value in instance.items():
            if _found(pattern, key):
                yield from validator.descend(value, inner, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: dict[str, Any]) -> Iterator[ValidationError]:
    """The library's own, which sees neither the patterns nor the properties that match them."""
    if validator.is_type(instance, "object"):
        patterns = schema.get("patternProperties", {})
        rest = {key: value for key, value in instance.items() if not any(_found(pattern, key) for pattern in patterns)}
        yield from ADDITIONAL(validator, allowed, rest, {key: each for key, each in schema.items() if key != "patternProperties"})


def _found(pattern: str, text: str) -> bool:
    return _compiled(pattern).search(text) is not None


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        why: Any = error.args[0]
        said = why.decode(errors="replace") if isinstance(why, bytes) else str(error)
        raise UnusablePattern(
            f"{pattern[:100]!r} is no regular expression of RE2, which has no look-around or back-reference: {said}"
        ) from None
