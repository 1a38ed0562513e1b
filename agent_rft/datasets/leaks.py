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

NAMED = 3
"""Pairs of a warning."""
Placed = tuple[str, Row]
"""Where a row stands, and the row."""


class Leak(msgspec.Struct, frozen=True):
    where: str
    """File and line of the validation row."""
    row_id: str
    twin: str
    """File and line of the training row."""
    kind: Literal["same", "near", "turned"]
    similarity: float
    """Turned: nearly the same words in an order that tells another question, which near.py describes. No leak, but worth a look."""

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
    return leaks_and_turned(train, val)[0]


def leaks_and_turned(train: Sequence[Placed], val: Sequence[Placed]) -> tuple[list[Leak], list[Leak]]:
    """Beside the leaks, the validation rows that are no leak, and that a training row is told from by the order of words alone."""
    same = {normalised(row): where for where, row in reversed(train)}
    twins = [same.get(normalised(row)) for _, row in val]
    others = [at for at, twin in enumerate(twins) if twin is None]
    near = near_duplicates([_said(row) for _, row in train], [_said(val[at][1]) for at in others])
    found = {at: Leak(val[at][0], val[at][1].id, twin, "same", 1.0) for at, twin in enumerate(twins) if twin is not None}
    for pair in near:
        where, row = val[others[pair.val]]
        kind = "turned" if pair.turned else "near"
        found[others[pair.val]] = Leak(where, row.id, train[pair.train][0], kind, round(pair.similarity, 4))
    in_order = [found[at] for at in sorted(found)]
    return [one for one in in_order if one.kind != "turned"], [one for one in in_order if one.kind == "turned"]


def turned_told(turned: Sequence[Leak], of: int) -> Fault | None:
    """One warning for them all: a data set of templates has hundreds. `of`: the validation rows."""
    if not turned:
        return None
    pairs = ", ".join(f"{one.where} and {one.twin}" for one in turned[:NAMED])
    what = f"{len(turned)} of {of} validation rows have a training row's words in another order, like {pairs}"
    return Fault(turned[0].where, what, "taken for other questions, as 5 kg in g and 5 g in kg are; take one out where they ask the same")


def normalised(row: Row) -> str:
    """The whole opening without case, spacing and sentence marks; signs that carry meaning (-, %, +, #) stay."""
    return normalised_text(" ".join(message.content for message in row.opening()))


def normalised_text(said: str) -> str:
    return " ".join(re.sub(r"[.,;:!?\"'“”‘’()\[\]]", " ", unicodedata.normalize("NFKC", said).casefold()).split())


def _said(row: Row) -> str:
    return "\n".join(message.content for message in row.opening())
