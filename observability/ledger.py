"""Holds the store against its ledger: every card, grade and label against its entry, the entries against each other and against
the roots that were signed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from observability.book import entries_after
from observability.cards import texts_of
from observability.chain import Entry, Finding, Record, SignedRoot, check_chain, check_record, unrecorded
from observability.halves import Halves, card_halves, credit_facts, grade_halves, label_halves
from observability.records import Values
from observability.store import Store
from observability.tables import card_steps, grades, human_labels, job_cards, ledger

BATCH = 500
HalvesOf = Callable[[Mapping[str, Any]], Halves]


def tenants(store: Store) -> list[str]:
    """Who has a ledger, or a card without one."""
    every = sa.union(sa.select(ledger.c.tenant), sa.select(job_cards.c.tenant))
    with store.reading() as connection:
        return sorted(connection.scalars(every))


def size(store: Store, tenant: str) -> int:
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.func.max(ledger.c.seq)).where(ledger.c.tenant == tenant)) or 0


def verify(store: Store, tenant: str, roots: Iterable[SignedRoot] = (), step: Callable[[int], None] = lambda _: None) -> Iterator[Finding]:
    """Everything that is not as it was recorded, in one consistent view of the store. `step` hears how many entries were read."""
    with store.engine.connect().execution_options(**_one_view(store)) as connection:
        found: list[Finding] = []

        def entries() -> Iterator[Entry]:
            seq = 0
            while batch := entries_after(connection, tenant, seq, BATCH):
                found.extend(finding for record in records_of(connection, batch) if (finding := check_record(record)))
                step(len(batch))
                yield from batch
                seq = batch[-1].seq

        for finding in check_chain(tenant, entries(), roots):
            yield from found
            found.clear()
            yield finding
        yield from found
        yield from _unrecorded(connection, tenant)


def _one_view(store: Store) -> dict[str, Any]:
    """On SQLite a reading transaction is one as it is."""
    return {"isolation_level": "REPEATABLE READ"} if store.engine.dialect.name == "postgresql" else {}


def records_of(connection: sa.Connection, entries: Sequence[Entry]) -> list[Record]:
    """The entries of one tenant, each with what the store holds of its subject."""
    records = [*_card_records(connection, entries), *_given_records(connection, entries, "grade", grades, grade_halves)]
    records += _given_records(connection, entries, "label", human_labels, label_halves)
    return sorted(records, key=lambda one: one.entry.seq)


def _card_records(connection: sa.Connection, entries: Sequence[Entry]) -> Iterator[Record]:
    wanted = [entry for entry in entries if entry.kind in ("card", "credit")]
    if not wanted:
        return
    subjects, tenant = {entry.subject for entry in wanted}, wanted[0].tenant
    cards = {row["rollout_id"]: row for row in _of(connection, job_cards, subjects, tenant)}
    steps: dict[str, list[Values]] = {}
    for row in sorted(_of(connection, card_steps, subjects, tenant), key=lambda one: one["position"]):
        steps.setdefault(row["rollout_id"], []).append(row)
    texts = texts_of(connection, [*cards.values(), *(step for told in steps.values() for step in told)])
    for entry in wanted:
        card = cards.get(entry.subject)
        place = "entry" if entry.kind == "card" else "credit_entry"
        if card is None or card[place] != entry.seq:
            yield Record(entry=entry, facts=None)
        elif entry.kind == "credit":
            yield Record(entry=entry, facts=credit_facts(card))
        else:
            halves = _halves_of(card, steps.get(entry.subject, []), texts)
            facts, words = halves or (None, None)
            yield Record(entry=entry, facts=facts, payload=words, salt=card["salt"])


def _halves_of(card: Values, steps: Sequence[Values], texts: Mapping[str, str]) -> Halves | None:
    """None where a text that the card names is gone."""
    named = [card["opening"], card["tools"], *(step["output_blob"] for step in steps if step["output_blob"])]
    return card_halves(card, steps, texts) if all(name in texts for name in named) else None


def _given_records(
    connection: sa.Connection, entries: Sequence[Entry], kind: str, table: sa.Table, halves: HalvesOf
) -> Iterator[Record]:  # fmt: skip
    wanted = [entry for entry in entries if entry.kind == kind]
    if not wanted:
        return
    numbers, tenant = [entry.seq for entry in wanted], wanted[0].tenant
    about = [entry.subject for entry in wanted]
    subject = table.c.rollout_id if kind == "grade" else sa.func.coalesce(table.c.rollout_id, table.c.row_id)
    select = sa.select(table).where(
        table.c.rollout_id.in_(about) | (subject.in_(about)), table.c.tenant == tenant, table.c.entry.in_(numbers)
    )
    rows: dict[int, Values] = {row["entry"]: dict(row) for row in connection.execute(select).mappings()}
    for entry in wanted:
        row = rows.get(entry.seq)
        facts, words = halves(row) if row else (None, None)
        yield Record(entry=entry, facts=facts, payload=words, salt=row["salt"] if row else None)


def _of(connection: sa.Connection, table: sa.Table, rollout_ids: Iterable[str], tenant: str) -> list[Values]:
    select = sa.select(table).where(table.c.rollout_id.in_(list(rollout_ids)), table.c.tenant == tenant)
    return [dict(row) for row in connection.execute(select).mappings()]


def _unrecorded(connection: sa.Connection, tenant: str) -> Iterator[Finding]:
    """Rows that no entry speaks of, and second rows behind one entry."""
    cards, label_of = job_cards.c.rollout_id, sa.func.coalesce(human_labels.c.rollout_id, human_labels.c.row_id)
    yield from _without_entry(connection, tenant, "card", job_cards, job_cards.c.entry, cards)
    yield from _without_entry(connection, tenant, "credit", job_cards, job_cards.c.credit_entry, cards, job_cards.c.advantage.is_not(None))
    for kind, table, subject in (("grade", grades, grades.c.rollout_id), ("label", human_labels, label_of)):
        yield from _without_entry(connection, tenant, kind, table, table.c.entry, subject)
        twice = sa.select(sa.func.min(subject)).where(table.c.tenant == tenant).group_by(table.c.entry).having(sa.func.count() > 1)
        yield from (unrecorded(tenant, kind, about) for about in connection.scalars(twice))


def _without_entry(
    connection: sa.Connection, tenant: str, kind: str, table: sa.Table, entry: Any, subject: Any, *only: Any
) -> Iterator[Finding]:  # fmt: skip
    same = sa.and_(ledger.c.tenant == tenant, ledger.c.seq == entry, ledger.c.kind == kind, ledger.c.subject == subject)
    select = sa.select(subject).where(table.c.tenant == tenant, *only, ~sa.exists().where(same).correlate(table))
    yield from (unrecorded(tenant, kind, about) for about in connection.scalars(select))
