"""What is done to the store behind its back is found and named; what the store does itself is not."""

from __future__ import annotations

import datetime as dt
from contextlib import closing

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import ToolResult
from observability import ledger
from observability.chain import SignedRoot
from observability.graders import add_label, append_grades, register
from observability.ingest import StoreRecorder, insert_cards
from observability.merkle import Tree
from observability.proofs import cards_asked_for, case_of
from observability.query import parse
from observability.records import RecordedCard
from observability.search import catch_up
from observability.tables import blobs, card_steps, grades, human_labels, job_cards, search_cards, search_marks
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


def blunt(store, *statements):
    """As somebody does it who knows SQL and nothing of the store."""
    done(store, *map(sa.text, statements))


OF_ONE = f"WHERE rollout_id = '{IDS[1]}'"


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (f"UPDATE job_cards SET kind = x'ff00' {OF_ONE}", "card"),
        (f"UPDATE job_cards SET answer = CAST(x'ff' AS TEXT) {OF_ONE}", "card"),
        (f"UPDATE job_cards SET metadata = x'ff00' {OF_ONE}", "card"),
        (f"UPDATE job_cards SET reference_answer = 'no JSON' {OF_ONE}", "card"),
        (f"UPDATE job_cards SET metadata = '{'[' * 100_000}' {OF_ONE}", "card"),
        (f"UPDATE job_cards SET started_at = 'yesterday' {OF_ONE}", "card"),
        (f"UPDATE card_steps SET position = x'ff00' {OF_ONE} AND position = 1", "card"),
        (f"UPDATE grades SET reward = x'ff00' {OF_ONE}", "grade"),
        (f"UPDATE grades SET graded_at = x'ff00' {OF_ONE}", "grade"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_and_keeps_nothing_else_from_being_verified(sqlite_store, make_card, statement, kind):
    insert_cards(sqlite_store, [RecordedCard(make_card(one), dt.datetime.now(dt.UTC)) for one in IDS])
    blunt(sqlite_store, statement, f"UPDATE job_cards SET checkpoint = 'another' WHERE rollout_id = '{IDS[3]}'")
    assert found(sqlite_store) - {("edited", "credit", IDS[1])} == {("edited", kind, IDS[1]), ("edited", "card", IDS[3])}


def test_a_text_that_cannot_be_unpacked_makes_the_cards_that_name_it_edited(filled):
    done(filled, blobs.update().where(blobs.c.tenant == "local").values(body=b"\0"))
    assert found(filled) == {("edited", kind, one) for one in IDS for kind in ("card", "credit")}
    assert "cannot be read (error)" in next(one.words for one in ledger.verify(filled, "local"))
    assert found(filled, "other") == set()


@pytest.mark.parametrize("column", ["at", "kind", "subject", "facts", "payload", "previous", "hash", "seq"])
@pytest.mark.parametrize("value", ["x'ff00'", "CAST(x'ff' AS TEXT)"])
def test_an_entry_that_cannot_be_read_is_found(sqlite_store, make_card, column, value):
    insert_cards(sqlite_store, [RecordedCard(make_card(one), dt.datetime.now(dt.UTC)) for one in IDS])
    blunt(sqlite_store, f"UPDATE ledger SET {column} = {value} WHERE seq = 4")
    assert found(sqlite_store)


def test_what_stands_in_the_store_for_a_tenant_without_a_ledger_is_found(filled):
    label = {
        "tenant": "ghost",
        "row_id": "row-1",
        "labeller": "ann",
        "label": "pass",
        "note": "",
        "at": dt.datetime.now(dt.UTC),
        "entry": 1,
    }
    done(filled, sa.insert(human_labels).values(label))
    assert ledger.tenants(filled) == ["ghost", "local", "other"]
    assert found(filled, "ghost") == {("inserted", "label", "row-1")}


def test_steps_of_a_card_that_is_not_there_are_found(sqlite_store, make_card):
    insert_cards(sqlite_store, [RecordedCard(make_card(IDS[0], advantage=None), dt.datetime.now(dt.UTC))])
    with closing(sqlite_store.engine.raw_connection()) as connection:
        for statement in ("PRAGMA foreign_keys = OFF", "UPDATE card_steps SET rollout_id = 'nobody'", "PRAGMA foreign_keys = ON"):
            connection.cursor().execute(statement)
    assert found(sqlite_store) == {("edited", "card", IDS[0]), ("inserted", "step", "nobody")}


def test_a_card_without_an_advantage_has_no_entry_of_one(store, make_card):
    insert_cards(
        store, [RecordedCard(make_card(one, advantage=worth), dt.datetime.now(dt.UTC)) for one, worth in ((IDS[0], 1.0), (IDS[1], None))]
    )
    done(store, job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(credit_entry=2))  # that of the other card
    assert found(store) == {("inserted", "credit", IDS[1])}


def test_a_card_that_was_taken_out_of_the_index_of_words_is_found(filled):
    done(filled, search_cards.delete())  # nothing is in it yet, and that is no fault
    assert found(filled) == set()
    catch_up(filled, "local")
    assert found(filled) == set()
    done(filled, search_cards.delete().where(search_cards.c.rollout_id == IDS[1]))
    assert found(filled) == {("not in the index", "card", IDS[1])}


def test_words_that_were_taken_out_of_the_index_are_found(filled):
    catch_up(filled, "local")
    emptied = "INSERT INTO search_words (search_words) VALUES ('delete-all')"  # as FTS5 wants to be told
    blunt(filled, emptied if filled.engine.dialect.name == "sqlite" else "DELETE FROM search_words")
    assert found(filled) == {("not in the index", "card", one) for one in IDS}


def test_a_mark_that_keeps_new_cards_out_of_the_index_is_found(filled):
    catch_up(filled, "local")
    done(filled, search_marks.update().where(search_marks.c.tenant == "local").values(seq=1000))
    assert found(filled) == {("not in the index", "card", "")}


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (f"UPDATE job_cards SET started_at = replace(started_at, ' ', 'T') {OF_ONE}", "card"),
        (f"UPDATE job_cards SET recorded_at = recorded_at || '+00:00' {OF_ONE}", "card"),
        (f'UPDATE job_cards SET metadata = \'{{"difficulty":"zzz",\' || substr(metadata, 2) {OF_ONE}', "card"),
        (f"UPDATE job_cards SET seconds = CAST(CAST(seconds AS TEXT) AS BLOB) {OF_ONE}", "card"),
        (f"UPDATE grades SET passed = 2 {OF_ONE}", "grade"),
        (f"UPDATE grades SET passed = x'01' {OF_ONE}", "grade"),
        (f"UPDATE grades SET reward = CAST(CAST(reward AS TEXT) AS BLOB) {OF_ONE}", "grade"),
    ],
)
def test_a_value_that_reads_the_same_and_is_missed_by_filters_is_an_edit(sqlite_store, make_card, statement, kind):
    insert_cards(sqlite_store, [RecordedCard(make_card(one), dt.datetime.now(dt.UTC)) for one in IDS])
    blunt(sqlite_store, statement.replace(":", "\\:"))
    assert found(sqlite_store) == {("edited", kind, IDS[1])}


