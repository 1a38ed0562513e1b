"""What waits for a reviewer: drawn so that nobody can steer it and anybody can check it, or for a reason that stands beside it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json

import pytest
import sqlalchemy as sa

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.grades import Grade, GraderRef
from observability import accesses, queue, reviews, states
from observability.access import ROLES, Caller
from observability.dossier import NotThere
from observability.graders import add_label, append_grades, withdraw_label
from observability.ingest import insert_cards
from observability.ledger import verify
from observability.queue import Policy, fill, fill_for, flag, flag_for, flags_of_run, progress, undrawn, waiting
from observability.records import RecordedCard
from observability.tables import ledger, queue_fills, review_queue

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
NONE = Policy(shares={}, low_kinds=(), apart=9.0)
OPS = Caller("local", "ops", "operator", ROLES["operator"], "k1")
LOW = Grade(GraderRef("numeric", "2", "h2"), 0.25, False)


def put_in(store, make_card, ids, **changed):
    insert_cards(store, [RecordedCard(make_card(one, **changed), NOW) for one in ids])


def waits(store, reason=None):
    return [(one.rollout_id, one.reason) for one in waiting(store, "local", 1000, reason)]


def missing(store):
    with store.reading() as connection:
        return [one.subject for one in undrawn(connection, "local")]


def test_the_sample_is_the_one_that_anybody_draws_from_the_ledger(store, make_card):
    put_in(store, make_card, [f"p{number:03}" for number in range(60)], kind="production")
    put_in(store, make_card, [f"t{number:03}" for number in range(60)], kind="train")
    filled = fill(store, "local", Policy(shares={"production": 0.2}, at_least=0, low_kinds=()), NOW)
    with store.reading() as connection:
        entries = connection.execute(sa.select(ledger.c.subject, ledger.c.hash).where(ledger.c.kind == "card", ledger.c.tenant == "local"))
        by_hand = {
            one
            for one, hashed in entries
            if one[0] == "p" and int(hashlib.sha256(f"audit\nlocal\n{one}\n{hashed}".encode()).hexdigest()[:16], 16) < 0.2 * 2**64
        }
    assert {one for one, _ in waits(store)} == by_hand and filled.put == {"audit": len(by_hand)}
    assert missing(store) == []
    taken_out = sorted(by_hand)[0]
    with store.writing() as connection:
        connection.execute(sa.delete(review_queue).where(review_queue.c.rollout_id == taken_out))
    assert missing(store) == [taken_out]


def test_the_same_cards_are_not_drawn_twice_the_same_since_the_store_salts_them(tmp_path, make_card):
    from observability.store import open_store

    drawn = []
    for name in ("a", "b"):
        store = open_store(f"sqlite:///{tmp_path}/{name}.db")
        put_in(store, make_card, [f"p{number:03}" for number in range(60)], kind="production")
        fill(store, "local", Policy(shares={"production": 0.3}, at_least=0), NOW)
        drawn.append(waits(store))
        store.close()
    assert drawn[0] != drawn[1]


def test_however_little_came_some_of_it_is_looked_at_and_a_second_filling_adds_nothing(store, make_card):
    put_in(store, make_card, [f"e{number}" for number in range(8)], kind="eval")
    policy = Policy(shares={"eval": 0.000001}, at_least=3, low_kinds=())
    assert fill(store, "local", policy, NOW).put == {"audit": 3}
    assert fill(store, "local", policy, NOW).put == {}
    assert "among the 3 lowest of entries 1 to 24" in waiting(store, "local")[0].why  # a card, its credit and its grade each
    put_in(store, make_card, ["e8"], kind="eval")
    assert fill(store, "local", policy, NOW).put == {"audit": 1}
    assert missing(store) == []
    assert fill(store, "nobody", policy, NOW) == (0, 0, {})


def test_a_low_newest_grade_waits_and_one_that_was_raised_does_not(store, make_card):
    put_in(store, make_card, ["raised", "low", "training"], kind="production", grade=LOW)
    put_in(store, make_card, ["trained"], kind="train", grade=LOW)
    append_grades(
        store, [("raised", Grade(GraderRef("numeric", "3", "h3"), 1.0, True)), ("training", Grade(GraderRef("n", "3", "h4"), None, None))]
    )
    assert fill(store, "local", Policy(shares={}, below=0.5), NOW).put == {"low_grade": 1}
    assert waiting(store, "local")[0].why == "numeric@2 gave 0.25, which is below 0.5"
    assert waits(store) == [("low", "low_grade")]


def test_of_many_low_grades_the_lowest_are_read(store, make_card):
    for number in range(6):
        put_in(store, make_card, [f"c{number}"], kind="production", grade=Grade(GraderRef("n", "1", "h"), 0.4 - number / 20, False))
    assert fill(store, "local", Policy(shares={}, most_low=2), NOW).put == {"low_grade": 2}
    assert waits(store) == [("c4", "low_grade"), ("c5", "low_grade")]


def test_who_was_judged_waits_no_more_until_a_new_low_grade_comes(store, make_card):
    put_in(store, make_card, ["one", "two"], kind="production", grade=LOW)
    policy = Policy(shares={}, below=0.5)
    fill(store, "local", policy, NOW)
    reviews.add(store, "ann", "local", "one", "note", "look again")
    assert waits(store) == [("one", "low_grade"), ("two", "low_grade")]
    reviews.add(store, "ann", "local", "one", "accept")
    states.seal(store, "ann", "local", "two")
    assert waits(store) == [] and progress(store, "local") == [("low_grade", 0, 2)]
    append_grades(store, [("one", Grade(GraderRef("numeric", "3", "h3"), 0.0, False))])
    assert fill(store, "local", policy, NOW).put == {"low_grade": 1}
    assert [one.why for one in waiting(store, "local")] == ["numeric@3 gave 0, which is below 0.5"]
    assert progress(store, "local") == [("low_grade", 1, 1)]


def test_a_person_and_a_grader_who_disagree_call_for_another_person(store, make_card):
    put_in(store, make_card, ["agreed", "apart", "withdrawn"], kind="eval")  # all graded 1.0
    for one, score in (("agreed", 0.75), ("apart", 0.25), ("withdrawn", 0.0)):
        add_label(store, "ann", rollout_id=one, score=score)
    withdraw_label(store, "ann", "withdrawn")
    assert fill(store, "local", Policy(shares={}, low_kinds=()), NOW).put == {"disagreement": 1}
    assert [(one.rollout_id, one.why) for one in waiting(store, "local")] == [("apart", "numeric@1 gave 1, ann 0.25")]


def test_flags_come_first_and_stay_on_the_card(store, make_card):
    put_in(store, make_card, ["one", "two"], kind="production", grade=LOW)
    fill(store, "local", Policy(shares={}), NOW)
    assert flag(store, "local", ["two"], "length", "512 tokens of one word", NOW) == 1
    assert flag(store, "local", ["two"], "length", "again", NOW) == 0
    assert waits(store) == [("two", "flag:length"), ("one", "low_grade"), ("two", "low_grade")]
    assert waits(store, "flag:length") == [("two", "flag:length")]
    reviews.add(store, "ann", "local", "two", "accept")
    assert waits(store) == [("one", "low_grade")]
    assert [one.reason for one in queue.reasons_of(store, "local", "two")] == ["flag:length", "low_grade"]
    with pytest.raises(NotThere, match="missing"):
        flag(store, "local", ["one", "missing"], "length", "", NOW)
    with pytest.raises(FaultsFound):
        flag(store, "local", ["one"], "", "", NOW)


def test_a_rule_that_makes_no_sense_is_refused_whole(store):
    with pytest.raises(FaultsFound) as found:
        fill(store, "local", Policy(shares={"evil": 0.1, "eval": 2.0}, at_least=-1, low_kinds=("\0",)), NOW)
    assert [fault.where for fault in found.value.faults] == ["shares", "low_kinds", "share of eval", "at_least"]
    assert "did you mean 'eval'?" in str(found.value)


@pytest.mark.parametrize(
    ("less", "where"),
    [
        ({"shares": {"production": 0.0, "prior": 0.5}}, "share of production"),
        ({"at_least": 0}, "at_least"),
        ({"most_low": 0}, "most_low"),
        ({"below": float("nan")}, "below"),
        ({"below": 0.25}, "below"),
        ({"apart": 2.0}, "apart"),
        ({"apart": float("inf")}, "apart"),
        ({"low_kinds": ("eval",)}, "low_kinds"),
    ],
)
def test_nobody_has_the_queue_filled_with_less_than_the_standing_rule_takes(sqlite_store, make_card, less, where):
    put_in(sqlite_store, make_card, ["one"], kind="production", grade=LOW)
    with pytest.raises(FaultsFound) as found:
        fill_for(sqlite_store, OPS, Policy(**less), NOW)
    assert [fault.where for fault in found.value.faults] == [where]
    assert accesses.reading(sqlite_store, "local") == [] and waits(sqlite_store) == []


def test_a_rule_may_take_more_and_stands_in_the_access_log(store, make_card):
    put_in(store, make_card, ["one"], kind="production", grade=LOW)
    put_in(store, make_card, [f"p{number}" for number in range(9)], kind="prior")
    assert fill_for(store, OPS, Policy(shares={"prior": 1.0}), NOW).put["low_grade"] == 1
    assert {f"p{number}" for number in range(9)} <= {one for one, _ in waits(store, "audit")}
    (line,) = accesses.reading(store, "local")
    rule = json.loads(line.subject)
    assert (line.by, line.action) == ("ops", "queue filled")
    assert rule["shares"] == {"production": 0.01, "eval": 0.01, "train": 0.001, "prior": 1.0}
    assert fill_for(store, OPS, now=NOW).put == {}  # its own line in the ledger is nothing to be looked at
    assert list(verify(store, "local")) == []


@pytest.mark.parametrize(
    "change",
    [
        sa.update(queue_fills).values(since=1),
        sa.update(queue_fills).values(until=10**15),
        sa.update(queue_fills).values(policy={"shares": "none"}),
        sa.update(queue_fills).values(policy={"shares": {}, "never": 1}),
    ],
)
def test_a_filling_that_was_changed_is_told_and_not_drawn_for_ever(store, make_card, change):
    put_in(store, make_card, ["one"], kind="production")
    fill(store, "local", now=NOW)
    assert list(verify(store, "local")) == []
    with store.writing() as connection:
        connection.execute(change)
    assert {(one.what, one.kind) for one in verify(store, "local")} == {("removed", "review queue")}


def test_who_flags_stands_in_the_access_log(store, make_card):
    put_in(store, make_card, ["one", "two"])
    assert flag_for(store, OPS, ["one", "two"], "length", "512 tokens of one word") == 2
    assert [(one.by, one.action, one.subject, one.cards) for one in accesses.reading(store, "local", "two")] == [
        ("ops", "queue flagged", "length", 2)
    ]
    with pytest.raises(FaultsFound) as found:
        flag_for(store, OPS, ["one"], "", "x" * 10_001)
    assert [fault.where for fault in found.value.faults] == ["why", "name"]


def test_another_tenants_cards_are_in_another_queue(store, make_card):
    put_in(store, make_card, ["one"], kind="production", grade=LOW)
    put_in(store, make_card, ["one"], kind="production", grade=LOW, tenant="other")
    fill(store, "other", Policy(shares={}), NOW)
    assert waits(store) == [] and [one.rollout_id for one in waiting(store.of("other"), "other")] == ["one"]
    assert waiting(store.of("local"), "other") == []


def test_the_flags_of_a_run_are_told_judged_or_not_and_no_other_runs(store, make_card):
    put_in(store, make_card, ["a1", "a2"], run_id="run-a")
    put_in(store, make_card, ["b1"], run_id="run-b")
    flag(store, "local", ["a1", "b1"], "kl", "too far", NOW)
    flag(store, "local", ["a1"], "copied", "from the prompt", NOW + dt.timedelta(seconds=1))
    fill(store, "local", Policy(shares={"eval": 1.0}, at_least=0, low_kinds=()), NOW)
    reviews.add(store, "ann", "local", "a1", "reject")
    found = flags_of_run(store, "local", "run-a")
    assert {one: [(flag.reason, flag.why) for flag in given] for one, given in found.items()} == {
        "a1": [("flag:kl", "too far"), ("flag:copied", "from the prompt")]
    }
    assert flags_of_run(store, "other", "run-a") == {}
