"""Cards that a query asks for: pages, counts, and all of them one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from observability.cards import CardLine, cards_by_id, line_columns
from observability.cursor import Cursor
from observability.filters import newest_first, where
from observability.query import Query, Text
from observability.records import StoredCard
from observability.store import Store
from observability.tables import job_cards

AT_ONCE = 200
"""Cards read in one go."""


def page(store: Store, query: Query, limit: int, after: Cursor | None = None, tenant: str | None = None) -> list[CardLine]:
    """Newest first."""
    select = newest_first(_asked(sa.select(*line_columns()), query, tenant), limit, after)
    with store.reading() as connection:
        return [CardLine(**row) for row in connection.execute(select).mappings()]


def count(store: Store, query: Query, tenant: str | None = None) -> int:
    with store.reading() as connection:
        return connection.scalar(_asked(sa.select(sa.func.count()).select_from(job_cards), query, tenant)) or 0


def whole_cards(store: Store, query: Query, tenant: str | None = None) -> Iterator[StoredCard]:
    """Newest first, a few in memory at a time."""
    ids = sa.select(job_cards.c.rollout_id, job_cards.c.started_at)
    after: Cursor | None = None
    while True:
        with store.reading() as connection:
            found = list(connection.execute(newest_first(_asked(ids, query, tenant), AT_ONCE, after)))
        if not found:
            return
        yield from cards_by_id(store, [row.rollout_id for row in found])
        after = Cursor(found[-1].started_at, found[-1].rollout_id)


def _asked(select: sa.Select[*tuple[Any, ...]], query: Query, tenant: str | None) -> sa.Select[*tuple[Any, ...]]:
    select = select.where(where(query, _no_words))
    return select if tenant is None else select.where(job_cards.c.tenant == tenant)


def _no_words(words: Sequence[Text]) -> sa.ColumnElement[bool]:
    told = " ".join(str(one) for one in words)
    raise UserError(f"this store does not search for words yet: {told}", "ask by keys, as in kind:eval grade<0.5 tool:search")
