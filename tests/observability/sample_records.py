"""A store that holds several of every kind of record that the ledger vouches for. A plain module, loaded by path."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import ToolResult
from observability import holds, ledger, queue, reviews, states
from observability.access import Caller
from observability.accesses import note
from observability.book import Book
from observability.erasure import erase
from observability.graders import add_label, append_grades
from observability.ingest import insert_cards
from observability.intake import write
from observability.otlp.spans import Received, Span
from observability.query import parse
from observability.records import LONG, RecordedCard
from observability.redaction.detectors import detectors_of
from observability.redaction.redact import Removal
from observability.release_tables import agent_reports, approval_decisions, approval_uses, approvals, release_events, releases
from observability.search import catch_up
from observability.store import Store
from observability.traces import bundles_of

TENANT = "acme"
NOW = dt.datetime(2026, 11, 22, 5, tzinfo=dt.UTC)
IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(5)]
ANN = Caller(TENANT, "ann", "reviewer", frozenset({"read"}), "k1")


def fill(store: Store, make_card: Any) -> None:
    """Five cards, the last two erased, and at least two rows of everything that is said of them."""
    _cards(store, make_card)
    _judgements(store)
    _holds_and_traces(store)
    _releases(store)
    erase(store, TENANT, IDS[3:], "dpo", "request 17")
    for number, action in enumerate(("read", "export", "search")):
        note(store, ANN, action, f"about {number}", IDS[: 3 - number])
    note(store, ANN, "count", "row:a")
    catch_up(store, TENANT)
    queue.fill(store, TENANT)


def _cards(store: Store, make_card: Any) -> None:
    made: list[RecordedCard] = []
    for number, rollout_id in enumerate(IDS):
        worth = None if number == 2 else number / 4
        card = make_card(rollout_id, tenant=TENANT, row_id=f"row-{number}", advantage=worth, item={"own": number})
        turn = card.rollout.turns[0]
        turn.results["call-1-2"] = ToolResult("call-1-2", f"page {number} " * LONG, None, 0.25)  # long enough for a blob
        turn.text = f"I look it up, for the {number}th time."
        made.append(RecordedCard(card, NOW, (Removal("EMAIL", 0, 16, "/metadata/mail"),) if number else None))
    insert_cards(store, made)


def _judgements(store: Store) -> None:
    for number, rollout_id in enumerate(IDS):
        append_grades(store, [(rollout_id, Grade(GraderRef("numeric", "2", "beef"), number / 8, number > 2, {"found": number}))])
        add_label(store, f"ann {number}", rollout_id=rollout_id, score=number / 8, note=f"label {number}")
        reviews.add(store, "ann", TENANT, rollout_id, "coach", f"review {number}", number % 3)
        asked = reviews.request_change(store, "ann", TENANT, rollout_id, "dataset", f"change {number}")
        if number != 1:
            reviews.settle(store, "bob", TENANT, asked.id, "done", f"outcome {number}")
    for number, row_id in enumerate(("row-8", "row-9")):
        add_label(store, "ann", row_id=row_id, label="fail", note=f"of a row {number}", tenant=TENANT)
    for number, state in enumerate(("opened", "blocked")):
        states.note(store, "runner", TENANT, f"job-{number}", state, f"state {number}")
    for number in (0, 3):
        states.seal(store, "approver", TENANT, IDS[number], f"seal {number}")


def _holds_and_traces(store: Store) -> None:
    for number in range(2):
        holds.place(store, TENANT, f"case-{number}", parse(f"row:row-{number}", NOW), f"suit {number}", "ann")
    holds.release(store, TENANT, "case-0", "settled", "ann")
    detectors = detectors_of(True, None)
    for number in range(3):
        ids: dict[str, Any] = {"trace_id": f"{min(number, 1) + 1:032x}", "span_id": f"{number + 1:016x}", "parent_id": "00000000000000ff"}
        told = {"gen_ai.operation.name": "chat", "gen_ai.output.messages": json.dumps(f"words {number}")}
        span = Span(**ids, start_ns=10**18 + number, end_ns=10**18 + 10**9, attributes=told)
        write(store, bundles_of(Received((span,), ()), TENANT, NOW, detectors)[0], detectors)


def _releases(store: Store) -> None:
    """As rows: who makes them is tested where they are made."""
    kinds = {given.table.name: given for given in ledger.GIVEN}
    with store.writing() as connection:
        book = Book(connection, [TENANT])
        for number in range(2):
            release = {"service": f"desk-{number}", "candidate": "b", "live": "a", "policy": {"share": number}}
            event = {
                "release": number + 1,
                "act": "started",
                "stage": "canary",
                "share": 0.05,
                "held": False,
                "cut": False,
                "why": "",
                "figures": {},
            }
            asked = {"rollout_id": IDS[number], "call_id": f"call-{number}", "tool": "pay", "arguments": {"sum": number}}
            rows: list[tuple[sa.Table, str, dict[str, Any]]] = [
                (releases, "service", release),
                (release_events, "release", event),
                (approvals, "rollout_id", asked | {"arguments_hash": "ab", "expires_at": NOW}),
                (approval_decisions, "approval", {"approval": number + 1, "decision": "approve", "note": f"decision {number}"}),
                (approval_uses, "approval", {"approval": number + 1}),
                (agent_reports, "agent", {"agent": f"agent-{number}", "kind": "safety", "passed": number > 0, "figures": {"failed": []}}),
            ]
            for table, named, said in rows:
                row, given = said | {"tenant": TENANT, "by": f"bob {number}", "at": NOW}, kinds[table.name]
                book.enter(given.kind, str(row[named]), row, given.halves(row))
                connection.execute(sa.insert(table), [row])
        book.close()
