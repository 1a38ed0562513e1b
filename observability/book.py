"""Writes the ledger: every card, grade, review, access and so on gets its entry in the transaction that records it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from observability.chain import SALT_BYTES, Entry, facts_digest, next_entry, payload_digest
from observability.halves import Halves, card_halves, credit_facts, grade_halves, moment_text
from observability.records import CardRows, Values
from observability.rows import add_rows
from observability.store import take_turns
from observability.tables import ledger


class Book:
    """The next pages of some tenants' ledgers, open for one transaction. Who else would write in them waits for its end.

    Rows get their entry's number and their salt before they are inserted; `close` adds the entries.
    """

    def __init__(self, connection: sa.Connection, tenants: Iterable[str]) -> None:
        self._connection = connection
        self._at = moment_text(dt.datetime.now(dt.UTC))
        self._last: dict[str, Entry | None] = {}
        self._new: list[Entry] = []
        for tenant in sorted(set(tenants)):  # in one order everywhere, so that two writers never wait for each other
            take_turns(connection, f"ledger {tenant}")
            self._last[tenant] = _last_entry(connection, tenant)

    def card(self, rows: CardRows) -> None:
        row = rows.card
        self.enter("card", row["rollout_id"], row, card_halves(row, rows.steps, rows.blobs))
        row["credit_entry"] = None if row["advantage"] is None else self.credit(row)
        for grade in rows.grades:
            self.grade(grade)

    def credit(self, row: Values) -> int:
        return self._enter("credit", row["rollout_id"], row["tenant"], facts_digest(credit_facts(row)))

    def grade(self, row: Values) -> None:
        self.enter("grade", row["rollout_id"], row, grade_halves(row))

    def enter(self, kind: str, subject: str, row: Values, halves: Halves) -> None:
        """The row gets its place, and its salt where it has words."""
        payload = ""
        if halves.payload is not None:
            row["salt"] = os.urandom(SALT_BYTES)
            payload = payload_digest(halves.payload, row["salt"])
        row["entry"] = self._enter(kind, subject, row["tenant"], facts_digest(halves.facts), payload)

    def close(self) -> None:
        add_rows(self._connection, ledger, [msgspec.structs.asdict(entry) for entry in self._new])

    def _enter(self, kind: str, subject: str, tenant: str, facts: str, payload: str = "") -> int:
        entry = next_entry(self._last[tenant], tenant=tenant, at=self._at, kind=kind, subject=subject, facts=facts, payload=payload)
        self._last[tenant] = entry
        self._new.append(entry)
        return entry.seq


def entry_of(row: sa.RowMapping | dict[str, Any]) -> Entry:
    return Entry(**row)


def entries_after(connection: sa.Connection, tenant: str, seq: int, limit: int) -> Sequence[Entry]:
    select = sa.select(ledger).where(ledger.c.tenant == tenant, ledger.c.seq > seq).order_by(ledger.c.seq).limit(limit)
    return [entry_of(dict(row)) for row in connection.execute(select).mappings()]


def newest_seq(connection: sa.Connection, tenant: str) -> int:
    return connection.scalar(sa.select(sa.func.max(ledger.c.seq)).where(ledger.c.tenant == tenant)) or 0


def tenants_of(connection: sa.Connection) -> Iterator[str]:
    """Who has a ledger, from one to the next by its key: a database asked for all different ones reads every entry."""
    tenant: str | None = ""
    while (tenant := connection.scalar(sa.select(sa.func.min(ledger.c.tenant)).where(ledger.c.tenant > tenant))) is not None:
        yield tenant


def _last_entry(connection: sa.Connection, tenant: str) -> Entry | None:
    select = sa.select(ledger).where(ledger.c.tenant == tenant).order_by(ledger.c.seq.desc()).limit(1)
    row = connection.execute(select).mappings().first()
    return entry_of(dict(row)) if row else None
