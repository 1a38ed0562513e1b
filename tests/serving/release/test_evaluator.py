"""Live sessions get their grades: by whom, within which budget, and what a grader that fails leaves."""

from __future__ import annotations

import asyncio
import datetime as dt
import runpy
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from observability import turns
from observability.cards import cards_by_id
from observability.ingest import insert_cards
from observability.records import RecordedCard
from serving.release.evaluator import Budget, Evaluator
from serving.release.leadership import Leadership

make_card = runpy.run_path(str(Path(__file__).parents[2] / "observability" / "sample_cards.py"))["make_card"]


class Rewarding:
    """Gives what it is told to, and counts how often it was asked."""

    waits = True

    def __init__(self, name: str, *rewards: float | None) -> None:
        self.ref = GraderRef(name, "1", f"hash of {name}")
        self.rewards, self.asked = list(rewards), 0

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        self.asked += 1
        reward = self.rewards.pop(0) if len(self.rewards) > 1 else self.rewards[0]
        return Grade(self.ref, reward, errors={} if reward is not None else {"model_grader_server_error": "503"})


@pytest.fixture
def waiting(world) -> Any:
    """A world in which turns r1, r2, ... wait for grades, each with its card."""
    release = world.on_trial()

    def make(count: int, *, carded: bool = True) -> None:
        for number in range(1, count + 1):
            world.later(1)
            world.session(release, "candidate", None, to_grade=True)
            card = make_card(f"r{number}", tenant="acme", kind="production", grade=None)
            if carded:
                rollout = msgspec.structs.replace(card.rollout, rollout_id=f"r{number}")
                insert_cards(world.store, [RecordedCard(msgspec.structs.replace(card, rollout=rollout), world.now)])

    world.make, world.release = make, release
    return world


def evaluator(world: Any, *graders: Any, **budget: int) -> Evaluator:
    return Evaluator(world.store, graders[0], graders[1:], Leadership(world.store), Budget(**budget))


async def looked(one: Evaluator, times: int = 1) -> None:
    for _ in range(times):
        await one.look()
        await one.drained()


def figures(world: Any) -> dict[str, tuple[float | None, float | None]]:
    far = dt.timedelta(days=900)
    closed = turns.close_sessions(world.store, world.release, 1, lambda state, _: state or {}, world.now + far)
    return {one.session: (one.reward, one.holdout) for one in closed}


async def test_a_turn_gets_the_reward_and_the_mean_of_the_holdouts_and_the_card_every_grade(waiting):
    waiting.make(1)
    trained, first, second = Rewarding("trained", 0.5), Rewarding("first", 1.0), Rewarding("second", 0.5)
    await looked(evaluator(waiting, trained, first, second))
    (stored,) = cards_by_id(waiting.store, ["r1"], "acme")
    assert [(dated.grade.grader.name, dated.grade.reward) for dated in stored.grades] == [("first", 1.0), ("second", 0.5), ("trained", 0.5)]
    assert figures(waiting) == {"s1": (0.5, 0.75)}  # (1 + 0.5) / 2


async def test_killed_between_card_and_turn_nobody_is_asked_twice(waiting, monkeypatch):
    waiting.make(1)
    grader = Rewarding("trained", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr("observability.turns.graded", lambda *_: 1 / 0)
        await looked(evaluator(waiting, grader))
    await looked(evaluator(waiting, grader))
    assert grader.asked == 1 and figures(waiting) == {"s1": (0.5, None)}


async def test_a_grader_that_fails_is_asked_again_and_given_up_in_the_end(waiting, monkeypatch):
    monkeypatch.setattr("serving.release.evaluator.PAUSE_SECONDS", 0.0)
    waiting.make(1)
    flaky = Rewarding("trained", None, None, 0.5)
    await looked(evaluator(waiting, flaky), 2)
    assert turns.grading(waiting.store, waiting.release.id).waiting == 1
    (stored,) = cards_by_id(waiting.store, ["r1"], "acme")
    assert stored.grades == (), "a failed grader is no score"
    broken = Rewarding("broken", None)
    await looked(evaluator(waiting, broken), 6)
    assert broken.asked == 5
    assert turns.grading(waiting.store, waiting.release.id) == turns.Grading(waiting=0, graded=0, without=1)
    (stored,) = cards_by_id(waiting.store, ["r1"], "acme")
    assert [dated.grade.errors for dated in stored.grades] == [{"model_grader_server_error": "503"}], "the reason is on the card"


async def test_a_card_that_is_not_there_yet_is_waited_for(waiting, monkeypatch):
    monkeypatch.setattr("serving.release.evaluator.PAUSE_SECONDS", 0.0)
    waiting.make(1, carded=False)
    one = evaluator(waiting, Rewarding("trained", 1.0))
    await looked(one, 4)
    assert turns.grading(waiting.store, waiting.release.id).waiting == 1
    await looked(one)
    assert turns.grading(waiting.store, waiting.release.id).without == 1


async def test_so_many_a_minute_and_the_oldest_go_without(waiting):
    waiting.make(6)
    grader = Rewarding("trained", 1.0)
    one = evaluator(waiting, grader, per_minute=3, in_flight=2, most_waiting=5)
    await looked(one, 5)
    assert grader.asked == 3
    assert turns.grading(waiting.store, waiting.release.id) == turns.Grading(waiting=2, graded=3, without=1)
    assert {session for session, (reward, _) in figures(waiting).items() if reward is not None} == {"s6", "s5", "s4"}


async def test_no_more_at_a_time_than_the_budget_has(waiting):
    waiting.make(4)
    held, most, now = threading.Semaphore(0), [0], [0]

    class Slow(Rewarding):
        def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
            now[0] += 1
            most[0] = max(most[0], now[0])
            held.acquire(timeout=5)
            now[0] -= 1
            return super().grade(item, sample)

    one = evaluator(waiting, Slow("trained", 1.0), in_flight=2)
    give_up = time.monotonic() + 20
    while now[0] < 2 and time.monotonic() < give_up:  # each begins in a thread of its own
        await one.look()
        await asyncio.sleep(0.02)
    await one.look()
    held.release(4)
    await looked(one, 3)
    assert most[0] == 2 and turns.grading(waiting.store, waiting.release.id).graded == 4
