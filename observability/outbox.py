"""What people have to be told, from the transaction in which it happened until somebody took it.

Who is told of a rollback must be told even if the process dies right after it: so the word stands in the same transaction as the thing
itself, and is sent from the table. It may come twice and says by its id that it did.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import sqlalchemy as sa

from observability.release_tables import outbox
from observability.store import Store

GIVEN_UP_AFTER = dt.timedelta(days=1)
FORGOTTEN_AFTER = dt.timedelta(days=30)
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 3600.0
"""Seconds between two tries."""
LONGEST_TROUBLE = 500


class Word(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    tenant: str
    kind: str
    """release, alarm, approval: what it is about."""
    subject: str
    body: dict[str, Any]
    at: dt.datetime
    tries: int
    sent_at: dt.datetime | None
    trouble: str
    """Why the newest try failed; empty where none did."""


def put(to: sa.Connection | Store, tenant: str, kind: str, subject: str, body: dict[str, Any]) -> None:
    """With the caller's transaction, or in one of its own."""
    if isinstance(to, Store):
        with to.writing() as connection:
            return put(connection, tenant, kind, subject, body)
    now = dt.datetime.now(dt.UTC)
    row = {"tenant": tenant, "kind": kind, "subject": subject, "body": body, "at": now, "next_at": now, "tries": 0, "trouble": ""}
    to.execute(sa.insert(outbox), [row])


def due(store: Store, now: dt.datetime, limit: int = 50) -> list[Word]:
    """Those to be sent now, oldest first."""
    unsent = (outbox.c.sent_at.is_(None), outbox.c.next_at <= now, outbox.c.at > now - GIVEN_UP_AFTER)
    return _words(store, sa.select(outbox).where(*unsent).order_by(outbox.c.id).limit(limit))


def of_tenant(store: Store, tenant: str, limit: int = 50) -> list[Word]:
    """The newest first, sent or not."""
    return _words(store, sa.select(outbox).where(outbox.c.tenant == tenant).order_by(outbox.c.id.desc()).limit(limit))


def sent(store: Store, word: Word, now: dt.datetime) -> None:
    _noted(store, word, {"sent_at": now, "trouble": "", "tries": word.tries + 1})


def failed(store: Store, word: Word, trouble: str, now: dt.datetime) -> dt.datetime:
    """It is tried again with growing pauses, for a day; when next."""
    pause = min(FIRST_PAUSE * 2**word.tries, LONGEST_PAUSE)
    again = now + dt.timedelta(seconds=pause)
    _noted(store, word, {"tries": word.tries + 1, "trouble": trouble[:LONGEST_TROUBLE], "next_at": again})
    return again


def forget_old(store: Store, now: dt.datetime, most: int = 500) -> int:
    """Of the oldest so many those that were sent, or given up, long ago go; how many. What they told stands on its own record."""
    with store.writing() as connection:
        oldest = connection.execute(sa.select(outbox.c.id, outbox.c.at).order_by(outbox.c.id).limit(most))
        old = [row.id for row in oldest if row.at < now - FORGOTTEN_AFTER]
        connection.execute(sa.delete(outbox).where(outbox.c.id.in_(old)))
    return len(old)


def _noted(store: Store, word: Word, values: dict[str, Any]) -> None:
    with store.writing() as connection:
        connection.execute(sa.update(outbox).where(outbox.c.id == word.id).values(**values))


def _words(store: Store, select: sa.Select[Any]) -> list[Word]:
    with store.reading() as connection:
        rows = [dict(row) for row in connection.execute(select).mappings()]
    return [Word(**{name: row[name] for name in Word.__struct_fields__}) for row in rows]
