"""The comparison by kind of row: a gain on the whole can hide a loss on a slice that matters."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent_rft.evaluation.compare import RowDiff, Verdict, change_in_reward, verdict_of
from agent_rft.evaluation.statistics import Interval, holm, wilcoxon
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
    d: Interval
    """That change again, and where the true one lies, of this slice looked at alone."""
    p: float
    p_adjusted: float
    """As it counts among all slices that were looked at: Holm's."""
    verdict: Verdict
    base_calls: float
    tuned_calls: float


def slice_rows(diffs: Iterable[RowDiff], keys: Iterable[str] = DEFAULT_KEYS) -> tuple[Slice, ...]:
    """One slice a metadata key and value; every row is in exactly one slice of each key."""
    (found,) = slice_each([diffs], keys)
    return found


def slice_each(comparisons: Iterable[Iterable[RowDiff]], keys: Iterable[str] = DEFAULT_KEYS) -> list[tuple[Slice, ...]]:
    """The slices of each of several comparisons that are looked at together: ten models have ten times as many chances of luck."""
    named = list(keys)
    cut = [[(key, value, part) for key in named for value, part in _by_value(rows, key)] for rows in map(list, comparisons)]
    ps = [[wilcoxon([row.d_reward for row in part]) for _, _, part in parts] for parts in cut]
    adjusted = iter(holm([p for one in ps for p in one]))
    return [
        tuple(_slice(key, value, part, p, next(adjusted)) for (key, value, part), p in zip(parts, own, strict=True))
        for parts, own in zip(cut, ps, strict=True)
    ]


def _by_value(rows: Iterable[RowDiff], key: str) -> list[tuple[str, list[RowDiff]]]:
    parts: dict[str, list[RowDiff]] = {}
    for row in rows:
        parts.setdefault(str(row.metadata.get(key, UNSPECIFIED)), []).append(row)
    return sorted(parts.items())


def _slice(key: str, value: str, rows: list[RowDiff], p: float, p_adjusted: float) -> Slice:
    change = change_in_reward(rows)
    return Slice(
        key=key,
        value=value,
        rows=len(rows),
        base_reward=mean([row.base_reward for row in rows]),
        tuned_reward=mean([row.tuned_reward for row in rows]),
        d_reward=change.estimate,
        d=change,
        p=p,
        p_adjusted=p_adjusted,
        verdict=verdict_of(rows, p_adjusted),
        base_calls=mean([row.base_calls for row in rows]),
        tuned_calls=mean([row.tuned_calls for row in rows]),
    )
