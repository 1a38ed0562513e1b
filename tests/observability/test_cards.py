"""Cards are found by id or by how it begins, counted and listed."""

from __future__ import annotations

import datetime as dt

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from observability.cards import RunCard, cards_of_run, count_cards, find_card, recent_cards, state_of_run
from observability.graders import append_grades
from observability.ingest import StoreRecorder


@pytest.fixture
def filled(store, make_card):
    """Three training cards of one run and an evaluation card of another, one a minute."""
    with StoreRecorder(store) as recorder:
        for minute, rollout_id in enumerate(["019a-aa", "019a-ab", "019a-a"]):
            recorder.record(make_card(rollout_id, kind="train", run_id="run-1", started_at=f"2026-11-21T04:0{minute}:00+00:00"))
        recorder.record(make_card("Z-1", kind="eval", run_id="run-2", started_at="2026-11-21T04:03:00+00:00", grade=None))
    return store


def test_a_card_is_found_by_its_id_or_the_beginning_of_it(filled):
    assert find_card(filled, "019a-ab").card.rollout_id == "019a-ab"
    assert find_card(filled, "Z").card.rollout_id == "Z-1"
    assert find_card(filled, "019a-a").card.rollout_id == "019a-a"  # exact, though others begin so


def test_no_card_or_several_is_said_with_the_nearest(filled):
    with pytest.raises(UserError, match=r"several cards' ids begin with '019': 019a-a, 019a-aa, 019a-ab\n.*give more"):
        find_card(filled, "019")
    with pytest.raises(UserError, match=r"no card's id begins with '019a-b'\n.*did you mean '019a-a"):
        find_card(filled, "019a-b")
    with pytest.raises(UserError, match="begins with 'z-1'"):  # ids are compared exactly on both databases
        find_card(filled, "z-1")
    with pytest.raises(UserError, match="begins with '%'"):
        find_card(filled, "%")


def test_an_empty_store_says_so(store):
    assert count_cards(store) == 0
    with pytest.raises(UserError, match="holds no card yet"):
        find_card(store, "any")


def test_cards_are_counted_by_run_and_kind(filled):
    assert [count_cards(filled), count_cards(filled, run_id="run-1"), count_cards(filled, kind="eval")] == [4, 3, 1]
    assert count_cards(filled, run_id="run-1", kind="eval") == 0


def test_a_runs_cards_are_told_as_they_were_started_with_what_part_of_it_they_are(filled):
    assert cards_of_run(filled, "run-1") == [RunCard(one, "train", 120, "tiny/120") for one in ("019a-aa", "019a-ab", "019a-a")]
    assert [one.kind for one in cards_of_run(filled, "run-2")] == ["eval"] and cards_of_run(filled, "run-3") == []


def test_the_state_of_a_run_changes_with_its_cards_and_grades_and_with_no_other_runs(filled, make_card):
    before = state_of_run(filled, "run-1")
    append_grades(filled, [("Z-1", Grade(GraderRef("numeric", "2", "h2"), 1.0))])
    assert state_of_run(filled, "run-1") == before == (3, before[1], 0)
    append_grades(filled, [("019a-aa", Grade(GraderRef("numeric", "2", "h2"), 1.0))])
    graded = state_of_run(filled, "run-1")
    assert graded[0] == 3 and graded[1] > before[1]
    with StoreRecorder(filled) as recorder:
        recorder.record(make_card("019a-b", kind="train", run_id="run-1"))
    assert state_of_run(filled, "run-1")[0] == 4 and state_of_run(filled, "run-3") == (0, 0, 0)


def test_the_newest_cards_come_first(filled):
    lines = recent_cards(filled, limit=2)
    assert [(line.rollout_id, line.reward) for line in lines] == [("Z-1", None), ("019a-a", 1.0)]
    assert lines[0].started_at == dt.datetime(2026, 11, 21, 4, 3, tzinfo=dt.UTC)
    assert [line.rollout_id for line in recent_cards(filled, kind="train")] == ["019a-a", "019a-ab", "019a-aa"]


def test_a_second_grade_is_added_and_the_first_stays(filled):
    mended = Grade(GraderRef("numeric", "2", "ffff"), 0.5, False)
    append_grades(filled, [("019a-aa", mended)])
    found = find_card(filled, "019a-aa")
    assert [(dated.grade.grader.version, dated.grade.reward) for dated in found.grades] == [("1", 1.0), ("2", 0.5)]
    assert found.card.grade == mended
    assert next(line.reward for line in recent_cards(filled) if line.rollout_id == "019a-aa") == 0.5
