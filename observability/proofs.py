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
from observability.release_tables import approvals, release_turns, releases
from observability.store import Store
from observability.tables import grader_versions, grades, job_cards

BATCH = 500
NOT_COVERED = "name, version and hash stand in the recorded grades; spec, code and created_by are not covered by the ledger"
"""The hash is over the grader's code too, so a specification alone cannot be held against it."""


class Found(NamedTuple):
    records: list[Record]
    """The cards, every credit, grade and label of theirs, every access to them, what was asked and decided of their calls, and the
    releases that they were made under: events, waivers and decisions, and the reports of both agents."""
    proofs: Proofs
    graders: list[Mapping[str, Any]]
    """The registered versions that graded them."""
    approvals: list[Mapping[str, Any]]
    """Of their calls: the number that decisions name it by, and its entry."""


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
        asked = _approvals(connection, tenant, ids)
        entries = _entries(connection, tenant, set(ids), accesses, _named(connection, tenant, ids, asked), signed)
        records: list[Record] = []
        for first in range(0, len(entries), BATCH):
            of_batch, wrong = checked(connection, entries[first : first + BATCH])
            _refuse(wrong)
            records += of_batch
        for some in _batches(ids):
            _refuse(beyond_the_ledger(connection, tenant, some))
        hashes = (entry.hash for batch in every_entry(connection, tenant) for entry in batch)
        proofs = prove([record.entry.seq for record in records], signed, hashes)
        return Found(records, proofs, _graders(connection, tenant, ids), asked)


def _ids(store: Store, query: Query, tenant: str) -> Iterator[str]:
    """The cards are not read for it: one that cannot be read is told of by its entry."""
    try:
        for ids in ids_at_once(store, query, tenant):
            yield from ids
    except (TypeError, ValueError) as error:  # of a moment that is none
        what = f"a card that this case may need cannot be read ({type(error).__name__})"
        raise UserError(what, "`rft ledger verify` names what was changed", exit_code=1) from None


def _entries(
    connection: sa.Connection, tenant: str, ids: Set[str], accesses: Set[int], named: Set[tuple[str, str]], signed: Sequence[SignedRoot]
) -> list[Entry]:
    """By whom they name, never by what the store holds: a grade that was deleted is missed. Only a ledger that is whole can say that.
    A release is entered right before the event that it begins with."""
    found: list[Entry] = []

    def entries() -> Iterator[Entry]:
        before: Entry | None = None
        for batch in every_entry(connection, tenant):
            for one in batch:
                if one.subject in ids or one.seq in accesses or (one.kind, one.subject) in named:
                    found.extend([before] if before and (before.kind, one.kind) == ("release", "release event") else [])
                    found.append(one)
                before = one
            yield from batch

    _refuse(check_chain(tenant, entries(), signed))
    return found


def _approvals(connection: sa.Connection, tenant: str, ids: Sequence[str]) -> list[Mapping[str, Any]]:
    told = sa.select(approvals.c.id.label("number"), approvals.c.entry).where(approvals.c.tenant == tenant)
    found = [dict(row) for some in _batches(ids) for row in connection.execute(told.where(approvals.c.rollout_id.in_(some))).mappings()]
    return sorted(found, key=lambda one: one["number"])


def _named(connection: sa.Connection, tenant: str, ids: Sequence[str], asked: Sequence[Mapping[str, Any]]) -> Set[tuple[str, str]]:
    """Kind and subject of entries that belong to the cards without naming them. A card says under which release it was made; of one
    whose words are erased only the release's figures still do."""
    numbers = [number for some in _batches(ids) for number in _releases(connection, tenant, some)]
    made = sa.select(releases.c.candidate, releases.c.live).where(releases.c.tenant == tenant, releases.c.id.in_(numbers))
    agents = {agent for both in connection.execute(made) for agent in both if agent}
    decided = {(kind, str(one["number"])) for kind in ("approval decision", "approval use") for one in asked}
    return decided | {("release event", str(number)) for number in numbers} | {("report", agent) for agent in agents}


def _releases(connection: sa.Connection, tenant: str, ids: Sequence[str]) -> Set[int]:
    counted = sa.select(release_turns.c.release).where(release_turns.c.tenant == tenant, release_turns.c.rollout_id.in_(ids))
    said = sa.select(job_cards.c.metadata).where(job_cards.c.tenant == tenant, job_cards.c.rollout_id.in_(ids))
    try:
        named = [metadata.get("release") for metadata in connection.scalars(said) if isinstance(metadata, dict)]
    except ValueError:  # what is no JSON makes no case: its card is named as one that cannot be read
        named = []
    return {one for one in (*connection.scalars(counted), *named) if type(one) is int and 0 < one < 2**63}


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + BATCH] for first in range(0, len(ids), BATCH))


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
