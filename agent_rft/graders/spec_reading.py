"""A JSON value read into a struct, with every fault at once. msgspec's own reading stops at the first."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from agent_rft.contracts.errors import Fault, did_you_mean

KINDS: dict[type, str] = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


class Reading:
    """One pass over one value. Faults are collected under their JSON paths: grader.graders.accuracy.operation.

    In the place of what is wrong stands a blank of its type, so that all the rest is still read and checked; nothing that
    was read with faults is ever used.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, where: str, what: str, cure: str = "") -> None:
        self.faults.append(Fault(where, what, cure))

    def wrong(self, where: str, value: object, wanted: str) -> None:
        self.fault(where, f"{shown(value)} is not {wanted}")

    def also(self, faults: Iterable[Fault]) -> None:
        """What a second look found, but for what lies at, in or around a fault that is known: that look saw a blank."""
        known = [fault.where for fault in self.faults]
        self.faults += [found for found in faults if not any(_within(found.where, where) or _within(where, found.where) for where in known)]

    def value(self, shape: Any, value: object, where: str) -> Any:
        origin, arguments = typing.get_origin(shape), typing.get_args(shape)
        if origin in (types.UnionType, typing.Union):
            return None if value is None else self.value(arguments[0], value, where)
        if origin is Literal:
            return self._one_of([str(each) for each in arguments], value, where)
        if origin is tuple:
            return self._each(arguments[0], value, where)
        if origin is dict:
            return self.mapping(arguments[1], arguments[0], value, where)
        if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
            return self.struct(shape, value, where)
        return self._plain(shape, value, where)

    def struct(self, shape: type[msgspec.Struct], value: object, where: str) -> Any:
        held = cast(dict[str, Any], value) if isinstance(value, dict) else {}
        fields = {field.name: field for field in msgspec.structs.fields(shape)}
        if not isinstance(value, dict):
            self.wrong(where, value, "an object")
            return shape(**{name: _blank(field.type) for name, field in fields.items() if field.required})
        for key in held:
            if key not in fields and key != shape.__struct_config__.tag_field:
                self.fault(f"{where}.{key}", "is no key of this", did_you_mean(str(key), fields))
        read: dict[str, Any] = {}
        for name, field in fields.items():
            if held.get(name) is not None or (name in held and field.required):  # null is as good as left out
                read[name] = self.value(field.type, held[name], f"{where}.{name}")
            elif field.required:
                self.fault(f"{where}.{name}", "is missing")
                read[name] = _blank(field.type)
        return shape(**read)

    def mapping(self, shape: Any, keys: Any, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.wrong(where, value, "an object")
            return {}
        known = [str(each) for each in typing.get_args(keys)]  # a Literal's; a text's keys may be any
        for key in cast(dict[str, Any], value):
            if known and key not in known:
                self.fault(f"{where}.{key}", "is no key of this", did_you_mean(str(key), known))
        return {key: self.value(shape, each, f"{where}.{key}") for key, each in cast(dict[str, Any], value).items()}

    def _one_of(self, known: list[str], value: object, where: str) -> str:
        if value in known:
            return str(value)
        self.fault(where, f"{shown(value)} is none of its values", did_you_mean(str(value), known))
        return known[0]

    def _each(self, shape: Any, value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            self.wrong(where, value, "a list")
            return ()
        return tuple(self.value(shape, each, f"{where}[{at}]") for at, each in enumerate(cast(Sequence[Any], value)))

    def _plain(self, shape: Any, value: object, where: str) -> Any:
        if shape is Any:
            return value
        fits = isinstance(value, int | float) if shape is float else isinstance(value, shape)
        if not fits or (isinstance(value, bool) and shape is not bool):
            self.wrong(where, value, KINDS[shape])
            return shape()
        return self._finite(cast(float, value), where) if shape is float else value

    def _finite(self, value: float, where: str) -> float:
        try:
            if math.isfinite(number := float(value)):
                return number
        except OverflowError:
            pass
        self.wrong(where, value, "a finite number")
        return 0.0


def shown(value: object) -> str:
    """A value as an error names it."""
    if isinstance(value, Mapping | list | tuple):
        return "an object" if isinstance(value, Mapping) else "a list"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _blank(shape: Any) -> Any:
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if origin is Literal:
        return arguments[0]
    if origin in (tuple, dict):
        return origin()
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
        return shape(**{field.name: _blank(field.type) for field in msgspec.structs.fields(shape) if field.required})
    return shape() if shape in KINDS else None


def _within(where: str, outer: str) -> bool:
    return where.startswith(outer) and where[len(outer) : len(outer) + 1] in ("", ".", "[")
