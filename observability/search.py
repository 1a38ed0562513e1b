"""Fills and asks the index of words. It follows the ledger: a card is acknowledged first and indexed later, and a mark says up to
which entry that was done."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence, Set
from typing import NamedTuple

import sqlalchemy as sa
import structlog
from sqlalchemy import exc
from sqlalchemy.dialects.postgresql import TSQUERY

from observability.book import newest_seq, tenants_of
from observability.card_words import CardWords, card_words
from observability.ingest import is_away, reason
from observability.query import Query
from observability.rows import add_rows
from observability.store import Store, one_of, refresh_statistics, take_turns
from observability.tables import job_cards, ledger, search_cards, search_marks
from observability.words import as_match, as_tsquery, as_vector, word_of_tenant

AT_ONCE = 500
"""Entries in a transaction: the others that write wait so long. Of more at once each takes less, since they share texts and FTS5
writes larger parts."""
FIRST_STATISTICS = 1024
"""Entries from which on a database should know how many rows have which values."""
SPREAD = 15
"""Bits below a card's millisecond."""
MERGED_AT_ONCE = 500
"""Pages of FTS5's index that are merged in one transaction."""
FORGETTING = {
    "sqlite": (
        "INSERT INTO search_words (search_words, rowid, words) VALUES ('delete', :number, :words)",
        "INSERT INTO search_words (rowid, words) VALUES (:number, :left)",
    ),
    "postgresql": ("UPDATE search_words SET words = CAST(:left AS tsvector) WHERE number = :number",),
}

words_on_postgresql = sa.table("search_words", sa.column("number", sa.BigInteger), sa.column("words"))
words_on_sqlite = sa.table("search_words", sa.column("rowid", sa.Integer), sa.column("search_words"))
log = structlog.get_logger(__name__)


class Indexed(NamedTuple):
    """Of a tenant's ledger, in one transaction."""

    before: int
    last: int
    entries: int


def behind(store: Store) -> dict[str, int]:
    """How many entries of each tenant's ledger are not in the index yet."""
    with store.reading() as connection:
        marks = {row.tenant: row.seq for row in connection.execute(sa.select(search_marks))}
        newest = {tenant: newest_seq(connection, tenant) for tenant in tenants_of(connection)}
    return {tenant: seq - marks.get(tenant, 0) for tenant, seq in newest.items() if seq > marks.get(tenant, 0)}


def catch_up(store: Store, tenant: str, step: Callable[[int], None] = lambda _: None) -> None:
    """Everything recorded so far is in the index when it returns. Several may do this at once."""
    while done := index_some(store, tenant):
        step(done)


def index_some(store: Store, tenant: str) -> int:
    """Of the oldest that are not in the index yet: so few that others need not wait long. Answers how many entries these were."""
    done = _next(store, tenant)
    if done and done.last >= FIRST_STATISTICS and done.last.bit_length() > done.before.bit_length():
        refresh_statistics(store)  # each time that the store has twice as much in it
    return done.entries if done else 0


def _next(store: Store, tenant: str) -> Indexed | None:
    with store.writing() as connection:
        take_turns(connection, f"search {tenant}")
        mark = connection.scalar(sa.select(search_marks.c.seq).where(search_marks.c.tenant == tenant))
        columns = (ledger.c.seq, ledger.c.kind, ledger.c.subject)
        after = (ledger.c.tenant == tenant, ledger.c.seq > (mark or 0))
        entries = connection.execute(sa.select(*columns).where(*after).order_by(ledger.c.seq).limit(AT_ONCE)).all()
        if not entries:
            return None
        _index_sound(connection, [subject for _, kind, subject in entries if kind == "card"], tenant)
        values = {"tenant": tenant, "seq": entries[-1].seq}
        connection.execute(
            sa.insert(search_marks) if mark is None else sa.update(search_marks).where(search_marks.c.tenant == tenant), [values]
        )
        return Indexed(mark or 0, entries[-1].seq, len(entries))


