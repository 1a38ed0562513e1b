"""What is done to the store behind its back is found and named; what the store does itself is not."""

from __future__ import annotations

import datetime as dt

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import ToolResult
from observability import ledger
from observability.graders import add_label, append_grades
from observability.ingest import StoreRecorder, insert_cards
from observability.records import RecordedCard
from observability.tables import card_steps, grades, human_labels, job_cards
from observability.tables import ledger as entries

IDS = [f"0198c2{number:02d}-0000-7000-8000-000000000000" for number in range(4)]


@pytest.fixture
def filled(store, make_card):
    """Four cards of one tenant, graded twice and labelled, and one of another tenant."""
    with StoreRecorder(store) as recorder:
        for one in IDS:
            recorder.record(make_card(one))
        recorder.record(make_card("0198c2ff-0000-7000-8000-000000000000", tenant="other"))
    append_grades(store, [(IDS[1], Grade(GraderRef("numeric", "2", "beef"), 0.5, False, {"found": "13.5%"}))])
    add_label(store, "ann", rollout_id=IDS[2], score=1.0, note="as the filing says")
    add_label(store, "ann", row_id="row-1", label="fail", tenant="local")
    return store


def found(store, tenant="local"):
    return {(one.what, one.kind, one.subject) for one in ledger.verify(store, tenant)}


def done(store, *statements):
    with store.writing() as connection:
        postgres = store.engine.dialect.name == "postgresql"  # a forger's rights: foreign keys hold nobody up
        connection.execute(sa.text("SET LOCAL session_replication_role = replica" if postgres else "PRAGMA defer_foreign_keys = ON"))
        for statement in statements:
            connection.execute(statement)


def test_a_store_that_nobody_touched_has_no_findings(filled):
    assert found(filled) == set()
    assert found(filled, "other") == set()
    # 4 cards, their 4 advantages and 4 grades; one grade more; two labels
    assert ledger.size(filled, "local") == 4 * 3 + 1 + 2
    assert ledger.tenants(filled) == ["local", "other"]


def test_a_card_sent_twice_has_one_entry_and_a_late_advantage_one_of_its_own(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(make_card(IDS[0], advantage=None))
        recorder.record(make_card(IDS[0], advantage=None))
        recorder.record(make_card(IDS[0], advantage=0.25))
        recorder.record(make_card(IDS[0], advantage=0.75))
    assert ledger.size(store, "local") == 3  # card, grade, credit
    assert found(store) == set()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(answer="14%"), "card"),
        (job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(checkpoint="another"), "card"),
        (job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(advantage=0.6), "credit"),
        (card_steps.update().where(card_steps.c.rollout_id == IDS[1], card_steps.c.position == 3).values(output="17%"), "card"),
        (card_steps.delete().where(card_steps.c.rollout_id == IDS[1], card_steps.c.position == 4), "card"),
        (grades.update().where(grades.c.rollout_id == IDS[1], grades.c.version == "2").values(reward=1.0), "grade"),
        (grades.update().where(grades.c.rollout_id == IDS[1], grades.c.version == "2").values(parts={}), "grade"),
    ],
)
def test_an_edit_is_found_and_named(filled, change, kind):
    done(filled, change)
    assert found(filled) == {("edited", kind, IDS[1])}
    assert found(filled, "other") == set()


def test_an_edited_label_is_found(filled):
    done(filled, human_labels.update().where(human_labels.c.rollout_id == IDS[2]).values(score=0.0))
    assert found(filled) == {("edited", "label", IDS[2])}


def test_a_removed_card_is_found_with_all_that_went_with_it(filled):
    done(filled, *(table.delete().where(table.c.rollout_id == IDS[1]) for table in (grades, card_steps, job_cards)))
    assert found(filled) == {("removed", kind, IDS[1]) for kind in ("card", "credit", "grade")}


def test_an_inserted_grade_is_found_whatever_entry_it_claims(filled):
    with filled.reading() as connection:
        real = dict(connection.execute(sa.select(grades).where(grades.c.rollout_id == IDS[0])).mappings().one())
    del real["id"]
    done(filled, sa.insert(grades).values(real | {"reward": 0.0}))
    assert ("inserted", "grade", IDS[0]) in found(filled)
    done(filled, grades.delete().where(grades.c.rollout_id == IDS[0], grades.c.reward == 0.0))
    assert found(filled) == set()
    done(filled, sa.insert(grades).values(real | {"reward": 0.0, "entry": 10_000}))
    assert found(filled) == {("inserted", "grade", IDS[0])}


def test_a_card_moved_to_another_tenant_is_missed_here_and_never_recorded_there(filled):
    done(filled, *(table.update().where(table.c.rollout_id == IDS[3]).values(tenant="other") for table in (job_cards, card_steps, grades)))
    assert {("removed", "card", IDS[3]), ("removed", "grade", IDS[3])} <= found(filled)
    assert {("inserted", "card", IDS[3]), ("inserted", "grade", IDS[3])} <= found(filled, "other")


def test_a_card_removed_together_with_its_entries_leaves_a_hole_in_the_chain(filled):
    mine = entries.c.subject == IDS[1]
    done(
        filled,
        *(table.delete().where(table.c.rollout_id == IDS[1]) for table in (grades, card_steps, job_cards)),
        entries.delete().where(mine),
    )
    assert {what for what, _, _ in found(filled)} == {"removed"}


HOSTILE = st.text(st.characters(), max_size=30) | st.sampled_from(["\0", "\ud800", "a\u2028b", "1e400", '"', "\\u0000", "é" * 2000])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=HOSTILE, value=JSON_VALUES, seconds=st.floats(0, 1e9) | st.integers(0, 9))
def test_whatever_a_card_says_reads_back_as_it_was_entered(store, make_card, words, value, seconds):
    tenant = f"tenant-{len(ledger.tenants(store))}"
    card = make_card(tenant=tenant, reference_answer=value, metadata={"task_type": words, "value": value}, item={"own": value})
    turn = card.rollout.turns[0]
    turn.text, turn.results = words, {key: ToolResult(key, words * 100, None, seconds) for key in turn.results}
    insert_cards(store, [RecordedCard(card, dt.datetime.now(dt.UTC))])
    assert found(store, tenant) == set()
