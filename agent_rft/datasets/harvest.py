"""Rows that were found or made, kept only where they are new: nothing asked twice, nothing that validation asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from agent_rft.contracts.rows import Row
from agent_rft.datasets.leaks import find_leaks, normalised

HELD_OUT, NEAR_HELD_OUT, TWICE = "asked by validation", "nearly asked by validation", "asked twice"


class Harvest(msgspec.Struct, frozen=True):
    rows: tuple[Row, ...]
    left_out: dict[str, int]
    """Why, and how many."""


class Newness:
    """Says of each row in turn why it is not new, if it is not."""

    def __init__(self, held_out: Sequence[Row]) -> None:
        self._held_out = {normalised(row) for row in held_out}
        self._bare_held_out = {normalised(without_system(row)) for row in held_out}
        self._asked = set[str]()

    def held_out(self, row: Row) -> bool:
        """A run puts its system prompt before each row, so a card shows one that the file does not: it is looked past on one side."""
        whole, bare = normalised(row), normalised(without_system(row))
        return whole in self._held_out or bare in self._held_out or whole in self._bare_held_out

    def asked_before(self, row: Row) -> bool:
        asked = normalised(row)
        if asked in self._asked:
            return True
        self._asked.add(asked)
        return False


def only_new(rows: Iterable[Row], held_out: Sequence[Row]) -> Harvest:
    """What is left of the rows, in their order; of those that ask the same the first."""
    newness, left_out, new = Newness(held_out), Counter[str](), list[Row]()
    for row in rows:
        if newness.held_out(row):
            left_out[HELD_OUT] += 1
        elif newness.asked_before(row):
            left_out[TWICE] += 1
        else:
            new.append(row)
    near = near_to(new, held_out)
    left_out[NEAR_HELD_OUT] += len(near)
    return Harvest(tuple(row for at, row in enumerate(new) if at not in near), {why: n for why, n in left_out.items() if n})


def near_to(rows: Sequence[Row], held_out: Sequence[Row]) -> set[int]:
    """Positions of the rows that are near to one of the held-out ones."""
    known = [("", without_system(row)) for row in held_out]
    return {int(leak.where) for leak in find_leaks(known, [(str(at), without_system(row)) for at, row in enumerate(rows)])}


def without_system(row: Row) -> Row:
    said = tuple(message for message in row.messages if message.role != "system")
    return row if len(said) == len(row.messages) else msgspec.structs.replace(row, messages=said)
