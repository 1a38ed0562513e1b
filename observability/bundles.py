"""Makes the evidence of a case, for the command line and the page: one signed file, and a line in the access log that it was made."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import NamedTuple

import observability.verify_evidence as verifier
from observability.access import Caller
from observability.accesses import note, readers_of
from observability.evidence import Case, Signer, make_bundle
from observability.find import index_for
from observability.halves import moment_text
from observability.proofs import cards_asked_for, case_of
from observability.roots import LedgerFiles, sign, trusted
from observability.signing import open_keys, public_keys
from observability.sources import disclosed, disclosure
from observability.store import Store
from observability.views import as_noted, read_query


class Evidence(NamedTuple):
    content: bytes
    cards: int
    entries: int


def evidence_of(store: Store, files: LedgerFiles, caller: Caller, made_by: str, name: str, question: str, now: dt.datetime) -> Evidence:
    """Everything about the cards that a query asks for. That it was made is entered before the root is signed, so the bundle
    itself tells of it."""
    mine, tenant = store.of(caller.tenant), caller.tenant
    query = read_query(mine, tenant, question, now)
    index_for(store, query, tenant)
    ids, question = cards_asked_for(mine, tenant, query), as_noted(question, query)
    note(store, caller, "evidence", f"{name}: {question}", ids)
    readers = readers_of(store, tenant, ids)
    keys = open_keys(files.keys, moment_text(now))
    sign(mine, tenant, keys, files.roots, moment_text(now))
    signed = [root for root in trusted(files)[0] if root.tenant == tenant]
    found = case_of(mine, tenant, ids, {line["entry"] for line in readers}, signed)
    case = Case(name=name, tenant=tenant, question=question, made_at=keys.dated(moment_text(now)), made_by=made_by)
    signer = Signer(key=keys.id, public_keys=public_keys(keys), sign=keys.sign)
    script, sources = Path(verifier.__file__).read_bytes(), [disclosure(source) for source in disclosed(mine, tenant)]
    content = make_bundle(case, found.records, found.proofs, found.graders, readers, signer, script, sources, found.approvals)
    return Evidence(content, len(ids), len(found.records))