# --- a case -------------------------------------------------------------------------------------------------------------


def case(store, question, tenant="local"):
    """With a root over all that the ledger has now; its signature is not what is looked at here."""
    tree = Tree()
    with store.reading() as connection:
        for one in connection.scalars(sa.select(entries.c.hash).where(entries.c.tenant == tenant).order_by(entries.c.seq)):
            tree.append(bytes.fromhex(one))
    root = SignedRoot(tenant=tenant, size=tree.size, root=tree.root().hex(), at="2026-11-22T00:00:00.000000+00:00", key="k", signature="")
    ids = cards_asked_for(store, tenant, parse(question, dt.datetime.now(dt.UTC)))
    return case_of(store, tenant, ids, set(), [root])


def test_a_case_has_every_entry_about_its_cards_and_no_other(filled):
    register(filled, GraderRef("numeric", "2", "beef"), {"type": "numeric"}, "c", "ann")
    made = case(filled, f"id:{IDS[1]}")
    assert [(one.entry.kind, one.entry.subject) for one in made.records] == [
        (kind, IDS[1]) for kind in ("card", "credit", "grade", "grade")
    ]
    assert [(one["version"], one["note"][-25:]) for one in made.graders] == [("2", "not covered by the ledger")]


OF_TWO = grades.c.rollout_id == IDS[1], grades.c.version == "2"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([grades.delete().where(*OF_TWO)], f"grade {IDS[1]}: removed"),
        ([job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(credit_entry=None)], f"credit {IDS[1]}: removed"),
        ([job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(entry=1)], f"card {IDS[1]}: removed"),
        ([job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(advantage=None)], f"credit {IDS[1]}: edited"),
        ([grades.update().where(*OF_TWO).values(entry=10_000)], f"grade {IDS[1]}: removed"),
        ([grades.delete().where(*OF_TWO), entries.update().where(entries.c.seq == 13).values(subject=IDS[0])], "does not give its hash"),
        ([blobs.update().values(body=b"\0")], "cannot be read (error)"),
    ],
)  # fmt: skip
def test_what_was_deleted_or_changed_makes_no_case(filled, changes, why):
    done(filled, *changes)
    with pytest.raises(UserError, match="this case is not as it was recorded") as error:
        case(filled, f"id:{IDS[1]}")
    assert why in str(error.value)
    if "hash" not in why and "read" not in why:
        assert case(filled, f"id:{IDS[0]}").records, "of another card"


