"""Validation rows that training already asks: the same question, and the same in nearly the same words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import msgspec

from agent_rft.contracts.errors import Fault
from agent_rft.contracts.rows import Row
from agent_rft.datasets.near import near_duplicates

Placed = tuple[str, Row]
"""Where a row stands, and the row."""


class Leak(msgspec.Struct, frozen=True):
    where: str
    """File and line of the validation row."""
    row_id: str
    twin: str
    """File and line of the training row."""
    kind: Literal["same", "near"]
    similarity: float

    def fault(self) -> Fault:
        if self.kind == "same":
            what = f"'{self.row_id}' asks what training asks at {self.twin}"
            return Fault(self.where, what, "a leak makes validation worthless: take one of them out")
        return Fault(self.where, f"'{self.row_id}' {self._nearness} training's {self.twin}", "take one out if they ask the same")

    @property
    def _nearness(self) -> str:
        return "has the same words as" if self.similarity == 1 else f"says nearly ({self.similarity:.2f}) the same as"


def find_leaks(train: Sequence[Placed], val: Sequence[Placed]) -> list[Leak]:
    """At most one for each validation row, in their order. The same question is always found; what near means, and how surely
    it is found, is told in near.py."""
    same = {normalised(row): where for where, row in reversed(train)}
    twins = [same.get(normalised(row)) for _, row in val]
    others = [at for at, twin in enumerate(twins) if twin is None]
    near = near_duplicates([_said(row) for _, row in train], [_said(val[at][1]) for at in others])
    found = {at: Leak(val[at][0], val[at][1].id, twin, "same", 1.0) for at, twin in enumerate(twins) if twin is not None}
    for pair in near:
        where, row = val[others[pair.val]]
        found[others[pair.val]] = Leak(where, row.id, train[pair.train][0], "near", round(pair.similarity, 4))
    return [found[at] for at in sorted(found)]


def normalised(row: Row) -> str:
    """The whole opening without case, spacing and sentence marks; signs that carry meaning (-, %, +, #) stay."""
    return normalised_text(" ".join(message.content for message in row.opening()))


def normalised_text(said: str) -> str:
    return " ".join(re.sub(r"[.,;:!?\"'“”‘’()\[\]]", " ", unicodedata.normalize("NFKC", said).casefold()).split())


def _said(row: Row) -> str:
    return "\n".join(message.content for message in row.opening())
