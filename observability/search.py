"""Fills and asks the index of words. It follows the ledger: a card is acknowledged first and indexed later, and a mark says up to
which entry that was done."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSQUERY

from observability.book import entries_after
from observability.cards import stored_cards
from observability.query import Text
from observability.records import StoredCard
from observability.store import Store, take_turns
from observability.tables import job_cards, ledger, search_cards, search_marks
from observability.words import as_match, as_tsquery, as_vector, words_of

AT_ONCE = 200
"""Entries in a transaction: the others that write wait so long."""
SPREAD = 15
"""Bits below a card's millisecond."""

words_on_postgresql = sa.table("search_words", sa.column("number", sa.BigInteger), sa.column("words"))
words_on_sqlite = sa.table("search_words", sa.column("rowid", sa.Integer), sa.column("search_words"))


def behind(store: Store) -> dict[str, int]:
    """How many entries of each tenant's ledger are not in the index yet."""
    newest = sa.select(ledger.c.tenant, sa.func.max(ledger.c.seq).label("seq")).group_by(ledger.c.tenant).subquery()
    done = sa.func.coalesce(search_marks.c.seq, 0)
    select = sa.select(newest.c.tenant, newest.c.seq - done).outerjoin(search_marks, search_marks.c.tenant == newest.c.tenant)
    with store.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(select) if row[1] > 0}


def catch_up(store: Store, tenant: str, step: Callable[[int], None] = lambda _: None) -> None:
    """Everything recorded so far is in the index when it returns. Several may do this at once."""
    while done := _next(store, tenant):
        step(done)


def _next(store: Store, tenant: str) -> int:
    with store.writing() as connection:
        take_turns(connection, f"search {tenant}")
        mark = connection.scalar(sa.select(search_marks.c.seq).where(search_marks.c.tenant == tenant))
        entries = entries_after(connection, tenant, mark or 0, AT_ONCE)
        if not entries:
            return 0
        _index(connection, stored_cards(connection, [entry.subject for entry in entries if entry.kind == "card"], tenant))
        values = {"tenant": tenant, "seq": entries[-1].seq}
        connection.execute(
            sa.insert(search_marks) if mark is None else sa.update(search_marks).where(search_marks.c.tenant == tenant), [values]
        )
        return len(entries)


def _index(connection: sa.Connection, cards: Sequence[StoredCard]) -> None:
    if not cards:
        return
    numbers = _numbers(connection, cards)
    rows = [
        {"number": number, "tenant": stored.card.tenant, "rollout_id": stored.card.rollout_id}
        for number, stored in zip(numbers, cards, strict=True)
    ]
    connection.execute(sa.insert(search_cards), rows)
    words = [words_of(stored.card) for stored in cards]
    if connection.dialect.name == "sqlite":
        into, texts = "INSERT INTO search_words (rowid, words) VALUES (:number, :words)", [" ".join(one) for one in words]
    else:
        into, texts = (
            "INSERT INTO search_words (number, words) VALUES (:number, CAST(:words AS tsvector))",
            [as_vector(one) for one in words],
        )
    connection.execute(sa.text(into), [{"number": number, "words": text} for number, text in zip(numbers, texts, strict=True)])


def _numbers(connection: sa.Connection, cards: Sequence[StoredCard]) -> list[int]:
    """One for each card, growing with its time, so that the newest matches are found first without sorting all."""
    wanted = [_number(stored) for stored in cards]
    taken, given = set[int](), list[int]()
    for number in wanted:
        while number in taken or connection.scalar(sa.select(search_cards.c.number).where(search_cards.c.number == number)):
            number += 1  # noqa: PLW2901
        taken.add(number)
        given.append(number)
    return given


def first_number(moment: dt.datetime) -> int:
    """Of the cards of that moment."""
    return max(0, int(moment.timestamp() * 1000)) << SPREAD


def _number(stored: StoredCard) -> int:
    first = first_number(dt.datetime.fromisoformat(stored.card.started_at))
    return first | int.from_bytes(hashlib.sha256(stored.card.rollout_id.encode()).digest()[:2]) >> (16 - SPREAD)


# --- questions ----------------------------------------------------------------------------------------------------------


class Match(NamedTuple):
    """Cards that have some words, by the number under which the index holds them."""

    table: sa.TableClause
    number: sa.ColumnElement[int]
    holds: sa.ColumnElement[bool]


def match_of(dialect: str, texts: Sequence[Text], tenant: str | None = None) -> Match:
    if dialect == "sqlite":
        return Match(words_on_sqlite, words_on_sqlite.c.rowid, words_on_sqlite.c.search_words.op("MATCH")(as_match(texts, tenant)))
    asked = sa.cast(sa.literal(as_tsquery(texts, tenant)), TSQUERY)
    return Match(words_on_postgresql, words_on_postgresql.c.number, words_on_postgresql.c.words.op("@@")(asked))


def has_words(dialect: str, texts: Sequence[Text], tenant: str | None = None) -> sa.ColumnElement[bool]:
    """True of the cards that have them, within a larger question. Of pairs a database would compare each card with the whole list."""
    found = match_of(dialect, texts, tenant)
    ids = sa.select(_key(search_cards)).join(found.table, found.number == search_cards.c.number)
    return _key(job_cards).in_(ids.where(found.holds))


def _key(table: sa.Table) -> sa.ColumnElement[str]:
    return table.c.rollout_id + " " + table.c.tenant