def test_what_was_put_in_beside_the_ledger_makes_no_case(filled):
    with filled.reading() as connection:
        real = dict(connection.execute(sa.select(grades).where(grades.c.rollout_id == IDS[0])).mappings().one())
    del real["id"]
    done(filled, sa.insert(grades).values(real | {"reward": 0.0, "entry": 10_000}))
    with pytest.raises(UserError, match=f"grade {IDS[0]}: inserted"):
        case(filled, f"id:{IDS[0]}")


def test_anothers_entry_in_the_place_of_an_advantage_makes_no_case(store, make_card):
    insert_cards(
        store, [RecordedCard(make_card(one, advantage=worth), dt.datetime.now(dt.UTC)) for one, worth in ((IDS[0], 1.0), (IDS[1], None))]
    )
    done(store, job_cards.update().where(job_cards.c.rollout_id == IDS[1]).values(credit_entry=1))
    with pytest.raises(UserError, match=f"credit {IDS[1]}: inserted"):
        case(store, f"id:{IDS[1]}")


def test_a_card_whose_time_cannot_be_read_makes_no_case(sqlite_store, make_card):
    insert_cards(sqlite_store, [RecordedCard(make_card(IDS[0]), dt.datetime.now(dt.UTC))])
    blunt(sqlite_store, "UPDATE job_cards SET started_at = 'yesterday'")
    with pytest.raises(UserError, match="a card that this case may need cannot be read"):
        case(sqlite_store, "")


HOSTILE = st.text(st.characters(), max_size=30) | st.sampled_from(["\0", "\ud800", "a\u2028b", "1e400", '"', "\\u0000", "é" * 2000])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=HOSTILE, value=JSON_VALUES, seconds=st.floats(0, 1e9) | st.integers(0, 9))
def test_whatever_a_card_says_reads_back_as_it_was_entered(store, make_card, words, value, seconds):
    tenant = f"tenant-{len(ledger.tenants(store))}"
    card = make_card(tenant=tenant, reference_answer=value, metadata={"task_type": words, "value": value}, item={"own": value})
    turn = card.rollout.turns[0]
    turn.text, turn.results = words, {key: ToolResult(key, words * 100, None, seconds) for key in turn.results}
    insert_cards(store, [RecordedCard(card, dt.datetime.now(dt.UTC))])
    assert found(store, tenant) == set()
