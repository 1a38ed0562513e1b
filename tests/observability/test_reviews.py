"""What people say of a card stays as they said it, is in the ledger, and ends when the card is sealed."""

from __future__ import annotations

import datetime as dt
import threading

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending
from observability import ledger, queue, reviews, states, views
from observability.artifacts import register
from observability.dossier import Artifact, NotThere, Sealed
from observability.dossiers import dossier_of
from observability.graders import add_label, append_grades, give_label_once
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.tables import card_states, change_outcomes, change_requests, human_labels
from observability.tables import reviews as reviews_table

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
GRADE = Grade(GraderRef("numeric", "2", "h2"), 0.0, False)


@pytest.fixture
def filled(store, make_card):
    """`one` and `two` of tenant local, `one` of another."""
    cards = [make_card("one"), make_card("two"), make_card("one", tenant="other")]
    insert_cards(store, [RecordedCard(card, NOW) for card in cards])
    return store


def test_a_reviewers_words_stand_to_the_letter(filled):
    said = "ann@example.org says: \ud83d wrong \0 table, it should be 13.1%"
    reviews.add(filled, "ann", "local", "one", "coach", said, 2)
    found = reviews.reviews_of(filled, "local", "one")
    kept = said.replace("\ud83d", "\ufffd").replace("\0", "\u2400")  # as every text of the store: what no database holds
    assert [(one.verdict, one.note, one.position, one.by) for one in found] == [("coach", kept, 2, "ann")]
    assert reviews.reviews_of(filled, "other", "one") == ()
    assert list(ledger.verify(filled, "local")) == []


@pytest.mark.parametrize("table", [reviews_table, change_requests, change_outcomes])
def test_whatever_is_changed_behind_its_back_is_found(filled, table):
    reviews.add(filled, "ann", "local", "one", "accept", "fine")
    reviews.settle(filled, "bob", "local", reviews.request_change(filled, "ann", "local", "one", "prompt", "shorter").id, "done")
    assert list(ledger.verify(filled, "local")) == []
    with filled.writing() as connection:
        connection.execute(sa.update(table).values(by="eve"))
    assert len(list(ledger.verify(filled, "local"))) == 1


def test_a_verdict_and_the_change_that_it_asks_for_stand_or_fall_together(filled):
    review, change = reviews.add_with_change(filled, "ann", "local", "one", "coach", "the reference is wrong", None, "dataset")
    assert (review.verdict, change.target, change.wanted) == ("coach", "dataset", "the reference is wrong")
    assert reviews.reviews_of(filled, "local", "one") == (review,) and reviews.changes_of(filled, "local", "one") == (change,)
    with pytest.raises(FaultsFound) as found:
        reviews.add_with_change(filled, "ann", "local", "one", "acept", "x", None, "datset")
    assert [fault.where for fault in found.value.faults] == ["verdict", "target"]
    with filled.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE change_outcomes"))
        connection.execute(sa.text("DROP TABLE change_requests"))
    with pytest.raises(sa.exc.DBAPIError):
        reviews.add_with_change(filled, "ann", "local", "one", "reject", "again", None, "dataset")
    assert len(reviews.reviews_of(filled, "local", "one")) == 1


def test_every_fault_of_a_review_is_told_at_once(filled):
    with pytest.raises(FaultsFound) as found:
        reviews.add(filled, "ann", "local", "one", "acept", "x" * 10_001)
    assert [(fault.where, fault.cure) for fault in found.value.faults] == [
        ("verdict", "did you mean 'accept'?"),
        ("note", "at most 10,000"),
    ]
    for wrong in (-1, 7, 2**70):  # 2 messages, 2 calls and 2 results: steps 0 to 5
        with pytest.raises(FaultsFound, match="the card has no step"):
            reviews.add(filled, "ann", "local", "one", "accept", position=wrong)
    with pytest.raises(FaultsFound, match="without words helps nobody"):
        reviews.add(filled, "ann", "local", "one", "coach", "  ")
    with pytest.raises(NotThere):
        reviews.add(filled, "ann", "nobody", "one", "accept")
    assert reviews.reviews_of(filled, "local", "one") == ()


