"""What a bundle of evidence is made of: the records of some cards, and the proofs that they stand under signed roots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from observability.cardless import asked_for
from observability.chain import Entry, Finding, Record, SignedRoot, check_chain
from observability.evidence import Proofs, prove
from observability.find import ids_at_once
from observability.ledger import beyond_the_ledger, checked, every_entry
from observability.query import Query
from observability.store import Store
from observability.tables import grader_versions, grades

BATCH = 500
NOT_COVERED = "name, version and hash stand in the recorded grades; spec, code and created_by are not covered by the ledger"
"""The hash is over the grader's code too, so a specification alone cannot be held against it."""


class Found(NamedTuple):
    records: list[Record]
    """The cards, every credit, grade and label of theirs, and every access to them."""
    proofs: Proofs
    graders: list[Mapping[str, Any]]
    """The registered versions that graded them."""


def cards_asked_for(store: Store, tenant: str, query: Query) -> Sequence[str]:
    if ids := list(_ids(store, query, tenant)):
        return ids
    raise UserError(f"no card of tenant {tenant} is what was asked for: {query}", "`rft card list` with the same words shows what is")


def to_be_erased(store: Store, tenant: str, query: Query) -> Sequence[str]:
    """The traces that are no card, too: their spans hold words like any."""
    if spans := asked_for(store, tenant, query):
        return [*_ids(store, query, tenant), *spans]
    return cards_asked_for(store, tenant, query)


def case_of(store: Store, tenant: str, ids: Sequence[str], accesses: Set[int], signed: Sequence[SignedRoot]) -> Found:
    """Everything that the ledger says was recorded of these cards. What the store has lost of it, or has beside it, is no case.
    `accesses` are the entries that say who read them."""
    with store.reading() as connection:
        entries = _entries(connection, tenant, set(ids), accesses, signed)
        records: list[Record] = []
        for first in range(0, len(entries), BATCH):
            of_batch, wrong = checked(connection, entries[first : first + BATCH])
            _refuse(wrong)
            records += of_batch
        for first in range(0, len(ids), BATCH):
            _refuse(beyond_the_ledger(connection, tenant, ids[first : first + BATCH]))
        hashes = (entry.hash for batch in every_entry(connection, tenant) for entry in batch)
        proofs = prove([record.entry.seq for record in records], signed, hashes)
        return Found(records, proofs, _graders(connection, tenant, ids))


def _ids(store: Store, query: Query, tenant: str) -> Iterator[str]:
    """The cards are not read for it: one that cannot be read is told of by its entry."""
    try:
        for ids in ids_at_once(store, query, tenant):
            yield from ids
    except (TypeError, ValueError) as error:  # of a moment that is none
        what = f"a card that this case may need cannot be read ({type(error).__name__})"
        raise UserError(what, "`rft ledger verify` names what was changed", exit_code=1) from None


def _entries(connection: sa.Connection, tenant: str, ids: Set[str], accesses: Set[int], signed: Sequence[SignedRoot]) -> list[Entry]:
    """By whom they name, never by what the store holds: a grade that was deleted is missed. Only a ledger that is whole can say that."""
    found: list[Entry] = []

    def entries() -> Iterator[Entry]:
        for batch in every_entry(connection, tenant):
            found.extend(entry for entry in batch if entry.subject in ids or entry.seq in accesses)
            yield from batch

    _refuse(check_chain(tenant, entries(), signed))
    return found


def _refuse(wrong: Iterable[Finding]) -> None:
    for finding in wrong:
        raise UserError(f"this case is not as it was recorded: {finding}", "`rft ledger verify` says all that was changed", exit_code=1)


def _graders(connection: sa.Connection, tenant: str, ids: Sequence[str]) -> list[Mapping[str, Any]]:
    used = sa.select(grades.c.grader, grades.c.version).where(grades.c.rollout_id.in_(ids), grades.c.tenant == tenant).distinct()
    versions = sa.select(grader_versions).where(sa.tuple_(grader_versions.c.name, grader_versions.c.version).in_(used))
    return [
        {name: row[name] for name in ("name", "version", "hash", "spec", "code", "created_by")} | {"note": NOT_COVERED}
        for row in connection.execute(versions).mappings()
    ]
