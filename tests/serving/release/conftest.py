"""A service with a live agent and another one on trial, and the turns of its sessions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy, Release, Turn
from observability.registry import register_agent, report
from observability.releases import events
from observability.store import Store, open_store
from observability.turns import add_turns
from serving.release import acts

TENANT = "acme"
NOW = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
"""Events are dated by the real clock, and what comes after them by the world's, which has to be ahead."""
RULES: dict[str, Any] = {
    "idle_seconds": 10,
    "shadow_sessions": 2,
    "sessions_per_step": 2,
    "steps": (0.5,),
    "margin": 0.5,
    "rate_margin": 0.5,
    "promote_alpha": 0.5,
}
"""So few sessions that a test sees all of it."""


class World:
    """One service of a store, and a clock that the test moves."""

    def __init__(self, store: Store) -> None:
        self.store, self.now, self._number = store, NOW, 0

    def later(self, seconds: float) -> dt.datetime:
        self.now += dt.timedelta(seconds=seconds)
        return self.now

    def on_trial(self, **rules: Any) -> Release:
        base, better = (register_agent(self.store, TENANT, Agent(checkpoint=name, tool_set="t"), name) for name in ("base", "better"))
        for agent in (base, better):
            for kind in ("evaluation", "holdout", "safety"):
                report(self.store, TENANT, agent, kind, passed=True, figures={"reward": 0.7, "regressed": 0.0}, by="trainer")
        acts.begin_first(self.store, "ann", TENANT, "desk", base, Policy())
        return acts.begin(self.store, "ann", TENANT, "desk", better, Policy(**{**RULES, **rules}))

    def session(self, release: Release, arm: str, reward: float | None = 1.0, *, shadow: bool = False, **told: Any) -> None:
        """One turn of it, just now."""
        self._number += 1
        given: dict[str, Any] = {"seconds": 1.0, "failed": False, "tool_calls": 1, "tool_failures": 0}
        if reward is not None:
            given |= {"reward": reward, "holdout": reward, "to_grade": True, "graded_at": self.now}
        named = {"rollout_id": f"r{self._number}", "session": f"s{self._number}", "arm": arm, "shadow": shadow, "at": self.now}
        add_turns(self.store, [Turn(**{"tenant": TENANT, "release": release.id, **named, **given, **told})])

    def acts(self, release: Release) -> list[tuple[str, str, float]]:
        return [(event.act, event.stage, event.share) for event in events(self.store, TENANT, release.id)]


@pytest.fixture
def world_of() -> Callable[[Store], World]:
    return World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield World(store)
    store.close()
