"""What is missing, as far as it can be known. Who records cards numbers them from 1, says at the end how many there were, and
which share of its runs it records; the store keeps which numbers came. A card that was lost on its way is then a gap with a number.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Collection, Iterable, Iterator

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from observability.ranges import Range, gaps, how_many, ranges_text, read_ranges, with_numbers
from observability.records import RecordedCard, Values
from observability.store import Store
from observability.tables import sources
from observability.texts import storable

SHOWN = 10
"""Gaps that are named in a sentence."""
MOST_RANGES = 1000
"""Of numbers that came, kept of a source. One that leaves more gaps than that is not followed any further: a sender must not make
each of its requests dearer than the one before."""


def source_name(part: str) -> str:
    """One that no other has, and that tells a reviewer where to ask."""
    return f"{part[:100]} on {socket.gethostname()[:50]}, process {os.getpid()}-{os.urandom(4).hex()}"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One who records cards, and what is known of the completeness of what came from it."""

    name: str
    came: int
    """How many of its numbers."""
    missing: tuple[Range, ...]
    """Gaps below the highest number that came."""
    announced: int | None
    """How many there are, as it said at its end; None while it has not."""
    tail: int
    """How many of those announced lie beyond the highest that came."""
    cut: bool
    """Whether it left so many gaps that it was not followed any further, and more may have come."""
    sample_rate: float | None
    """The lowest share of its runs that it ever said it records; None where it never said."""
    first_at: dt.datetime
    last_at: dt.datetime

    @property
    def numbered(self) -> bool:
        """Whether it numbers what it sends. OpenTelemetry has nothing for that."""
        return self.came > 0 or self.announced is not None

    @property
    def complete(self) -> bool:
        """Whether it is known that everything came: it said how many, all of those are here, and it left no run out."""
        all_came = self.announced is not None and not self.missing and not self.tail and not self.cut
        return all_came and self.sample_rate in (None, 1.0)

    @property
    def lacks(self) -> bool:
        """Whether it is known that something is not here."""
        return bool(self.missing or self.tail or (self.sample_rate is not None and self.sample_rate < 1))


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a source says of itself, beside its cards."""

    tenant: str
    source: str
    announced: int | None = None
    sample_rate: float | None = None


def note_all(connection: sa.Connection, batch: Iterable[RecordedCard], said: Iterable[Said], at: dt.datetime) -> None:
    """What a batch of cards, and those who sent it, tell of sources."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for recorded in batch:
        if recorded.source:
            numbers.setdefault((recorded.card.tenant, recorded.source), []).extend([recorded.number] if recorded.number else [])
    spoke: dict[tuple[str, str], list[Said]] = {}
    for one in said:
        spoke.setdefault((one.tenant, one.source), []).append(one)
    for tenant, source in sorted(numbers.keys() | spoke.keys()):  # in one order everywhere, so that two writers never wait for each other
        told = spoke.get((tenant, source), ())
        rate = min((one.sample_rate for one in told if one.sample_rate is not None), default=None)
        announced = max((one.announced for one in told if one.announced is not None), default=None)
        note(connection, tenant, source, numbers.get((tenant, source), ()), at, rate, announced)


def note(
    connection: sa.Connection,
    tenant: str,
    source: str,
    numbers: Collection[int],
    at: dt.datetime,
    sample_rate: float | None = None,
    announced: int | None = None,
) -> None:
    """That these numbers of the source are in the store from this transaction on: call it in the one that brings their cards."""
    source = storable(source)
    mine = (sources.c.tenant == tenant, sources.c.source == source)
    select = sa.select(sources).where(*mine).with_for_update()  # SQLite's writer is alone as it is
    found = connection.execute(select).mappings().first()
    if found is None:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        blank = {"tenant": tenant, "source": source, "ranges": "", "first_at": at, "last_at": at}
        connection.execute(insert(sources).on_conflict_do_nothing(), blank)
        found = connection.execute(select).mappings().one()  # ours, or that of another who came first
    connection.execute(sa.update(sources).where(*mine).values(_merged(_row(found), numbers, at, sample_rate, announced)))


def _merged(row: _Row, numbers: Collection[int], at: dt.datetime, sample_rate: float | None, announced: int | None) -> Values:
    ranges = read_ranges(row.ranges)
    if len(ranges) < MOST_RANGES:
        ranges = with_numbers(ranges, numbers)[:MOST_RANGES]
    return {
        "ranges": ranges_text(ranges),
        "announced": _most(row.announced, announced),
        "sample_rate": min((rate for rate in (row.sample_rate, sample_rate) if rate is not None), default=None),
        "first_at": min(row.first_at, at),
        "last_at": max(row.last_at, at),
    }


class _Row(msgspec.Struct, frozen=True):
    tenant: str
    source: str
    ranges: str
    announced: int | None
    sample_rate: float | None
    first_at: dt.datetime
    last_at: dt.datetime


def _most(one: int | None, other: int | None) -> int | None:
    return max((count for count in (one, other) if count is not None), default=None)


def disclosed(store: Store, tenant: str) -> list[Source]:
    """Every source of the tenant, by when it was first heard of."""
    select = sa.select(sources).where(sources.c.tenant == tenant).order_by(sources.c.first_at, sources.c.source)
    with store.reading() as connection:
        return [_source(_row(row)) for row in connection.execute(select).mappings()]


def _row(row: sa.RowMapping) -> _Row:
    return _Row(**row)


def _source(row: _Row) -> Source:
    ranges = read_ranges(row.ranges)
    highest = ranges[-1][1] if ranges else 0
    cut = len(ranges) >= MOST_RANGES
    return Source(
        name=row.source,
        came=how_many(ranges),
        missing=() if cut else gaps(ranges),
        announced=row.announced,
        tail=0 if cut else max(0, (row.announced or 0) - highest),
        cut=cut,
        sample_rate=row.sample_rate,
        first_at=row.first_at,
        last_at=row.last_at,
    )


def told(source: Source) -> str:
    """In a reviewer's words."""
    return f"{source.name}: {'; '.join(_sentences(source))}"


def disclosure(source: Source) -> dict[str, str | bool | list[str]]:
    """For a bundle of evidence."""
    return {
        "name": source.name,
        "complete": source.complete,
        "missing": ranges_text(source.missing),
        "told": list(_sentences(source)),
    }


def _sentences(source: Source) -> Iterator[str]:
    if not source.numbered:
        yield "it does not number what it sends, so whether everything came is not known"
    else:
        least = "at least " if source.cut else ""
        yield f"{least}{source.came} came" + (f" of the {source.announced} it announced" if source.announced is not None else "")
        if source.cut:
            yield f"it left more gaps than the {MOST_RANGES} that are kept, so which numbers never came is not known"
        if source.missing:
            more = f" and {len(source.missing) - SHOWN} more gaps" if len(source.missing) > SHOWN else ""
            yield f"number {ranges_text(source.missing[:SHOWN])}{more} never came"
        if source.tail:
            yield f"nor the last {source.tail}"
        if source.announced is None:
            yield "it has not said how many there are, so whether more were recorded is not known"
    if source.sample_rate is not None and source.sample_rate < 1:
        yield f"it records {source.sample_rate:.4g} of its runs and leaves out the others"
    elif source.sample_rate == 1:
        yield "it records every run"
