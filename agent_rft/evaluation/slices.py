"""The comparison by kind of row: a gain on the whole can hide a loss on a slice that matters."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent_rft.evaluation.compare import RowDiff
from agent_rft.evaluation.tries import mean

DEFAULT_KEYS = ("task_type", "difficulty")
UNSPECIFIED = "unspecified"


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    value: str
    rows: int
    base_reward: float
    tuned_reward: float
    d_reward: float
    base_calls: float
    tuned_calls: float


def slice_rows(diffs: Iterable[RowDiff], keys: Iterable[str] = DEFAULT_KEYS) -> tuple[Slice, ...]:
    """One slice a metadata key and value; every row is in exactly one slice of each key."""
    rows = list(diffs)
    return tuple(part for key in keys for part in _by_key(rows, key))


def _by_key(rows: list[RowDiff], key: str) -> list[Slice]:
    parts: dict[str, list[RowDiff]] = {}
    for row in rows:
        parts.setdefault(str(row.metadata.get(key, UNSPECIFIED)), []).append(row)
    return [_slice(key, value, part) for value, part in sorted(parts.items())]


def _slice(key: str, value: str, rows: list[RowDiff]) -> Slice:
    return Slice(
        key=key,
        value=value,
        rows=len(rows),
        base_reward=mean([row.base_reward for row in rows]),
        tuned_reward=mean([row.tuned_reward for row in rows]),
        d_reward=mean([row.d_reward for row in rows]),
        base_calls=mean([row.base_calls for row in rows]),
        tuned_calls=mean([row.tuned_calls for row in rows]),
    )
