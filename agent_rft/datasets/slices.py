"""Rows chosen by what they say of themselves: difficulty=hard, metric!=revenue, task_type=qa|planning, pages>=3."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.contracts.rows import Row

SHAPE = "KEY=VALUE, KEY!=VALUE, KEY=ONE|OTHER, KEY>=NUMBER, KEY<=NUMBER"
ORDERED: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


class Condition(msgspec.Struct, frozen=True):
    key: str
    """Of the row's metadata, or of the row."""
    sign: str
    values: tuple[str, ...]

    def holds(self, row: Row) -> bool:
        value = _value(row, self.key)
        if self.sign in ORDERED:
            number = not isinstance(value, bool) and isinstance(value, int | float)
            return number and ORDERED[self.sign](value, float(self.values[0]))
        return (_shown(value) in self.values) == (self.sign == "=")


def select(rows: Sequence[Row], conditions: Iterable[str]) -> list[Row]:
    """The rows for which every condition holds, or every condition that cannot be understood."""
    read: list[Condition] = []
    faults: list[Fault] = []
    for text in conditions:
        found = _read(text, rows)
        read.append(found) if isinstance(found, Condition) else faults.append(found)
    if faults:
        raise FaultsFound("these conditions cannot be understood:", faults, exit_code=2)
    return [row for row in rows if all(condition.holds(row) for condition in read)]


def _read(text: str, rows: Sequence[Row]) -> Condition | Fault:
    match = re.fullmatch(r"\s*([^=!<>]+?)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", text)
    if not match:
        return Fault(text, "is no condition", SHAPE)
    key, sign, value = match.groups()
    if sign in ORDERED and not re.fullmatch(r"[-+]?\d+(\.\d+)?", value):
        return Fault(text, f"'{value}' is not a number", SHAPE)
    known = {known for row in rows for known in (*row.metadata, *row.item())}
    if rows and key not in known:
        return Fault(text, f"no row has a '{key}'", did_you_mean(key, known))
    return Condition(key, sign, tuple(value.split("|")))


def _value(row: Row, key: str) -> Any:
    return row.metadata[key] if key in row.metadata else row.item().get(key)


def _shown(value: object) -> str:
    """As one types it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
