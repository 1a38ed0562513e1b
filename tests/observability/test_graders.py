"""The register of graders: immutable, append-only, one active version a name, on both databases."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from observability.cards import card_ids, cards_by_id, find_card
from observability.graders import (
    activate,
    active_version,
    add_approval,
    add_label,
    add_report,
    append_grades,
    approvals,
    find_version,
    grader_versions_of,
    labelled_scores,
    newest_reports,
    register,
)
from observability.ingest import StoreRecorder
from observability.store import open_store
from observability.tables import grader_states, grader_versions

ONE, TWO = GraderRef("numeric", "1", "aaaa"), GraderRef("numeric", "2", "bbbb")
SPEC = {"type": "numeric", "name": "numeric", "tolerance": 0.02}


@pytest.fixture
def cards(store, make_card):
    with StoreRecorder(store) as recorder:
        for number in range(3):
            recorder.record(make_card(f"card-{number}", run_id="run-1" if number < 2 else "run-2"))
    return store


def test_a_version_is_what_it_was_registered_as(store):
    assert register(store, TWO, SPEC, "0.1.0-abc", "ann") is True
    found = find_version(store, "numeric@2")
    assert (found.ref, found.spec, found.code, found.created_by, found.state) == (TWO, SPEC, "0.1.0-abc", "ann", "registered")
    assert found.created_at.tzinfo is not None


def test_another_hash_under_the_same_version_is_refused_with_both(store):
    register(store, TWO, SPEC, "c", "ann")
    with pytest.raises(UserError, match=r"numeric@2 is registered with hash bbbb; this one's is cccc"):
        register(store, GraderRef("numeric", "2", "cccc"), SPEC, "c", "bob")
    assert register(store, TWO, {}, "d", "bob") is False  # the same again changes nothing
    assert [(one.ref, one.spec, one.created_by) for one in grader_versions_of(store)] == [(TWO, SPEC, "ann")]


def test_a_version_that_is_not_there_is_answered_with_the_nearest(store):
    with pytest.raises(UserError, match="register it first"):
        find_version(store, "numeric@2")
    register(store, TWO, SPEC, "c", "ann")
    with pytest.raises(UserError, match=r"did you mean 'numeric@2'\?"):
        find_version(store, "numeric@3")


def test_one_version_of_a_name_is_active_and_what_was_stays_written(store):
    other = GraderRef("style", "1", "dddd")
    for ref in (ONE, TWO, other):
        register(store, ref, SPEC, "c", "ann")
    assert active_version(store, "numeric") is None
    for ref in (ONE, other, TWO, TWO):
        activate(store, ref, "bob")
    assert {f"{one.ref.name}@{one.ref.version}": one.state for one in grader_versions_of(store)} == {
        "numeric@1": "retired",
        "numeric@2": "active",
        "style@1": "active",
    }
    with store.reading() as connection:
        written = connection.execute(sa.select(grader_states).where(grader_states.c.name == "numeric").order_by(grader_states.c.id)).all()
    assert [(row.version, row.state, row.by) for row in written] == [
        ("1", "registered", "ann"), ("2", "registered", "ann"), ("1", "active", "bob"), ("1", "retired", "bob"), ("2", "active", "bob"),
    ]  # fmt: skip


def test_activating_at_the_same_time_leaves_one_active(store, url):
    refs = [GraderRef("numeric", str(number), f"h{number}") for number in range(6)]
    for ref in refs:
        register(store, ref, SPEC, "c", "ann")
    threads = [threading.Thread(target=activate, args=(open_store(url), ref, "bob")) for ref in refs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.state for one in grader_versions_of(store)) == ["active"] + ["retired"] * 5


def test_registering_at_the_same_time_leaves_one_hash(store, url):
    refused = []

    def attempt(number: int) -> None:
        try:
            register(open_store(url), GraderRef("numeric", "2", f"hash{number}"), SPEC, "c", "ann")
        except UserError as error:
            refused.append(error.what)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5 and len(grader_versions_of(store)) == 1


def test_of_each_kind_of_report_the_newest_counts(store):
    register(store, TWO, SPEC, "c", "ann")
    add_report(store, TWO, "cases", False, "3 of 4 cases right", {"cases": 4, "wrong": ["c:2: …"]})
    add_report(store, TWO, "regrade", True, "nothing changes", {"changed": []})
    add_report(store, TWO, "cases", True, "4 of 4 cases right", {"cases": 4, "wrong": []})
    found = newest_reports(store, TWO)
    assert {kind: (one.passed, one.why) for kind, one in found.items()} == {
        "cases": (True, "4 of 4 cases right"),
        "regrade": (True, "nothing changes"),
    }
    assert found["cases"].figures == {"cases": 4, "wrong": []}
    assert newest_reports(store, ONE) == {}


def test_reports_and_approvals_are_of_registered_versions_only(store):
    for add in (lambda: add_report(store, TWO, "cases", True, "", {}), lambda: add_approval(store, TWO, "bob")):
        with pytest.raises(sa.exc.IntegrityError):
            add()


def test_approvals_add_up(store):
    register(store, TWO, SPEC, "c", "ann")
    add_approval(store, TWO, "bob")
    add_approval(store, TWO, "eve")
    given = approvals(store, TWO)
    assert [who for who, _ in given] == ["bob", "eve"] and given[0][1] < given[1][1]


def test_a_version_that_has_a_history_cannot_be_deleted(store):
    register(store, TWO, SPEC, "c", "ann")
    with pytest.raises(sa.exc.IntegrityError), store.writing() as connection:
        connection.execute(sa.delete(grader_versions))


# --- grades and labels --------------------------------------------------------------------------------------------------


def test_grades_are_added_and_the_first_stays(cards, make_card):
    again = Grade(TWO, 0.5, False, {"why": "within tolerance"})
    failed = Grade(TWO, None, errors={"other_error": "away"})
    append_grades(cards, [("card-0", again), ("card-1", failed)])
    append_grades(cards, [])
    stored = find_card(cards, "card-0")
    assert [dated.grade for dated in stored.grades] == [make_card().grade, again] and stored.card.grade == again
    assert find_card(cards, "card-1").card.grade == failed
    assert len(find_card(cards, "card-2").grades) == 1


def test_a_tenants_grade_does_not_keep_another_from_theirs_on_a_card_of_the_same_id(store, make_card):
    with StoreRecorder(store) as recorder:
        for tenant in ("acme", "rival"):
            recorder.record(make_card("shared", tenant=tenant, grade=None))
    grade = Grade(ONE, 0.5, False)
    assert [append_grades(store, [("shared", grade)], tenant) for tenant in ("rival", "acme", "rival", "acme")] == [1, 1, 0, 0]
    with pytest.raises(UserError, match="several tenants"):
        append_grades(store, [("shared", grade)])


def test_of_two_regrades_at_once_one_adds_the_grade_and_a_failure_is_asked_again(cards, url):
    again, failed = Grade(TWO, 0.5, False), Grade(TWO, None, errors={"other_error": "away"})
    assert append_grades(cards, [("card-1", failed)]) == 1
    added, together = [], threading.Barrier(4)

    def regrade() -> None:
        store = open_store(url)
        together.wait(10)
        added.append(append_grades(store, [("card-0", again), ("card-1", again)]))

    threads = [threading.Thread(target=regrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added) == [0, 0, 0, 2]
    assert [dated.grade for dated in find_card(cards, "card-0").grades][1:] == [again]
    assert [dated.grade for dated in find_card(cards, "card-1").grades][1:] == [failed, again]
    assert append_grades(cards, [("card-0", failed), ("card-0", Grade(ONE, 1.0, True))]) == 1  # another grader's is another grade


def test_cards_come_in_the_order_of_their_ids_in_batches(cards, monkeypatch):
    monkeypatch.setattr("observability.cards.FETCHED", 2)
    found = list(cards_by_id(cards, ["card-2", "card-0", "none", "card-1"]))
    assert [one.card.rollout_id for one in found] == ["card-2", "card-0", "card-1"]
    assert found[0] == find_card(cards, "card-2")
    assert (card_ids(cards, "run-1"), card_ids(cards, "run-1", "train")) == (["card-0", "card-1"], [])


def test_of_a_labellers_labels_the_newest_counts_and_labellers_are_averaged(cards):
    add_label(cards, "ann", rollout_id="card-0", label="fail", note="at first sight")
    add_label(cards, "ann", rollout_id="card-0", label="pass")
    add_label(cards, "bob", rollout_id="card-0", score=0.5)
    add_label(cards, "bob", rollout_id="card-2", score=0.0)
    add_label(cards, "bob", row_id="row-1", label="pass")
    assert labelled_scores(cards, "run-1") == {"card-0": 0.75}  # (1 + 0.5) / 2
    assert labelled_scores(cards, "run-2") == {"card-2": 0.0}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"label": "pass"}, "about a rollout or about a row"),
        ({"rollout_id": "card-0", "row_id": "r", "label": "pass"}, "about a rollout or about a row"),
        ({"rollout_id": "card-0", "label": "good"}, "neither pass nor fail"),
        ({"rollout_id": "card-0"}, "neither pass nor fail"),
        ({"rollout_id": "card-0", "score": 1.5}, "not from 0 to 1"),
        ({"rollout_id": "card-9", "label": "pass"}, "no card has the id card-9"),
    ],
)
def test_a_label_that_says_nothing_is_refused(cards, what, says):
    with pytest.raises(UserError, match=says):
        add_label(cards, "ann", **what)
    assert labelled_scores(cards, "run-1") == {}