def test_a_change_request_is_about_the_cards_row_and_open_until_it_is_settled(filled):
    asked = reviews.request_change(filled, "ann", "local", "one", "dataset", "the reference is wrong")
    other = reviews.request_change(filled, "ann", "local", "two", "prompt", "say which quarter")
    assert asked.row_id == "numerical-0412"
    assert [one.id for one in reviews.changes(filled, "local", target="dataset")] == [asked.id]
    assert [one.id for one in reviews.changes(filled, "local", after=asked.id)] == [other.id]
    declined = reviews.settle(filled, "bob", "local", asked.id, "declined", "it is right")
    assert declined.outcome and (declined.outcome.outcome, declined.outcome.by) == ("declined", "bob")
    reviews.settle(filled, "bob", "local", asked.id, "done", "mended after all")
    assert [one.id for one in reviews.changes(filled, "local", open_only=True)] == [other.id]
    (now,) = reviews.changes_of(filled, "local", "one")
    assert now.outcome and now.outcome.how == "mended after all"
    for request in (asked.id + 99, 2**70, -1):
        with pytest.raises(NotThere):
            reviews.settle(filled, "bob", "local", request, "done")
    with pytest.raises(NotThere):
        reviews.settle(filled, "bob", "other", asked.id, "done")


def test_a_sealed_card_takes_nothing_more_and_another_tenants_of_its_id_does(filled):
    states.seal(filled, "ann", "local", "one", "audit of November")
    for refused in (
        lambda: reviews.add(filled, "ann", "local", "one", "accept"),
        lambda: reviews.request_change(filled, "ann", "local", "one", "prompt", "x"),
        lambda: append_grades(filled, [("two", GRADE), ("one", GRADE)], "local"),
        lambda: states.seal(filled, "ann", "local", "one"),
        lambda: states.note(filled, "agent", "local", "one", "blocked"),
    ):
        with pytest.raises(Sealed, match="one is sealed"):
            refused()
    states.seal(filled, "ann", "local", "two")
    for refused in (lambda: add_label(filled, "ann", rollout_id="two", score=1.0), lambda: give_label_once(filled, "ann", "two", 1.0)):
        with pytest.raises(Sealed, match="two is sealed"):
            refused()
    with filled.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(human_labels)) == 0
    assert append_grades(filled, [("one", GRADE)], "other") == 1
    assert [
        len(known.stored.grades) for known in (dossier_of(filled, "local", "two"), dossier_of(filled, "other", "one")) if known.stored
    ] == [1, 2]
    assert list(ledger.verify(filled, "local")) == [] and states.sealed_of(filled, ["one", "two", "three"]) == ["one", "two"]


def test_a_programs_words_about_a_job_are_redacted_and_a_reviewers_are_not(filled):
    assert states.note(filled, "agent", "local", "new", "blocked", "ask ann@example.org")
    assert not states.note(filled, "agent", "local", "new", "blocked", "ask ann@example.org")  # sent again
    states.seal(filled, "ann", "local", "one", "ask ann@example.org")
    assert [one.why for one in states.notes_of(filled, "local", "new")] == ["ask [EMAIL]"]
    assert [one.why for one in states.notes_of(filled, "local", "one")] == ["ask ann@example.org"]


@pytest.mark.parametrize(("table", "column"), [(card_states, "why"), (change_outcomes, "how")])
def test_words_of_states_and_outcomes_that_were_changed_are_found(filled, table, column):
    reviews.settle(filled, "bob", "local", reviews.request_change(filled, "ann", "local", "one", "prompt", "shorter").id, "done", "so")
    states.seal(filled, "ann", "local", "one", "so")
    with filled.writing() as connection:
        connection.execute(sa.update(table).values({column: "otherwise"}))
    (found,) = ledger.verify(filled, "local")
    assert (found.what, found.subject) == ("edited", "one") and "words" in found.words


