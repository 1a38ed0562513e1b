"""Which numbers came, kept as ranges: 1-500,502-510 is nine characters where five hundred numbers would be two thousand. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

Range = tuple[int, int]
"""From the first number to the last, both included."""
Ranges = tuple[Range, ...]
"""In order, none touching the next: the same numbers have one form."""


def read_ranges(text: str) -> Ranges:
    """What `ranges_text` wrote."""
    bounds = (part.partition("-") for part in text.split(",") if part)
    return tuple((int(first), int(last or first)) for first, _, last in bounds)


def ranges_text(ranges: Sequence[Range]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def with_numbers(ranges: Sequence[Range], numbers: Iterable[int]) -> Ranges:
    """The numbers of both; one that was there already changes nothing."""
    joined: list[Range] = []
    for first, last in sorted([*ranges, *((number, number) for number in set(numbers))]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def how_many(ranges: Sequence[Range]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def gaps(ranges: Sequence[Range]) -> Ranges:
    """The numbers from 1 up to the highest that are not in them."""
    return tuple((last + 1, first - 1) for (_, last), (first, _) in pairwise([(0, 0), *ranges]) if first > last + 1)
