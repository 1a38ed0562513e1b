"""What is registered can be released, compared and kept by any store; all that cannot is refused, and says where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.rollouts import Limits
from observability.registry import register_agent, report, reports_of
from observability.store import Store, open_store


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield store
    store.close()


@pytest.mark.parametrize(
    ("figures", "where"),
    [
        ({"reward": "high"}, ["reward"]),
        ({"reward": True}, ["reward"]),
        ({"reward": float("nan")}, ["reward"]),
        ({"reward": 7}, ["reward"]),
        ({"regressed": None, "reward": 0.5}, ["regressed"]),
        ({"rows": [0.5]}, ["rows"]),
        ({"rows": {"a": 0.5, "b": "good"}, "reward": -1}, ["reward", "rows.b"]),
    ],
)
def test_a_report_that_cannot_be_compared_is_refused(kept, figures, where):
    agent = register_agent(kept, "acme", Agent(checkpoint="c", tool_set="t"), "a")
    with pytest.raises(FaultsFound) as found:
        report(kept, "acme", agent, "evaluation", passed=True, figures=figures, by="ann")
    assert [fault.where for fault in found.value.faults] == where
    assert reports_of(kept, "acme", agent) == []


def test_figures_that_nothing_is_decided_on_may_be_anything(kept):
    agent = register_agent(kept, "acme", Agent(checkpoint="c", tool_set="t"), "a")
    figures = {"reward": 1, "rows": {"a": 0}, "note": "seen by hand"}
    assert report(kept, "acme", agent, "evaluation", passed=True, figures=figures, by="ann").figures == figures


@pytest.mark.parametrize(
    ("parts", "where"),
    [
        ({"checkpoint": "a\0b"}, "checkpoint"),
        ({"tool_set": "\ud800"}, "tool_set"),
        ({"system_prompt": "say \0"}, "system_prompt"),
        ({"limits": Limits(max_turns=0)}, "limits.max_turns"),
        ({"limits": Limits(max_tool_calls=-1)}, "limits.max_tool_calls"),
        ({"limits": Limits(max_turn_tokens=10**30)}, "limits.max_turn_tokens"),
        ({"limits": Limits(max_seconds=float("inf"))}, "limits.max_seconds"),
    ],
)
def test_an_agent_that_no_store_keeps_or_that_could_do_nothing_is_refused(kept, parts, where):
    whole: dict[str, Any] = {"checkpoint": "c", "tool_set": "t"}
    with pytest.raises(FaultsFound) as found:
        register_agent(kept, "acme", Agent(**{**whole, **parts}), "a")
    assert [fault.where for fault in found.value.faults] == [where]


def test_an_agent_may_have_no_tools(kept):
    assert register_agent(kept, "acme", Agent(checkpoint="c", tool_set="t", limits=Limits(max_tool_calls=0)), "a")
