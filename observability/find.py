"""Cards that a query asks for: pages, counts, and all of them one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from observability.cards import CardLine, cards_by_id, line_columns
from observability.cursor import Cursor
from observability.filters import newest_first, where
from observability.query import And, Not, Or, Query, Text, all_of
from observability.records import StoredCard
from observability.search import first_number, has_words, match_of
from observability.store import Store
from observability.tables import job_cards, search_cards

AT_ONCE = 200
"""Cards read in one go."""
Select = sa.Select[*tuple[Any, ...]]


def page(store: Store, query: Query, limit: int, after: Cursor | None = None, tenant: str | None = None) -> list[CardLine]:
    """Newest first."""
    with store.reading() as connection:
        return [CardLine(**row) for row in connection.execute(_page(store, line_columns(), query, limit, after, tenant)).mappings()]


def count(store: Store, query: Query, tenant: str | None = None) -> int:
    with store.reading() as connection:
        return connection.scalar(_asked(store, sa.select(sa.func.count()).select_from(job_cards), query, tenant)) or 0


def whole_cards(store: Store, query: Query, tenant: str | None = None) -> Iterator[StoredCard]:
    """Newest first, a few in memory at a time."""
    place = [job_cards.c.rollout_id, job_cards.c.started_at]
    after: Cursor | None = None
    while True:
        with store.reading() as connection:
            found = list(connection.execute(_page(store, place, query, AT_ONCE, after, tenant)))
        if not found:
            return
        yield from cards_by_id(store, list(dict.fromkeys(row.rollout_id for row in found)), tenant)
        after = Cursor(found[-1].started_at, found[-1].rollout_id)


def asks_for_words(query: Query) -> bool:
    match query:
        case And(parts) | Or(parts):
            return any(map(asks_for_words, parts))
        case Not(part):
            return asks_for_words(part)
        case _:
            return isinstance(query, Text)


def _page(
    store: Store, columns: Sequence[sa.ColumnElement[Any]], query: Query, limit: int, after: Cursor | None, tenant: str | None
) -> Select:  # fmt: skip
    parts = query.parts if isinstance(query, And) else (query,)
    texts = [part for part in parts if isinstance(part, Text)]
    if not texts:
        return newest_first(_asked(store, sa.select(*columns), query, tenant), limit, after)
    rest = all_of([part for part in parts if not isinstance(part, Text)])
    return _with_words(store, _asked(store, sa.select(*columns), rest, tenant), texts, tenant, limit, after)


def _with_words(store: Store, select: Select, texts: Sequence[Text], tenant: str | None, limit: int, after: Cursor | None) -> Select:
    """The index is walked from its newest card on, so that a common word needs no sorting of all that have it."""
    found = match_of(store.engine.dialect.name, texts, tenant)
    of_card = sa.and_(search_cards.c.rollout_id == job_cards.c.rollout_id, search_cards.c.tenant == job_cards.c.tenant)
    index = found.table.join(search_cards, search_cards.c.number == found.number).join(job_cards, of_card)
    select = select.select_from(index).where(found.holds)
    if after is not None:
        shown = sa.select(search_cards.c.number).where(search_cards.c.rollout_id == after.rollout_id).limit(1).scalar_subquery()
        select = select.where(found.number < sa.func.coalesce(shown, first_number(after.started_at)))
    return select.order_by(found.number.desc()).limit(limit)


def _asked(store: Store, select: Select, query: Query, tenant: str | None) -> Select:
    dialect = store.engine.dialect.name
    select = select.where(where(query, lambda texts: has_words(dialect, texts, tenant)))
    return select if tenant is None else select.where(job_cards.c.tenant == tenant)
