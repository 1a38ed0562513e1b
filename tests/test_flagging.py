"""What guards point at waits for a reviewer before the run is over, and never holds it up."""

from __future__ import annotations

import runpy
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent_rft.commands import flagging as flags
from agent_rft.commands.flagging import flagging
from agent_rft.commands.lineage import findings_as_facts, halt_flagged, pointed_at, speaks_again
from agent_rft.contracts.guards import Finding
from agent_rft.contracts.training import Outcome, StepMetrics
from observability import queue
from observability.ingest import StoreRecorder
from observability.store import Store, open_store

make_card = runpy.run_path(str(Path(__file__).parent / "observability/sample_cards.py"))["make_card"]


def finding(guard: str, *rollouts: str, action: Any = "warn") -> Finding:
    return Finding(guard=guard, step=7, figure=0.3, limit=0.1, action=action, what="seen", cure="look", rollouts=rollouts)


@pytest.fixture
def parts(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    with StoreRecorder(store) as recorder:
        yield SimpleNamespace(
            store=store,
            recorder=recorder,
            settings=SimpleNamespace(store=SimpleNamespace(tenant="local")),
            folder=SimpleNamespace(run_id="run-1"),
        )
    store.close()


def waiting(store: Store) -> set[tuple[str, str, str]]:
    return {(one.rollout_id, one.reason, one.why) for one in queue.waiting(store, "local")}


def test_findings_and_the_random_sample_wait_while_the_run_goes_on(parts: Any):
    line = StepMetrics(step=7, findings=[finding("lucky_guess", "a"), finding("kl_slope")], audit=("b",))
    with flagging(parts) as flag:
        for one in ("a", "b", "c"):
            parts.recorder.record(make_card(one, run_id="run-1"))
        flag(line)  # before their cards are durable
        flag(StepMetrics(step=8))
        until = time.monotonic() + 20
        while len(waiting(parts.store)) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        found = waiting(parts.store)  # the run is not over yet
    assert found == {("a", "flag:lucky_guess", "step 7: seen"), ("b", "flag:random_audit", "drawn at random from step 7")}


def test_a_store_that_is_slow_holds_no_step_up(parts: Any):
    held = threading.Event()
    parts.recorder = SimpleNamespace(flush=lambda: held.wait(20))
    with flagging(parts) as flag:
        began = time.monotonic()
        flag(StepMetrics(step=7, audit=("a",)))
        assert time.monotonic() - began < 10
        held.set()


def test_a_store_that_hangs_at_the_end_is_waited_for_so_long_and_the_user_is_told(parts: Any, monkeypatch: Any, capsys: Any):
    held = threading.Event()
    parts.recorder = SimpleNamespace(flush=lambda: held.wait(20))
    monkeypatch.setattr(flags, "LAST_FLAGS_SECONDS", 0.2)
    with flagging(parts) as flag:
        flag(StepMetrics(step=7, audit=("a",)))
    held.set()
    assert "what guards found last is in metrics.jsonl, and in no review queue" in " ".join(capsys.readouterr().out.split())


def test_a_card_that_is_not_there_costs_the_run_a_line_only(parts: Any, capsys: pytest.CaptureFixture[str]):
    with flagging(parts) as flag:
        flag(StepMetrics(step=7, audit=("nobody",)))
    assert "warning: what guards found at step 7 was not put into the review queue: no card has the id nobody" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_card_that_another_process_is_still_putting_down_is_flagged_once_it_is_there(parts: Any, capsys: pytest.CaptureFixture[str]):
    """Environments of a large engine record for themselves, and are at it when the step is over."""
    with flagging(parts) as flag:
        flag(StepMetrics(step=7, audit=("late",)))
        flag(StepMetrics(step=8))
        time.sleep(0.3)
        assert waiting(parts.store) == set()
        parts.recorder.record(make_card("late", run_id="run-1"))
        parts.recorder.flush()
        flag(StepMetrics(step=9))
    assert waiting(parts.store) == {("late", "flag:random_audit", "drawn at random from step 7")}
    assert "warning" not in capsys.readouterr().out


def outcome(*findings: Finding) -> Outcome:
    return Outcome(
        checkpoint="c", steps=7, total_steps=60, metrics=(StepMetrics(step=7, val_reward=0.5, findings=list(findings)),), halted="seen"
    )


def test_a_halt_points_at_the_rollouts_of_the_guard_that_ended_the_run():
    ended = outcome(
        finding("lucky_guess", "w"), finding("holdout_divergence", "a", "b", action="stop"), finding("infra", "f", action="stop")
    )
    assert pointed_at(ended) == ("a", "b", "f")
    assert pointed_at(ended, but="infra") == ("a", "b"), "a tool that fails is mended, and not read about"


def test_where_the_guard_points_at_some_the_others_of_the_step_are_left_alone(parts: Any):
    parts.recorder.record(make_card("a", run_id="run-1", kind="eval", step=7))
    parts.recorder.flush()
    assert list(halt_flagged(parts, outcome(finding("holdout_divergence", "a", action="stop")))) == []
    assert waiting(parts.store) == set()
    assert list(halt_flagged(parts, outcome(finding("train_val_gap", action="stop")))) == []
    assert waiting(parts.store) == {("a", "flag:halted", "seen")}, "a validation ended the run: its cards are eval"


def test_only_a_guard_of_how_the_reward_was_come_by_speaks_again_when_the_run_goes_on():
    assert speaks_again(outcome(finding("train_val_gap"), finding("lucky_guess", action="stop"))) == "lucky_guess"
    assert speaks_again(outcome(finding("infra", action="stop"))) == "", "what was mended is forgotten"
    assert speaks_again(msgspec.structs.replace(outcome(finding("lucky_guess", action="stop")), halted="")) == ""


def test_every_finding_stands_in_the_facts_of_what_the_run_leaves():
    assert findings_as_facts(outcome(finding("lucky_guess")).metrics) == {"guards": ["step 7, lucky_guess 0.3 (limit 0.1, warn): seen"]}
    assert findings_as_facts(outcome().metrics) == {}
