"""A version of a data set and its card: what is in it, where it came from, what it leaks. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from agent_rft.contracts.rows import Row
from agent_rft.datasets.leaks import Leak, Placed, find_leaks
from agent_rft.datasets.near import NEAR
from agent_rft.datasets.rows import dataset_hash, version_of
from agent_rft.datasets.validate import Count, counts_of

NAMED = 20
"""Leaks that a card names; it counts them all."""


class SplitPart(msgspec.Struct, frozen=True):
    file: str
    """Beside the card."""
    rows: int
    hash: str


class LeakReport(msgspec.Struct, frozen=True):
    """Validation rows that training already asks, in the same words or nearly."""

    same: int
    near: int
    near_from: float
    """Shared share of what two prompts say from which they count as near; see near.py."""
    named: tuple[Leak, ...] = ()


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows themselves do not tell."""

    name: str
    source: str
    """Where the rows come from, in words."""
    made_by: str
    """The command."""
    parents: tuple[str, ...] = ()
    """Versions of the data sets that it was made from."""
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    """What the command left out of what it was given: why, and how many."""


class DatasetCard(msgspec.Struct, frozen=True, kw_only=True):
    hash: str
    """The version: which rows are in which split."""
    rows: int
    splits: dict[str, SplitPart]
    slices: tuple[Count, ...]
    leaks: LeakReport
    origin: Origin
    created: str
    """UTC, ISO 8601."""


def describe(splits: Mapping[str, Sequence[Placed]], files: Mapping[str, str], origin: Origin, created: str) -> DatasetCard:
    """`files`: the name of each split's file."""
    rows = {split: [row for _, row in placed] for split, placed in splits.items()}
    leaks = find_leaks(splits.get("train", ()), splits.get("val", ()))
    same = sum(leak.kind == "same" for leak in leaks)
    return DatasetCard(
        hash=version_of(rows),
        rows=sum(map(len, rows.values())),
        splits={split: SplitPart(files[split], len(held), dataset_hash(held)) for split, held in rows.items()},
        slices=tuple(count for split, placed in splits.items() for count in counts_of(split, placed)),
        leaks=LeakReport(same, len(leaks) - same, NEAR, tuple(leaks[:NAMED])),
        origin=origin,
        created=created,
    )


def placed_in(file: str, rows: Sequence[Row]) -> list[Placed]:
    """Where rows will stand once they are written, a line each."""
    return [(f"{file}:{line}", row) for line, row in enumerate(rows, start=1)]
