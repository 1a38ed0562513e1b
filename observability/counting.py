"""What some cards are like, counted: how many of each value of a key, and when they were. Pure."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from observability.query import Not, Prefix, Term

SHOWN = 8
"""Values of a key that are told."""
BANDS = ((None, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, None))
"""Of grades: from, and below."""
BINS = 48
SECONDS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 2 * 86_400, 7 * 86_400, 28 * 86_400, 364 * 86_400, 3640 * 86_400)
"""How long a bin may be."""
NONE = "none"
BETWEEN = "\x1f"
"""Stands between the values of a key of which a card has several."""
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Count(msgspec.Struct, frozen=True):
    value: str
    term: str
    """What narrows the query to these."""
    cards: int


class Facet(msgspec.Struct, frozen=True):
    key: str
    counts: tuple[Count, ...]
    more: int
    """Values that are not shown."""

    @property
    def tells(self) -> bool:
        """Whether any card has a value at all."""
        return any(count.value != NONE for count in self.counts)


class Bin(msgspec.Struct, frozen=True):
    start: dt.datetime
    end: dt.datetime
    endings: dict[str, int]


def facet(key: str, values: Sequence[str | None], several: bool) -> Facet:
    counted = Counter(one for value in values for one in _each(value, several))
    counts = [_count(key, value, cards) for value, cards in counted.most_common()]
    return Facet(key, tuple(counts[:SHOWN]), max(0, len(counts) - SHOWN))


def _each(value: str | None, several: bool) -> Iterable[str | None]:
    return set(value.split(BETWEEN)) if several and value else [value]


def _count(key: str, value: str | None, cards: int) -> Count:
    if value is None:
        return Count(NONE, str(Not(Term(key, ":", (Prefix(""),)))), cards)
    return Count(value, str(Term(key, ":", (value,))), cards)


def grade_bands(grades: Sequence[float | None]) -> Facet:
    counts: list[Count] = []
    for low, high in BANDS:
        inside = sum(1 for one in grades if one is not None and (low is None or one >= low) and (high is None or one < high))
        terms = ([f"grade>={low:g}"] if low is not None else []) + ([f"grade<{high:g}"] if high is not None else [])
        name = f"{low:g} and more" if high is None else f"below {high:g}" if low is None else f"{low:g} to {high:g}"
        counts.append(Count(name, " ".join(terms), inside))
    counts.append(Count(NONE, "-grade:*", sum(1 for one in grades if one is None)))
    return Facet("grade", tuple(one for one in counts if one.cards), 0)


def bins_of(happened: Sequence[tuple[dt.datetime, str]]) -> tuple[Bin, ...]:
    if not happened:
        return ()
    first, last = (int((moment - EPOCH).total_seconds()) for moment in (min(happened)[0], max(happened)[0]))
    size = next((size for size in SECONDS if last // size - first // size < BINS), SECONDS[-1])
    start = first // size
    counted = [Counter[str]() for _ in range(start, last // size + 1)]
    for moment, ending in happened:
        counted[int((moment - EPOCH).total_seconds()) // size - start][ending] += 1
    edges = [EPOCH + dt.timedelta(seconds=size * number) for number in range(start, start + len(counted) + 1)]
    return tuple(Bin(edges[at], edges[at + 1], dict(counts)) for at, counts in enumerate(counted))