def _index_sound(connection: sa.Connection, rollout_ids: Sequence[str], tenant: str) -> None:
    """All of them, or all but the one that spoils it, which is looked for in ever smaller halves: no card keeps the others' words out
    of the index. `rft ledger verify` names the one that is not in it."""
    try:
        with connection.begin_nested():
            _index(connection, tenant, card_words(connection, rollout_ids, tenant))
    except Exception as error:  # whatever a row that was changed, or a limit of the database's, can bring about
        if is_away(error):
            raise
        if len(rollout_ids) > 1:
            middle = len(rollout_ids) // 2
            _index_sound(connection, rollout_ids[:middle], tenant)
            _index_sound(connection, rollout_ids[middle:], tenant)
            return
        if isinstance(error, exc.IntegrityError):  # another tenant's card was given the number just now: there are others
            raise
        log.warning("card not indexed", tenant=tenant, rollout_id=rollout_ids[0], trouble=reason(error))


def _index(connection: sa.Connection, tenant: str, cards: Sequence[CardWords]) -> None:
    """In the order of their numbers: FTS5 writes all that it has when it is given a lower one than before."""
    if not cards:
        return
    numbered = sorted(zip(_numbers(connection, cards), cards, strict=True))
    add_rows(connection, search_cards, [{"number": number, "tenant": tenant, "rollout_id": card.rollout_id} for number, card in numbered])
    if connection.dialect.name == "sqlite":
        into, rows = "INSERT INTO search_words (rowid, words) VALUES (?, ?)", [(number, card.words) for number, card in numbered]
    else:
        into = "INSERT INTO search_words (number, words) VALUES (%s, CAST(%s AS tsvector))"
        rows = [(number, as_vector(card.words.split(" "))) for number, card in numbered]
    connection.exec_driver_sql(into, rows)


