"""Traces on their way into the store: durable span by span, one card each, nothing doubled, nothing unredacted."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.jobcards import JobCard
from observability import traces as module
from observability.cards import stored_cards
from observability.ingest import insert_cards
from observability.intake import Card, Intake, write
from observability.ledger import verify
from observability.otlp.export import spans_of
from observability.otlp.spans import Event, Received, Span
from observability.records import RecordedCard, StoredCard, rows_of
from observability.redaction.detectors import detectors_of
from observability.sources import disclosed
from observability.store import Store
from observability.tables import grades, job_cards, ledger, trace_parts, traces
from observability.texts import unpacked
from observability.traces import bundles_of, settle_quiet

START, MS = 1_795_233_612_250_000_000, 1_000_000  # 2026-11-21 04:00:12.25 UTC
TRACE = "5b8efff798038103d269b633813fc60c"
ID = "01a1fc43-01da-7"
"""What the id of its card begins with: 1_795_233_612_250 milliseconds in hex, and the 7 of a UUIDv7. Worked out by hand."""
DETECTORS = detectors_of(True)


def span(number: int, after: float, lasts: float, parent: int = 0, trace: str = TRACE, **changed: Any) -> Span:
    ids: dict[str, Any] = {"trace_id": trace, "span_id": f"{number:016x}", "parent_id": f"{parent:016x}" if parent else ""}
    start = START + round(after * MS)
    return Span(**(ids | {"start_ns": start, "end_ns": start + round(lasts * MS)} | changed))


def agent(number: int = 1, parent: int = 0, **changed: Any) -> Span:
    told = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "analyst", "gen_ai.output.messages": "13.4%"}
    return span(number, 0, 900, parent, **({"attributes": told} | changed))


def chat(number: int = 2, said: str = "I look it up.", parent: int = 1, **changed: Any) -> Span:
    messages = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": said}]}])
    return span(
        number, 100, 50, parent, **({"attributes": {"gen_ai.operation.name": "chat", "gen_ai.output.messages": messages}} | changed)
    )


@pytest.fixture
def intake(store: Store) -> Iterator[Intake]:
    intake = Intake(store, DETECTORS)
    yield intake
    intake.close()


@pytest.fixture
def send(intake: Intake) -> Callable[..., list[str]]:
    """Sends spans as one request; answers why some were not taken."""
    return lambda *spans: [each.why for each in intake.submit_spans("acme", Received(spans, ()))]


def count(store: Store, table: sa.Table) -> int:
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def rows(store: Store, table: sa.Table) -> list[Any]:
    with store.reading() as connection:
        return list(connection.execute(sa.select(table)).mappings())


def the_card(store: Store) -> StoredCard:
    with store.reading() as connection:
        found = stored_cards(connection, list(connection.scalars(sa.select(job_cards.c.rollout_id))))
    assert len(found) == 1
    return found[0]


def test_a_whole_trace_is_a_card_at_once_and_sent_again_it_changes_nothing(store: Store, send: Callable[..., list[str]]):
    assert send(agent(), chat()) == []
    card = the_card(store).card
    assert (card.tenant, card.rollout.answer, [turn.text for turn in card.rollout.turns]) == ("acme", "13.4%", ["I look it up."])
    assert card.rollout_id.startswith(ID)
    before = rows(store, traces), count(store, ledger)
    assert send(chat(), agent()) == []  # the same spans, in another order
    assert (rows(store, traces), count(store, ledger)) == before
    assert before[1] == 2  # the entry of the spans, and the card's
    assert list(verify(store, "acme")) == []


def test_spans_that_come_one_by_one_are_durable_at_once_and_one_card_at_the_end(store: Store, send: Callable[..., list[str]]):
    assert send(chat()) == []
    assert (count(store, trace_parts), count(store, job_cards)) == (1, 0)
    assert send(chat(3, "It says 13.4%."), agent()) == []
    card = the_card(store)
    assert [turn.text for turn in card.card.rollout.turns] == ["I look it up.", "It says 13.4%."]
    assert {row["rollout_id"] for row in rows(store, trace_parts)} == {card.card.rollout_id}
    assert list(verify(store, "acme")) == []


def test_an_agent_that_another_one_asked_makes_no_card_before_the_other_has_ended(store: Store, send: Callable[..., list[str]]):
    send(agent(5, parent=1), chat(parent=5))
    assert count(store, job_cards) == 0
    send(agent(1, attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "chief"}))
    assert the_card(store).card.metadata["agent"] == "chief"


def test_a_span_that_comes_late_is_kept_beside_the_card_and_changes_nothing_in_it(store: Store, send: Callable[..., list[str]]):
    send(agent(), chat())
    before = the_card(store)
    assert send(span(9, -5000, 10, attributes={"note": "started before all others"})) == []
    assert the_card(store) == before
    assert sorted(row["late"] for row in rows(store, trace_parts)) == [False, True]
    assert list(verify(store, "acme")) == []


def test_an_evaluation_that_comes_late_is_one_more_grade_once(store: Store, send: Callable[..., list[str]]):
    told = {
        "gen_ai.evaluation.name": "judge",
        "gen_ai.evaluation.score.value": 0.25,
        "gen_ai.evaluation.explanation": "for bob@example.com",
    }
    send(agent(), chat())
    event = Event("gen_ai.evaluation.result", START + 5000 * MS, told)
    for number in (7, 8):  # two requests with another part of the trace each, and the same evaluation
        assert send(span(number, 5000, 0, events=(event,))) == []
    assert [(row["grader"], row["reward"], row["parts"]) for row in rows(store, grades)] == [
        ("judge", 0.25, {"score": 0.25, "explanation": "for [EMAIL]"})
    ]
    assert list(verify(store, "acme")) == []


def test_a_trace_that_has_gone_quiet_becomes_a_card_as_it_stands(store: Store, send: Callable[..., list[str]]):
    send(chat())
    now = dt.datetime.now(dt.UTC)
    assert settle_quiet(store, now - dt.timedelta(minutes=2), now, DETECTORS) == 0
    assert settle_quiet(store, now + dt.timedelta(minutes=2), now, DETECTORS) == 1
    card = the_card(store).card
    assert (card.rollout.ending, [turn.text for turn in card.rollout.turns]) == (None, ["I look it up."])
    assert settle_quiet(store, now + dt.timedelta(minutes=2), now, DETECTORS) == 0
    send(agent())
    assert the_card(store).card == card
    assert list(verify(store, "acme")) == []


def test_a_card_that_its_recorder_has_stored_is_not_made_again_of_its_trace(
    store: Store, send: Callable[..., list[str]], make_card: Callable[..., JobCard]
):
    card = make_card("01a1fc43-01da-7111-8111-111111111111", tenant="acme")
    insert_cards(store, [RecordedCard(card, dt.datetime.now(dt.UTC))])
    before = the_card(store)
    assert send(*spans_of(card)) == []
    assert the_card(store) == before
    assert [row["late"] for row in rows(store, trace_parts)] == [True]
    assert list(verify(store, "acme")) == []


def test_parts_of_one_trace_in_one_transaction_make_one_card(store: Store):
    now = dt.datetime.now(dt.UTC)
    portions = [(chat(),), (chat(), chat(3)), (agent(),), (agent(),), (chat(4),)]
    bundles = [bundle for spans in portions for bundle in bundles_of(Received(spans, ()), "acme", now, DETECTORS)[0]]
    assert write(store, bundles, DETECTORS) == [True, True, True, False, True]
    assert len(the_card(store).card.rollout.turns) == 2
    assert [row["late"] for row in sorted(rows(store, trace_parts), key=lambda row: row["entry"])] == [False, False, False, True]
    assert list(verify(store, "acme")) == []


def test_nothing_of_a_trace_is_stored_unredacted(store: Store, send: Callable[..., list[str]]):
    mine = "bob@example.com"
    arguments = json.dumps({"to": mine, "password": "hunter2"})
    tool = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "mail",
        "gen_ai.tool.call.id": "4111111111111111",  # a name that another span points at stays, whatever it looks like
        "gen_ai.tool.call.arguments": arguments,
        "gen_ai.tool.call.result": f"sent to {mine}",
    }
    send(
        agent(name=f"for {mine}", message=mine, resource={"owner": mine}),
        chat(said=f"I write to {mine}"),
        span(3, 200, 10, 1, attributes=tool, events=(Event(mine, START, {mine: mine}),)),
    )
    stored = the_card(store)
    texts = [unpacked(row["body"]) for row in rows(store, trace_parts)] + [repr(stored.card)]
    assert [text for text in texts if mine in text or "hunter2" in text] == []
    assert stored.card.rollout.turns[0].calls[0].arguments == {"to": "[EMAIL]", "password": "[PASSWORD]"}
    assert stored.card.rollout.turns[0].calls[0].call_id == "4111111111111111"
    assert stored.removed
    place = "/spans/0000000000000003/attributes/gen_ai.tool.call.arguments#/password"
    assert [(one.kind, one.length) for one in stored.removed if one.path == place] == [("PASSWORD", 7)]
    assert list(verify(store, "acme")) == []


def test_a_span_of_another_tenant_is_refused_by_name_and_spoils_no_other(store: Store, send: Callable[..., list[str]]):
    foreign = chat(7, attributes={"rft.tenant": "evil"})
    assert send(agent(), foreign, agent(resource={"rft.tenant": "other"}, trace="a" * 32)) == [
        "it says that it is of tenant 'evil'; the key it came with is of 'acme'",
        "it says that it is of tenant 'other'; the key it came with is of 'acme'",
    ]
    assert the_card(store).card.rollout.turns == []


def test_half_a_character_and_a_nul_are_kept_as_a_store_can_hold_them(store: Store, send: Callable[..., list[str]]):
    assert send(agent(), chat(said="NUL \0, half \ud800, for bob@example.com")) == []
    assert [turn.text for turn in the_card(store).card.rollout.turns] == ["NUL \u2400, half \ufffd, for [EMAIL]"]
    assert list(verify(store, "acme")) == []


def test_one_trace_that_cannot_be_redacted_spoils_no_other(store: Store, monkeypatch: pytest.MonkeyPatch):
    def fails(spans: Any, tenant: str, rollout_id: str | None = None) -> Any:
        if spans[0].trace_id == "b" * 32:
            raise RuntimeError("a fault of ours")
        return real(spans, tenant, rollout_id)

    real = module.card_of
    monkeypatch.setattr(module, "card_of", fails)
    now = dt.datetime.now(dt.UTC)
    bundles, rejected = bundles_of(Received((agent(), agent(trace="b" * 32)), ()), "acme", now, DETECTORS)
    assert [bundle.trace_id for bundle in bundles] == [TRACE]
    assert [(each.where, each.why) for each in rejected] == [
        (f"span 0000000000000001 of trace {'b' * 32}", "the trace cannot be read or redacted")
    ]


def test_what_its_recorder_sends_after_the_trace_adds_its_grade_once(
    store: Store, intake: Intake, send: Callable[..., list[str]], make_card: Callable[..., JobCard]
):
    card = make_card("01a1fc43-01da-7111-8111-111111111111", tenant="acme")
    send(agent(attributes={"gen_ai.operation.name": "invoke_agent", "rft.rollout_id": card.rollout_id}))
    assert rows(store, grades) == []
    for _ in range(2):
        assert intake.submit("acme", [RecordedCard(card, dt.datetime.now(dt.UTC))]).known == 1
    assert [(row["rollout_id"], row["grader"], row["reward"]) for row in rows(store, grades)] == [(card.rollout_id, "numeric", 1.0)]
    assert the_card(store).card.rollout.answer == ""  # as its trace had it: what is in the ledger does not change
    assert list(verify(store, "acme")) == []


def test_a_card_and_its_trace_in_one_transaction_keep_the_grades_of_both(store: Store, make_card: Callable[..., JobCard]):
    now = dt.datetime.now(dt.UTC)
    card = make_card("01a1fc43-01da-7111-8111-111111111111", tenant="acme")
    told = {"gen_ai.operation.name": "invoke_agent", "rft.rollout_id": card.rollout_id}
    judged = Event("gen_ai.evaluation.result", START, {"gen_ai.evaluation.name": "judge", "gen_ai.evaluation.score.value": 0.25})
    (bundle,), _ = bundles_of(Received((agent(attributes=told, events=(judged,)),), ()), "acme", now, DETECTORS)
    recorded = RecordedCard(card, now)
    write(store, [bundle, Card(recorded, rows_of(recorded))], DETECTORS)
    assert [(row["grader"], row["reward"]) for row in rows(store, grades)] == [("numeric", 1.0), ("judge", 0.25)]
    assert the_card(store).card.rollout.answer == card.rollout.answer
    assert list(verify(store, "acme")) == []


def test_one_quiet_trace_that_no_store_takes_spoils_no_other_and_is_not_tried_for_ever(
    store: Store, send: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    """A name that nobody made fit: PostgreSQL refuses the NUL, SQLite the number."""
    real = module.card_of

    def spoiled(spans: Any, tenant: str, rollout_id: str | None = None) -> Any:
        read = real(spans, tenant, rollout_id)
        odd = msgspec.structs.replace(read.card, run_id="a\0b", sample_index=2**70)
        return msgspec.structs.replace(read, card=odd) if read.trace_id == "b" * 32 else read

    monkeypatch.setattr(module, "card_of", spoiled)
    for trace in ("a" * 32, "b" * 32, "c" * 32):
        assert send(chat(trace=trace)) == []
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=2)
    assert settle_quiet(store, later, later, DETECTORS) == 3
    assert count(store, job_cards) == 2
    assert {row["carded"] for row in rows(store, traces)} == {True}
    assert settle_quiet(store, later, later, DETECTORS) == 0
    assert list(verify(store, "acme")) == []


def test_names_in_a_trace_that_no_store_could_hold_are_made_to_fit(store: Store, send: Callable[..., list[str]]):
    evaluated = {"gen_ai.evaluation.name": "judge" * 1000, "gen_ai.evaluation.score.value": 1.0}
    told = {"gen_ai.operation.name": "invoke_agent", "rft.run_id": "a\0b", "rft.row_id": "é" * 600, "rft.checkpoint": "x" * 9000}
    assert send(agent(attributes=told, events=(Event("gen_ai.evaluation.result", START, evaluated),))) == []
    card = the_card(store).card
    assert (card.run_id, card.row_id, card.versions.checkpoint) == ("a\u2400b", "é" * 500, "x" * 1000)  # é takes two bytes
    assert card.grade and card.grade.grader.name == "judge" * 200
    assert "x" * 9000 in unpacked(rows(store, trace_parts)[0]["body"])
    assert list(verify(store, "acme")) == []


def test_a_long_trace_costs_no_more_with_every_part(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch):
    """Of a trace whose root has not come: each of the first 20 parts has those before it read, later ones only with a root."""
    read = list[int]()
    real = module._parts_of  # pyright: ignore[reportPrivateUsage]

    def reading(connection: Any, key: Any) -> Any:
        parts = real(connection, key)
        read.append(len(parts))
        return parts

    monkeypatch.setattr(module, "_parts_of", reading)
    now = dt.datetime.now(dt.UTC)
    for number in range(2, 42):
        bundles, _ = bundles_of(Received((chat(number),), ()), "acme", now, DETECTORS)
        assert write(sqlite_store, bundles, DETECTORS) == [True]
    assert read == list(range(1, 21))
    bundles, _ = bundles_of(Received((agent(),), ()), "acme", now, DETECTORS)
    write(sqlite_store, bundles, DETECTORS)
    assert len(the_card(sqlite_store).card.rollout.turns) == 40


def test_who_sends_traces_is_a_source_with_the_lowest_rate_it_told(store: Store, send: Callable[..., list[str]]):
    send(agent(resource={"service.name": "desk"}, trace_state="ot=th:8"), chat(resource={"service.name": "desk"}, trace_state="ot=th:c"))
    (source,) = disclosed(store, "acme")
    assert (source.name, source.sample_rate, source.numbered) == ("OpenTelemetry service desk", 0.25, False)
