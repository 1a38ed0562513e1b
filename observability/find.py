"""Cards that a query asks for: pages, counts, and all of them one after the other."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from observability.cards import CardLine, cards_by_id, line_columns
from observability.cursor import Cursor
from observability.filters import newest_first, where
from observability.query import EVERY_CARD, And, Not, Or, Query, Term, Text, all_of
from observability.records import StoredCard
from observability.search import Span, catch_up, first_number, has_words, newest_with, number_of, places_of
from observability.store import Store, one_of
from observability.tables import job_cards
from observability.words import of_words

AT_ONCE = 1000
"""Cards whose ids are in memory in one go."""
COUNTED = 1_000
"""Cards that are counted where somebody waits: beyond it, that there are more says enough."""
WIDER = 4
"""How many cards with the words are looked at for each that is wanted, where more is asked of them; and how many more, each time
that they were not enough."""
WIDEST = 5_000
KEY = (job_cards.c.rollout_id, job_cards.c.tenant)
Row = sa.Row[Any]
Select = sa.Select[*tuple[Any, ...]]


def page(store: Store, query: Query, limit: int, after: Cursor | None = None, tenant: str | None = None) -> list[CardLine]:
    """Newest first."""
    return [CardLine(*row) for row in newest(store, line_columns(), query, limit, tenant, after)]


def newest(
    store: Store, columns: Sequence[sa.ColumnElement[Any]], query: Query, limit: int, tenant: str | None = None, after: Cursor | None = None
) -> Sequence[Row]:  # fmt: skip
    """These columns of the newest cards, and the card's id and tenant."""
    asked, rest = of_words(query)
    columns = [*columns, *(column for column in KEY if column.name not in {one.name for one in columns})]
    with store.reading() as connection:
        if asked is None:
            select = newest_first(_asked(store, sa.select(*columns), query, tenant), limit, after)
            return connection.execute(select).all()
        found: list[Row] = []
        for places in _with_words(store, connection, asked, rest, limit, tenant, after):
            rows = connection.execute(_asked(store, sa.select(*columns).where(_among(store, places)), rest, tenant)).all()
            found += sorted(rows, key=lambda row: places[row.rollout_id, row.tenant])
            if len(found) >= limit:
                break
        return found[:limit]


def count(store: Store, query: Query, tenant: str | None = None, most: int | None = None) -> int:
    """How many there are; `most`, where there are that many and perhaps more."""
    asked, rest = of_words(query)
    with store.reading() as connection:
        if asked is None:
            some = _asked(store, sa.select(job_cards.c.rollout_id), query, tenant)
            some = some if most is None else newest_first(some, most)  # in its order, which is that of an index: to go by and stop
            return connection.scalar(sa.select(sa.func.count()).select_from(some.subquery())) or 0
        found = 0
        for places in _with_words(store, connection, asked, rest, most or WIDEST, tenant, None):
            found += len(places) if rest == EVERY_CARD else connection.scalar(_those(store, places, rest, tenant)) or 0
            if most is not None and found >= most:
                return most
        return found


def whole_cards(store: Store, query: Query, tenant: str | None = None) -> Iterator[StoredCard]:
    """Newest first, a few in memory at a time."""
    for ids in ids_at_once(store, query, tenant):
        yield from cards_by_id(store, ids, tenant)


def ids_at_once(store: Store, query: Query, tenant: str | None = None) -> Iterator[list[str]]:
    """Of all the cards, newest first, in lists that fit in memory. The cards themselves are not read for it."""
    after: Cursor | None = None
    while found := newest(store, [job_cards.c.started_at], query, AT_ONCE, tenant, after):
        yield list(dict.fromkeys(row.rollout_id for row in found))
        after = Cursor(found[-1].started_at, found[-1].rollout_id)


def asks_for_words(query: Query) -> bool:
    match query:
        case And(parts) | Or(parts):
            return any(map(asks_for_words, parts))
        case Not(part):
            return asks_for_words(part)
        case _:
            return isinstance(query, Text)


def index_for(store: Store, query: Query, tenant: str) -> None:
    """Where words are asked for, they find everything that was recorded so far. For what must not lack the newest cards. The store is
    not one that is confined to a tenant, who cannot write the index."""
    if asks_for_words(query):
        catch_up(store, tenant)


def _with_words(
    store: Store, connection: sa.Connection, asked: Query, rest: Query, limit: int, tenant: str | None, after: Cursor | None
) -> Iterator[dict[tuple[str, str], int]]:  # fmt: skip
    """The newest cards with these words, each with its place from the newest, a few at first and ever more of them: how many have
    the words nobody knows, and whoever takes them stops when it has enough."""
    span = _span(rest)
    if after is not None:
        last = number_of(connection, after.rollout_id, tenant)
        span = Span(span.first, min(span.below, first_number(after.started_at) if last is None else last))
    most = limit if rest == EVERY_CARD else WIDER * limit
    while numbers := newest_with(store, connection, asked, span, most, tenant):
        places = places_of(connection, numbers)
        yield {places[number]: place for place, number in enumerate(numbers) if number in places}
        if len(numbers) < most:
            return
        span, most = Span(span.first, numbers[-1]), max(limit, min(WIDER * most, WIDEST))


def _span(rest: Query) -> Span:
    """Where the index has cards that started when the query says. Wider by some milliseconds: the terms themselves are asked too."""
    first, below = Span()
    for part in rest.parts if isinstance(rest, And) else (rest,):
        if isinstance(part, Term) and part.key == "started" and isinstance(moment := part.values[0], dt.datetime):
            if part.operator in (">", ">="):
                first = max(first, first_number(moment))
            elif part.operator in ("<", "<="):
                below = min(below, first_number(moment + dt.timedelta(milliseconds=10)))
    return Span(first, below)


def _among(store: Store, places: Iterable[tuple[str, str]]) -> sa.ColumnElement[bool]:
    """By id alone, which finds the partitions and the rows; the tenant is asked besides."""
    ids, tenants = zip(*places, strict=True) if places else ((), ())
    return sa.and_(one_of(store.engine.dialect.name, job_cards.c.rollout_id, ids), job_cards.c.tenant.in_(set(tenants)))


def _those(store: Store, places: Iterable[tuple[str, str]], rest: Query, tenant: str | None) -> Select:
    return _asked(store, sa.select(sa.func.count()).select_from(job_cards).where(_among(store, places)), rest, tenant)


def _asked(store: Store, select: Select, query: Query, tenant: str | None) -> Select:
    select = select.where(where(query, lambda texts: has_words(store, all_of(texts), tenant)))
    return select if tenant is None else select.where(job_cards.c.tenant == tenant)
