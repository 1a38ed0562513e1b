"""A tenant's own patterns remove in that tenant's words only, whichever way they come."""

from __future__ import annotations

import datetime as dt
import pickle
from collections.abc import Callable

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import JobCard
from observability import states
from observability.cards import stored_cards
from observability.graders import append_grades
from observability.ingest import StoreRecorder
from observability.intake import Intake
from observability.otlp.spans import Received, Span
from observability.records import RecordedCard
from observability.redaction.detectors import Detectors, detectors_of
from observability.store import Store
from observability.tables import grades, job_cards, trace_parts
from observability.texts import unpacked
from observability.traces import settle_quiet

NOW = dt.datetime(2026, 11, 21, 5, tzinfo=dt.UTC)
EVERY, OWN = {"CASE": "C-[0-9]{6}"}, {"acme": {"STAFF": "E-[0-9]{6}"}}
SAID = "E-123456 asks for C-654321, at ann@example.org"
ACMES, BETAS = "[STAFF] asks for [CASE], at [EMAIL]", "E-123456 asks for [CASE], at [EMAIL]"
TENANTS = [("acme", ACMES), ("beta", BETAS)]
MakeCard = Callable[..., JobCard]


@pytest.fixture
def detectors() -> Detectors:
    return detectors_of(True, EVERY, OWN)


def cards_of(store: Store, tenant: str) -> list[JobCard]:
    with store.reading() as connection:
        ids = connection.scalars(sa.select(job_cards.c.rollout_id).where(job_cards.c.tenant == tenant)).all()
        return [one.card for one in stored_cards(connection, ids, tenant)]


def test_in_cards_that_come_over_the_network(store: Store, detectors: Detectors, make_card: MakeCard):
    intake = Intake(store, detectors)
    for tenant, _ in TENANTS:
        intake.submit(tenant, [RecordedCard(make_card(f"card-{tenant}", tenant=tenant, metadata={"note": SAID}), NOW)])
    intake.close()
    assert [cards_of(store, tenant)[0].metadata["note"] for tenant, _ in TENANTS] == [ACMES, BETAS]


def test_in_cards_of_a_recorder_in_the_process_and_of_one_sent_to_another(store: Store, make_card: MakeCard):
    with StoreRecorder(store, patterns=EVERY, tenant_patterns=OWN) as recorder:
        sent = pickle.dumps(recorder)
        recorder.record(make_card("card-acme", tenant="acme", metadata={"note": SAID}))
    with pickle.loads(sent) as there:
        there.record(make_card("card-beta", tenant="beta", metadata={"note": SAID}))
        there.record(make_card("card-acme-too", tenant="acme", metadata={"note": SAID}))
    assert [card.metadata["note"] for card in cards_of(store, "acme")] == [ACMES, ACMES]
    assert [card.metadata["note"] for card in cards_of(store, "beta")] == [BETAS]


def spans(number: int, parent: int) -> Received:
    """One of a trace; its ids are those of the other tenant's."""
    told = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "analyst", "gen_ai.output.messages": SAID}
    start, above = 1_795_233_612_250_000_000, f"{parent:016x}" if parent else ""
    trace, mine, end = "5b8efff798038103d269b633813fc60c", f"{number:016x}", start + 9_000_000
    return Received((Span(trace_id=trace, span_id=mine, parent_id=above, start_ns=start, end_ns=end, attributes=told),), ())


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "gone quiet"])
def test_in_spans_and_in_the_cards_that_are_made_of_them(store: Store, detectors: Detectors, whole: bool):
    intake = Intake(store, detectors)
    for tenant, _ in TENANTS:
        assert intake.submit_spans(tenant, spans(2, 1)) == ()
        if whole:
            assert intake.submit_spans(tenant, spans(1, 0)) == ()
    intake.close()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
    assert settle_quiet(store, later, later, detectors) == (0 if whole else 2)
    with store.reading() as connection:
        bodies = {row.tenant: unpacked(row.body) for row in connection.execute(sa.select(trace_parts))}
    for tenant, said in TENANTS:
        [card] = cards_of(store, tenant)
        written = msgspec.json.encode(card).decode()
        assert said in written and SAID not in written
        assert said in str(bodies[tenant]) and SAID not in str(bodies[tenant])


def test_in_what_is_said_of_a_job_and_in_a_later_grade(store: Store, detectors: Detectors, make_card: MakeCard):
    given = Grade(GraderRef("judge", "1", "h9"), 0.5, False, errors={"figure": SAID})
    with StoreRecorder(store) as recorder:
        for tenant, _ in TENANTS:
            recorder.record(make_card(f"card-{tenant}", tenant=tenant))
    for tenant, said in TENANTS:
        assert states.note(store, "agent", tenant, f"job-{tenant}", "blocked", SAID, detectors)
        assert [one.why for one in states.notes_of(store, tenant, f"job-{tenant}")] == [said]
        assert append_grades(store, [(f"card-{tenant}", given)], tenant, detectors) == 1
        with store.reading() as connection:
            mine = sa.select(grades).where(grades.c.hash == "h9", grades.c.tenant == tenant)
            [row] = connection.execute(mine).mappings()
        assert said in str(dict(row)) and SAID not in str(dict(row))


def test_every_fault_of_every_tenant_is_told_at_once_with_its_key():
    bad = {"acme": {"STAFF": "(a", "CASE": "b"}, "beta": {"lower": "a", "STAFF": "E-[0-9]{6}"}}
    with pytest.raises(FaultsFound) as found:
        detectors_of(True, {"CASE": "C-[0-9]{6}", "ALL": "x*"}, bad)
    assert [fault.where for fault in found.value.faults] == [
        "store.patterns.ALL",
        "store.tenant_patterns.acme.STAFF",
        "store.tenant_patterns.acme.CASE",
        "store.tenant_patterns.beta.lower",
    ]
    assert "CASE stands in store.patterns too" in str(found.value)


def test_nothing_looks_where_redaction_is_turned_off():
    assert [detectors_of(False, EVERY, OWN).of(tenant) for tenant, _ in TENANTS] == [(), ()]
