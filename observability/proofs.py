"""What a bundle of evidence is made of: the records of some cards, and the proofs that they stand under signed roots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from observability.book import entries_after, entry_of
from observability.chain import Entry, Record, SignedRoot, check_record
from observability.evidence import Proofs, prove
from observability.find import whole_cards
from observability.ledger import records_of
from observability.query import Query
from observability.store import Store
from observability.tables import grader_versions, grades, human_labels, job_cards, ledger

BATCH = 500


class Found(NamedTuple):
    cards: int
    records: list[Record]
    """The cards, and every credit, grade and label of theirs."""
    proofs: Proofs
    graders: list[Mapping[str, Any]]
    """The registered versions that graded them."""


def case_of(store: Store, tenant: str, query: Query, signed: Sequence[SignedRoot]) -> Found:
    ids = [stored.card.rollout_id for stored in whole_cards(store, query, tenant)]
    if not ids:
        raise UserError(f"no card of tenant {tenant} is what was asked for: {query}", "`rft card list` with the same words shows what is")
    with store.reading() as connection:
        entries = [entry for first in range(0, len(ids), BATCH) for entry in _entries(connection, tenant, ids[first : first + BATCH])]
        records = [record for first in range(0, len(entries), BATCH) for record in records_of(connection, entries[first : first + BATCH])]
        if wrong := [finding for record in records if (finding := check_record(record))]:
            raise UserError(
                f"this case is not as it was recorded: {wrong[0]}", "`rft ledger verify` says all that was changed", exit_code=1
            )
        hashes = (entry.hash for entry in _every_entry(connection, tenant))
        proofs = prove([record.entry.seq for record in records], signed, hashes)
        return Found(len(ids), records, proofs, _graders(connection, tenant, ids))


def _entries(connection: sa.Connection, tenant: str, ids: Sequence[str]) -> list[Entry]:
    numbers = set[int]()
    for column in (job_cards.c.entry, job_cards.c.credit_entry, grades.c.entry, human_labels.c.entry):
        of = column.table.c
        numbers |= {
            seq for seq in connection.scalars(sa.select(column).where(of.rollout_id.in_(ids), of.tenant == tenant)) if seq is not None
        }
    select = sa.select(ledger).where(ledger.c.tenant == tenant, ledger.c.seq.in_(numbers)).order_by(ledger.c.seq)
    return [entry_of(dict(row)) for row in connection.execute(select).mappings()]


def _every_entry(connection: sa.Connection, tenant: str) -> Iterator[Entry]:
    seq = 0
    while batch := entries_after(connection, tenant, seq, BATCH):
        yield from batch
        seq = batch[-1].seq


def _graders(connection: sa.Connection, tenant: str, ids: Sequence[str]) -> list[Mapping[str, Any]]:
    used = sa.select(grades.c.grader, grades.c.version).where(grades.c.rollout_id.in_(ids), grades.c.tenant == tenant).distinct()
    versions = sa.select(grader_versions).where(sa.tuple_(grader_versions.c.name, grader_versions.c.version).in_(used))
    return [
        {name: row[name] for name in ("name", "version", "hash", "spec", "code", "created_by")}
        for row in connection.execute(versions).mappings()
    ]
