"""Cards of a service that was trained, lived through a week, and is asked something now. A plain module, for runpy."""

from __future__ import annotations

import datetime as dt
import random
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.releases import Policy
from agent_rft.contracts.rollouts import ToolResult, Turn
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.registry import register_agent, report
from observability.store import Store
from serving.release import acts

make_card = runpy.run_path(str(Path(__file__).parents[2] / "observability" / "sample_cards.py"))["make_card"]
TENANT, SERVICE, CHECKPOINT, RUN = "acme", "research", "run-1/step-60", "run-1"
NOW = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)  # a Wednesday
LAST_WEEK, THIS_WEEK = dt.datetime(2026, 11, 18, tzinfo=dt.UTC), dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
REF = GraderRef("numeric", "1", "a1b2c3d4e5f60718")
SUBJECTS = ("Henderson Hotels", "Morgan Mining", "Castle Cable", "Orchid Optics", "Summit Steel")


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of the time is like."""

    words: int = 20
    """Of its answer, about."""
    reads: float = 0.5
    """How often it reads after it has searched."""
    good: float = 0.7
    """The mean of its grades."""
    asks: str = "What was the operating margin of"


def run_of(name: str, at: dt.datetime, rng: random.Random, habits: Habits, *, kind: str, **more: Any) -> JobCard:
    names = ["search", *(["read"] if rng.random() < habits.reads else [])]
    calls = [ToolCall(f"c{place}", one, {"query": "x"}) for place, one in enumerate(names)]
    found = {call.call_id: {call.call_id: ToolResult(call.call_id, "13.4%", None, 0.1)} for call in calls}
    turns = [Turn("I look.", sampled_tokens=10, calls=(call,), results=found[call.call_id]) for call in calls]
    answer = " ".join(["margin"] * max(1, round(rng.gauss(habits.words, 5))))
    turns.append(Turn(answer, context_tokens=20, sampled_tokens=len(answer) // 5))
    prompt = f"{habits.asks} {rng.choice(SUBJECTS)}{' in ' + rng.choice(('2024', '2025')) if rng.random() < 0.5 else ''}?"
    opening = (Message("system", "You answer questions."), Message("user", prompt))
    rollout = msgspec.structs.replace(make_card().rollout, rollout_id=name, opening=opening, turns=turns, answer=answer, seconds=2.0)
    reward = float(rng.random() < habits.good)
    cost = Cost(context_tokens=100, sampled_tokens=sum(turn.sampled_tokens for turn in turns), tool_calls=len(calls), seconds=2.0)
    versions = Versions(code="0.1.0", checkpoint=CHECKPOINT, tool_set="t1", grader="numeric/1")
    given = {"rollout": rollout, "cost": cost, "versions": versions, "grade": Grade(REF, reward, reward > 0.5, {})}
    return make_card(name, tenant=TENANT, kind=kind, started_at=at.isoformat(), **(given | more))


def trained(store: Store, number: int = 200, seed: int = 1) -> None:
    """The evaluation of the run that the weights come from."""
    rng, at = random.Random(seed), dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    add(store, [run_of(f"eval-{place:04}", at, rng, Habits(), kind="eval", run_id=RUN) for place in range(number)])


def lived(store: Store, name: str, since: dt.datetime, number: int, habits: Habits, seed: int = 2, *, arm: str = "live") -> None:
    """Production runs of the service, each of a session of its own."""
    rng = random.Random(seed)
    add(
        store,
        [
            run_of(
                f"{name}-{place:04}", since + dt.timedelta(minutes=place), rng, habits, kind="production",
                run_id=SERVICE, row_id=f"{name}-s{place}", metadata={"service": SERVICE, "session": f"{name}-s{place}", "arm": arm},
            )
            for place in range(number)
        ],
    )  # fmt: skip


def add(store: Store, cards: Sequence[JobCard]) -> None:
    insert_cards(store, [RecordedCard(card, NOW) for card in cards])


def first_release(store: Store) -> str:
    agent = register_agent(store, TENANT, Agent(checkpoint=CHECKPOINT, tool_set="t1"), "tuned at step 60", RUN)
    report(store, TENANT, agent, "safety", passed=True, figures={}, by="trainer")
    acts.begin_first(store, "ann", TENANT, SERVICE, agent, Policy())
    return agent
