"""Whether it is as it was recorded: the ledger, its verification, evidence, and who read what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import observability.verify_evidence as verifier
from agent_rft.contracts.errors import UserError
from observability import accesses, find
from observability.bundles import evidence_of
from observability.halves import moment_text
from observability.places import reach_of
from observability.signing import open_keys, public_keys
from observability.sources import disclosed, told
from observability.views import read_query
from serving.pages.render import Answer, Asked, Desk, File, Go, Page

LISTED = 100
MOST_CARDS = 5_000
"""Of a bundle that somebody waits for."""


def status(desk: Desk, asked: Asked) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    values: dict[str, Any] = {"reach": reach_of(store, tenant), "check": desk.checks.newest(tenant), "q": asked.get("q")}
    sources = [(source, told(source).removeprefix(f"{source.name}: ")) for source in disclosed(store, tenant)]
    return Page("ledger.html", values | {"sources": sources})


def verify(desk: Desk, asked: Asked) -> Answer:
    unhurried = desk.store.ending_questions_after(0)  # nobody waits for it
    desk.checks.start(unhurried, desk.files, asked.caller.tenant, asked.caller.name, asked.now)
    return Go("/ledger")


def evidence(desk: Desk, asked: Asked) -> Answer:
    name = asked.get("name")
    if not name:
        raise UserError("the case has no name", "go back, and name it")
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    query = read_query(store, tenant, asked.get("q"), asked.now)
    find.index_for(desk.store, query, tenant)
    if find.count(store, query, tenant, MOST_CARDS + 1) > MOST_CARDS:
        raise UserError(f"this case has more than {MOST_CARDS:,} cards", "narrow it, or run `make evidence` on the store's own machine")
    made = evidence_of(desk.store, desk.files, asked.caller, asked.caller.name, name, asked.get("q"), asked.now)
    file = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "case"
    return File(f"{file}.zip", made.content, "application/zip")


def keys(desk: Desk, asked: Asked) -> Answer:
    """The public halves only."""
    return File("keys.json", public_keys(open_keys(desk.files.keys, moment_text(asked.now))), "application/json")


def script(_desk: Desk, _asked: Asked) -> Answer:
    return File("verify_evidence.py", Path(verifier.__file__).read_bytes(), "text/x-python; charset=utf-8")


def access_log(desk: Desk, asked: Asked) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    card, by = asked.get("card"), asked.get("by")
    found = accesses.reading(store, tenant, card or None, by or None, asked.number("after"), LISTED + 1)
    shown = found[:LISTED]
    return Page("access.html", {"lines": shown, "card": card, "by": by, "next": shown[-1].id if len(found) > LISTED else 0})
