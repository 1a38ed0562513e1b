"""Where things stand in a tenant's ledger, and how far the signed roots reach: what a page tells beside a card."""

from __future__ import annotations

import datetime as dt
from collections import Counter

import msgspec
import sqlalchemy as sa

from observability.store import Store
from observability.tables import job_cards, ledger, ledger_roots


class Place(msgspec.Struct, frozen=True):
    entry: int
    hash: str
    at: str
    root: int | None
    """The entries under the first signed root that covers it; None where none does yet."""
    signed_at: str


class Reach(msgspec.Struct, frozen=True):
    """Of a tenant's ledger."""

    entries: int
    signed: int
    """Entries under the newest signed root."""
    root: str
    signed_at: str
    key: str
    kinds: dict[str, int]
    """What the newest entries are about, by how many."""
    counted: int
    """Of the newest entries, those that were counted for this."""
    newest_at: dt.datetime | None


def place_of(store: Store, tenant: str, rollout_id: str) -> Place | None:
    mine = (job_cards.c.rollout_id == rollout_id, job_cards.c.tenant == tenant)
    entry = sa.and_(ledger.c.tenant == job_cards.c.tenant, ledger.c.seq == job_cards.c.entry)
    with store.reading() as connection:
        row = connection.execute(sa.select(ledger.c.seq, ledger.c.hash, ledger.c.at).join(job_cards, entry).where(*mine)).first()
        if row is None:
            return None
        covering = (ledger_roots.c.tenant == tenant, ledger_roots.c.size >= row.seq)
        root = connection.execute(sa.select(ledger_roots).where(*covering).order_by(ledger_roots.c.size).limit(1)).mappings().first()
    return Place(row.seq, row.hash, row.at, root["size"] if root else None, root["at"] if root else "")


def reach_of(store: Store, tenant: str, counted: int = 10_000) -> Reach:
    mine = sa.select(ledger.c.seq, ledger.c.kind, ledger.c.at).where(ledger.c.tenant == tenant)
    newest_root = sa.select(ledger_roots).where(ledger_roots.c.tenant == tenant).order_by(ledger_roots.c.size.desc()).limit(1)
    with store.reading() as connection:
        rows = connection.execute(mine.order_by(ledger.c.seq.desc()).limit(counted)).all()
        root = connection.execute(newest_root).mappings().first()
    kinds = dict(Counter(row.kind for row in rows).most_common())
    told = (root["size"], root["root"], root["at"], root["key"]) if root else (0, "", "", "")
    return Reach(rows[0].seq if rows else 0, *told, kinds, len(rows), dt.datetime.fromisoformat(rows[0].at) if rows else None)
