"""What a run leaves for a reviewer when it ends."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_rft.commands.lineage import halt_flagged
from agent_rft.contracts.training import Outcome, StepMetrics
from observability import accesses, queue
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.store import open_store

make_card = runpy.run_path(str(Path(__file__).parent / "observability/sample_cards.py"))["make_card"]


@pytest.fixture
def parts(tmp_path: Path):
    """Of a run with two steps of two rollouts, and an evaluation at the second."""
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    for one, kind, step in (("a0", "train", 0), ("a1", "train", 0), ("b0", "train", 1), ("b1", "train", 1), ("v", "eval", 1)):
        card = make_card(one, kind=kind, step=step, run_id="run-1")
        insert_cards(store, [RecordedCard(card, dt.datetime(2026, 11, 21, tzinfo=dt.UTC))])
    yield SimpleNamespace(
        store=store, settings=SimpleNamespace(store=SimpleNamespace(tenant="local")), folder=SimpleNamespace(run_id="run-1")
    )
    store.close()


def outcome(halted: str) -> Outcome:
    return Outcome(checkpoint="c", steps=1, total_steps=9, metrics=(StepMetrics(step=0), StepMetrics(step=1)), halted=halted)


def test_the_rollouts_of_the_step_at_which_a_guard_halted_wait_with_its_words(parts: Any):
    assert list(halt_flagged(parts, outcome(""))) == [] and queue.waiting(parts.store, "local") == []
    assert list(halt_flagged(parts, outcome("the KL is 9.1"))) == []
    waiting = [(one.rollout_id, one.reason, one.why) for one in queue.waiting(parts.store, "local")]
    assert waiting == [("b0", "flag:halted", "the KL is 9.1"), ("b1", "flag:halted", "the KL is 9.1")]
    assert [(one.action, one.cards) for one in accesses.reading(parts.store, "local")] == [("queue flagged", 2)]


def test_a_store_that_has_not_the_cards_costs_the_run_a_line_only(parts: Any):
    parts.folder.run_id = "run-2"
    (line,) = halt_flagged(parts, outcome("the KL is 9.1"))
    assert line.startswith("warning: the cards of step 1,") and "were not flagged" in line
