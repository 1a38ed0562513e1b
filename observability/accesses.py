"""The access log: who read, took out and changed what. Each line has its entry in the ledger, which covers the cards it names.

A line is on disk before its answer is sent, so that nothing is read unseen; a reading that then fails stands there all the same.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from observability.access import Caller
from observability.book import Book
from observability.chain import Finding, canonical_bytes, unrecorded
from observability.halves import access_halves, moment_text
from observability.store import Store
from observability.tables import access_cards, access_log

AT_ONCE = 1000
"""Cards in one statement."""


class Access(msgspec.Struct, frozen=True):
    id: int
    by: str
    action: str
    subject: str
    """A query, a card's id, a user's name."""
    cards: int
    """How many it concerned."""
    at: dt.datetime
    entry: int
    """Its place in the tenant's ledger."""


def note(store: Store, caller: Caller, action: str, subject: str, rollout_ids: Iterable[str] = ()) -> None:
    """For a search: the query, and the ids that are listed. Returns when it is on disk."""
    with store.of(caller.tenant).writing() as connection:
        enter(connection, caller, action, subject, rollout_ids)


def enter(connection: sa.Connection, caller: Caller, action: str, subject: str, rollout_ids: Iterable[str] = ()) -> None:
    """The same within a transaction, so that what was done and its line stand or fall together."""
    ids = sorted(set(rollout_ids))
    row: dict[str, Any] = {"tenant": caller.tenant, "by": caller.name, "at": dt.datetime.now(dt.UTC)}
    row |= {"action": action, "subject": subject, "cards": len(ids), "cards_digest": digest_of_cards(ids)}
    book = Book(connection, [caller.tenant])
    book.enter("access", action, row, access_halves(row))
    book.close()
    number = connection.scalar(sa.insert(access_log).returning(access_log.c.id), row)
    for some in _some_at_a_time(ids):
        connection.execute(sa.insert(access_cards), [{"access": number, "rollout_id": one, "tenant": caller.tenant} for one in some])


def digest_of_cards(rollout_ids: Sequence[str]) -> str:
    """Over the ids in their order, none twice."""
    return hashlib.sha256(canonical_bytes(list(rollout_ids))).hexdigest()


# --- reading it -----------------------------------------------------------------------------------------------------------


def reading(
    store: Store, tenant: str, rollout_id: str | None = None, by: str | None = None, after: int | None = None, limit: int = 50
) -> list[Access]:
    """Newest first; `after` is the id of the last line of the page before."""
    select = sa.select(*(access_log.c[name] for name in Access.__struct_fields__)).where(access_log.c.tenant == tenant)
    if rollout_id is not None:
        # a join, which SQLite begins at the card's index: by an EXISTS or IN it goes through all of the tenant's log
        select = select.join(access_cards, access_cards.c.access == access_log.c.id).where(access_cards.c.rollout_id == rollout_id)
    if by is not None:
        select = select.where(access_log.c.by == by)
    if after is not None:
        select = select.where(access_log.c.id < after)
    with store.of(tenant).reading() as connection:
        return [Access(**row) for row in connection.execute(select.order_by(access_log.c.id.desc()).limit(limit)).mappings()]


def readers_of(store: Store, tenant: str, rollout_ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """Who read or took out these cards, in the order in which they did: a line for each card and access."""
    told = (access_cards.c.rollout_id, access_log.c.by, access_log.c.action, access_log.c.subject, access_log.c.at, access_log.c.entry)
    found: list[Mapping[str, Any]] = []
    with store.of(tenant).reading() as connection:
        for some in _some_at_a_time(rollout_ids):
            of_these = sa.select(*told).join(access_log, access_log.c.id == access_cards.c.access)
            mine = of_these.where(access_log.c.tenant == tenant, access_cards.c.rollout_id.in_(some))
            found += [dict(row) | {"at": moment_text(row["at"])} for row in connection.execute(mine).mappings()]
    return sorted(found, key=lambda line: (line["entry"], line["rollout_id"]))


# --- whether it is as it was entered ----------------------------------------------------------------------------------------


def otherwise_named(connection: sa.Connection, tenant: str) -> Iterator[Finding]:
    """Lines beside which other cards stand than were entered: the digest in the line, which its entry covers, says which they were."""
    last = 0
    while lines := _lines_after(connection, tenant, last):
        last = lines[-1].id
        named: dict[int, list[sa.RowMapping]] = {}
        beside = sa.select(access_cards).where(access_cards.c.access.in_([line.id for line in lines]))
        for row in connection.execute(beside).mappings():
            named.setdefault(row["access"], []).append(row)
        for line in lines:
            ids = sorted(str(row["rollout_id"]) for row in named.get(line.id, ()) if row["tenant"] == tenant)
            if digest_of_cards(ids) != line.cards_digest or len(ids) != len(named.get(line.id, ())):
                entered, stand, seq = _number(line.cards), len(named.get(line.id, ())), _number(line.entry)
                what = "removed" if stand < entered else "inserted" if stand > entered else "edited"
                words = f"of the {entered} cards that it was entered with, {stand} stand beside it, or others"
                yield Finding(tenant=tenant, seq=seq, kind="access", subject=str(line.action), what=what, words=words)
    of_none = sa.select(access_cards.c.rollout_id).where(
        access_cards.c.tenant == tenant, ~sa.exists().where(access_log.c.id == access_cards.c.access)
    )
    yield from (unrecorded(tenant, "access", str(about)) for about in connection.scalars(of_none))


def _lines_after(connection: sa.Connection, tenant: str, last: int) -> Sequence[sa.Row[Any]]:
    told = sa.select(*(access_log.c[name] for name in ("id", "by", "action", "cards", "cards_digest", "entry")))
    select = told.where(access_log.c.tenant == tenant, access_log.c.id > last).order_by(access_log.c.id)
    return connection.execute(select.limit(AT_ONCE)).all()


def _number(value: object) -> int:
    """SQLite keeps whatever it is given."""
    return value if isinstance(value, int) else 0


def _some_at_a_time(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + AT_ONCE] for first in range(0, len(ids), AT_ONCE))
