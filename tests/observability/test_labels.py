"""Labels in the store, on both databases: one a person and rollout, taken back by adding, never by deleting."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from agent_rft.contracts.people import PersonsLabel
from agent_rft.contracts.rollouts import Ending
from observability.graders import (
    add_label,
    give_label_once,
    labelled_scores,
    labels_of,
    rollouts_to_label,
    runs_to_label,
    withdraw_label,
)
from observability.ingest import StoreRecorder
from observability.store import open_store
from observability.tables import human_labels


@pytest.fixture
def cards(store, make_card):
    with StoreRecorder(store) as recorder:
        for number in range(3):
            recorder.record(make_card(f"card-{number}", run_id="run-1", kind="train" if number else "eval"))
        failed = make_card("card-3", run_id="run-1", grade=None)
        failed.rollout.ending = Ending.INFRA_FAILED
        recorder.record(failed)
        recorder.record(make_card("card-4", run_id="run-2", started_at="2026-11-22T04:00:00+00:00"))
    return store


def written(store) -> int:
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(human_labels))


def test_a_person_labels_a_rollout_once_however_they_write_their_name(cards):
    assert give_label_once(cards, "Ann", "card-0", 1.0) is True
    assert give_label_once(cards, " ann ", "card-0", 0.0) is False
    assert give_label_once(cards, "Bob", "card-0", 0.5) is True
    assert labels_of(cards, "run-1") == [PersonsLabel("card-0", "Ann", 1.0), PersonsLabel("card-0", "Bob", 0.5)]
    assert labelled_scores(cards, "run-1") == {"card-0": 0.75}


def test_a_label_that_is_taken_back_counts_no_more_stays_written_and_can_be_given_again(cards):
    assert withdraw_label(cards, "Ann", "card-0") is False
    give_label_once(cards, "Ann", "card-0", 1.0)
    assert withdraw_label(cards, "Ann", "card-0") is True
    assert withdraw_label(cards, "Ann", "card-0") is False
    assert labels_of(cards, "run-1") == [] and labelled_scores(cards, "run-1") == {} and written(cards) == 2
    assert give_label_once(cards, "Ann", "card-0", 0.0) is True
    assert labelled_scores(cards, "run-1") == {"card-0": 0.0}


def test_a_label_by_word_counts_beside_those_by_score(cards):
    add_label(cards, "Ann", rollout_id="card-1", label="pass")
    assert labels_of(cards, "run-1") == [PersonsLabel("card-1", "Ann", 1.0)]
    assert give_label_once(cards, "Ann", "card-1", 0.0) is False


def test_the_same_person_many_times_at_once_leaves_one_label(cards, url):
    ready, kept = threading.Barrier(8), []

    def attempt(number: int) -> None:
        own = open_store(url)
        ready.wait()
        kept.append(give_label_once(own, "Ann", "card-0", number / 8))
        own.close()

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept) == [False] * 7 + [True] and written(cards) == 1


def test_what_can_be_labelled_is_what_ended_and_not_by_our_failure(cards):
    assert sorted(rollouts_to_label(cards, "run-1")) == ["card-0", "card-1", "card-2"]
    assert sorted(rollouts_to_label(cards, "run-1", "train")) == ["card-1", "card-2"]
    assert rollouts_to_label(cards, "run-3") == []
    assert runs_to_label(cards) == [("run-2", 1), ("run-1", 3)]