def forget(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> None:
    """Takes the words of cards, before their erasure, out of the index, where they stand under the tenant's word alone from now on.
    Call it with the turn of `search TENANT`: nobody indexes them meanwhile."""
    take_turns(connection, f"search {tenant}")
    held = sa.select(search_cards.c.rollout_id, search_cards.c.number).where(
        search_cards.c.tenant == tenant, search_cards.c.rollout_id.in_(rollout_ids)
    )
    numbers = {row[0]: row[1] for row in connection.execute(held)}
    rows = [
        {"number": numbers[card.rollout_id], "words": card.words, "left": word_of_tenant(tenant)}
        for card in card_words(connection, list(numbers), tenant)
    ]
    for statement in FORGETTING[connection.dialect.name] if rows else ():
        connection.execute(sa.text(statement), rows)


def scrub(store: Store) -> None:
    """FTS5 notes what was forgotten beside the words, and drops both when it merges them: here, a few pages at a time, so that those
    who write take turns with it. PostgreSQL's own housekeeping does it there."""
    if store.engine.dialect.name != "sqlite":
        return
    pages = -MERGED_AT_ONCE  # a negative number says: merge all into one, however well it lies as it is
    changed = 2
    while changed > 1:  # which FTS5 promises to go beyond whenever it had something to merge
        with store.writing() as connection:
            before = connection.scalar(sa.text("SELECT total_changes()"))
            connection.execute(sa.text("INSERT INTO search_words (search_words, rank) VALUES ('merge', :pages)"), {"pages": pages})
            changed = (connection.scalar(sa.text("SELECT total_changes()")) or 0) - (before or 0)
        pages = MERGED_AT_ONCE


def _numbers(connection: sa.Connection, cards: Sequence[CardWords]) -> list[int]:
    """One for each card, growing with its time, so that the newest matches are found first without sorting all."""
    wanted, given = [_number(card) for card in cards], list[int]()
    taken = set(connection.scalars(sa.select(search_cards.c.number).where(one_of(connection.dialect.name, search_cards.c.number, wanted))))
    for number in wanted:
        given.append(_free_after(connection, number, taken) if number in taken else number)
        taken.add(given[-1])
    return given


def _free_after(connection: sa.Connection, number: int, taken: Set[int]) -> int:
    """The one behind the highest of its millisecond, or of a later one where these are full: to try one after the other would take
    ever longer. Others' cards count too, since all tenants share the numbers."""
    while True:
        end = (number >> SPREAD) + 1 << SPREAD
        in_it = sa.select(search_cards.c.number).where(search_cards.c.number >= number, search_cards.c.number < end)
        highest = connection.scalar(in_it.order_by(search_cards.c.number.desc()).limit(1))
        number = max([one for one in taken if number <= one < end] + ([] if highest is None else [highest]), default=number - 1) + 1
        if number < end:
            return number


def first_number(moment: dt.datetime) -> int:
    """Of the cards of that moment."""
    return max(0, int(moment.timestamp() * 1000)) << SPREAD


def _number(card: CardWords) -> int:
    return first_number(card.started_at) | int.from_bytes(hashlib.sha256(card.rollout_id.encode()).digest()[:2]) >> (16 - SPREAD)


# --- questions ----------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """Of numbers."""

    first: int = 0
    below: int = 2**63 - 1


NEWEST_ON_SQLITE = sa.text("""SELECT rowid FROM search_words WHERE search_words MATCH :asked AND rowid >= :first AND rowid < :below
  ORDER BY rowid DESC LIMIT :most""")
NEWEST_ON_POSTGRESQL = sa.text("SELECT newest_words(CAST(:asked AS tsquery), :first, :below, :most)")
NEWEST_UNDER_POLICY = sa.text("SELECT newest_with_words(CAST(:asked AS tsquery), :first, :below, :most)")


def newest_with(store: Store, connection: sa.Connection, asked: Query, span: Span, most: int, tenant: str | None) -> Sequence[int]:
    """The highest numbers of cards with these words, highest first. Some may be of cards that are no longer there."""
    dialect, values = store.engine.dialect.name, {"first": span.first, "below": span.below, "most": most}
    on_postgresql = NEWEST_ON_POSTGRESQL if store.tenant is None else NEWEST_UNDER_POLICY
    select = NEWEST_ON_SQLITE if dialect == "sqlite" else on_postgresql
    return list(connection.scalars(select, values | {"asked": question(store, asked, tenant)}))


def question(store: Store, asked: Query, tenant: str | None) -> str:
    """Under PostgreSQL's policy the functions add the tenant: said twice, it would be taken to be twice as rare."""
    if store.engine.dialect.name == "sqlite":
        return as_match(asked, store.tenant or tenant)
    return as_tsquery(asked, None if store.tenant else tenant)


def has_words(store: Store, asked: Query, tenant: str | None = None) -> sa.ColumnElement[bool]:
    """True of the cards that have them, looked up for each card: for where words are only one way of several to be found."""
    dialect = store.engine.dialect.name
    words = sa.literal(question(store, asked, tenant))
    of_card = sa.and_(search_cards.c.rollout_id == job_cards.c.rollout_id, search_cards.c.tenant == job_cards.c.tenant)
    number = sa.select(search_cards.c.number).where(of_card).correlate(job_cards).scalar_subquery()
    if dialect == "sqlite":
        row = sa.select(sa.literal(1)).select_from(words_on_sqlite)
        return row.where(words_on_sqlite.c.search_words.op("MATCH")(words), words_on_sqlite.c.rowid == number).exists()
    asked_for = sa.cast(words, TSQUERY)
    if store.tenant is not None:
        return sa.func.has_words(asked_for, number, type_=sa.Boolean)
    row = sa.select(sa.literal(1)).select_from(words_on_postgresql)
    return row.where(words_on_postgresql.c.number == number, words_on_postgresql.c.words.op("@@")(asked_for)).exists()


def places_of(connection: sa.Connection, numbers: Sequence[int]) -> dict[int, tuple[str, str]]:
    """The cards behind the numbers, for as far as they are there and may be seen."""
    select = sa.select(search_cards).where(one_of(connection.dialect.name, search_cards.c.number, numbers))
    return {row.number: (row.rollout_id, row.tenant) for row in connection.execute(select)}


def number_of(connection: sa.Connection, rollout_id: str, tenant: str | None) -> int | None:
    select = sa.select(search_cards.c.number).where(search_cards.c.rollout_id == rollout_id)
    return connection.scalar(select if tenant is None else select.where(search_cards.c.tenant == tenant))