def test_of_a_review_and_a_seal_at_once_the_review_is_never_the_later_one(filled):
    ready = threading.Barrier(2)

    def judge():
        ready.wait()
        try:
            for _ in range(20):
                reviews.add(filled, "ann", "local", "one", "accept")
        except Sealed:
            pass

    def seal():
        ready.wait()
        states.seal(filled, "bob", "local", "one")

    both = [threading.Thread(target=judge), threading.Thread(target=seal)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    known = dossier_of(filled, "local", "one")
    with filled.reading() as connection:
        sealed_at = connection.scalar(sa.text("SELECT entry FROM card_states"))
    assert known.state == "sealed" and all(one.entry < sealed_at for one in known.reviews)


def test_a_job_goes_from_opened_to_sealed(store, make_card):
    def now() -> str:
        return dossier_of(store, "local", "job").state

    with pytest.raises(NotThere):
        now()
    for state in ("opened", "planned", "in_progress", "needs_human"):
        assert states.note(store, "agent", "local", "job", state) and now() == state
    assert not states.note(store, "agent", "local", "job", "needs_human")
    card = make_card("job", grade=None)
    insert_cards(store, [RecordedCard(card, NOW)])
    assert now() == "submitted"
    with pytest.raises(UserError, match="has answered already"):
        states.note(store, "agent", "local", "job", "blocked")
    append_grades(store, [("job", GRADE)])
    assert now() == "graded"
    reviews.add(store, "ann", "local", "job", "note", "I look at it tomorrow")
    assert now() == "graded"
    reviews.add(store, "ann", "local", "job", "reject")
    assert now() == "reviewed"
    states.seal(store, "eve", "local", "job")
    assert now() == "sealed"
    unfinished = make_card("unfinished", grade=None)
    unfinished.rollout.ending = None
    infra = make_card("infra", grade=None)
    infra.rollout.ending = Ending.INFRA_FAILED
    insert_cards(store, [RecordedCard(unfinished, NOW), RecordedCard(infra, NOW)])
    assert dossier_of(store, "local", "unfinished").state == "in_progress"
    states.note(store, "agent", "local", "unfinished", "blocked", "no key")
    assert dossier_of(store, "local", "unfinished").state == "blocked"
    assert dossier_of(store, "local", "infra").state == "submitted"
    with pytest.raises(FaultsFound, match="none that can be noted"):
        states.note(store, "agent", "local", "unfinished", "graded")


def test_a_tenants_own_view_of_the_store_is_enough_for_all_of_it_and_shows_no_other(filled):
    mine, other = filled.of("local"), filled.of("other")
    states.note(mine, "agent", "local", "soon", "planned")
    reviews.add(mine, "ann", "local", "one", "coach", "shorter")
    asked = reviews.request_change(mine, "ann", "local", "one", "prompt", "shorter")
    reviews.settle(mine, "ann", "local", asked.id, "done")
    views.save(mine, "ann", "local", "v", "grade<1")
    views.save(mine, "ann", "local", "v", "grade<0.5")
    register(mine, "local", [Artifact(kind="dataset", id="d1", name="research")])
    append_grades(mine, [("one", GRADE)], "local")
    add_label(mine, "ann", rollout_id="two", score=0.0)
    assert queue.fill(mine, "local", queue.Policy(at_least=1)).put == {"audit": 1, "low_grade": 1, "disagreement": 1}
    reviews.add(mine, "ann", "local", "one", "reject")
    append_grades(mine, [("one", Grade(GraderRef("numeric", "3", "h3"), 0.0, False))], "local")
    assert queue.fill(mine, "local", queue.Policy(shares={})).put == {"low_grade": 1}  # it waits again
    assert queue.flag(mine, "local", ["two"], "guard", "odd") == 1
    states.seal(mine, "ann", "local", "one")
    views.remove(mine, "local", "v")
    assert dossier_of(mine, "local", "one").state == "sealed"
    for seen in (dossier_of(other, "other", "one"), dossier_of(filled, "other", "one")):
        assert (seen.state, seen.reviews, seen.changes, seen.queue, seen.states) == ("graded", (), (), (), ())
        assert not any(one.known for one in seen.lineage)
    for nothing in (reviews.changes, queue.waiting, queue.progress, views.listed):
        assert nothing(other, "other") == [] == nothing(other, "local")
    with pytest.raises(NotThere):
        dossier_of(other, "local", "two")
    assert list(ledger.verify(filled, "local")) == []
