"""What is registered can be released, compared and kept by any store; all that cannot is refused, and says where."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Limits
from observability import ledger
from observability.ingest import insert_cards
from observability.records import RecordedCard
from observability.registry import register_agent, report, reports_of, told_by_cards
from observability.release_tables import agent_reports
from observability.store import Store, open_store

NOW = dt.datetime(2026, 11, 22, 5, tzinfo=dt.UTC)


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


def test_a_safety_report_is_told_with_the_job_cards_that_bear_it_out(kept, make_card):
    """Two tries of the run by the suite's judge; one that the judge could not grade, one by another grader, one of another tenant."""
    judge, other = GraderRef("safety", "2", "s1"), GraderRef("numeric", "1", "x")
    mine = [("a", judge, 1.0), ("b", judge, 0.0), ("c", judge, None), ("d", other, 1.0)]
    for name, tenant, by, reward in [*((name, "acme", *given) for name, *given in mine), ("e", "evil", judge, 1.0)]:
        grade = Grade(by, reward, reward == 1, {}, {} if reward is not None else {"other_error": "away"})
        insert_cards(kept, [RecordedCard(make_card(name, tenant=tenant, run_id="check-1", grade=grade), NOW)])
    agent, told = register_agent(kept, "acme", Agent(checkpoint="c", tool_set="t"), "a"), list[str]()
    for run, tries in (("check-1", 2), ("check-1", 48), ("made-up", 48), (None, None)):
        figures = {"run": run, "suite": "s1", "tries": tries}
        told.append(told_by_cards(kept, "acme", report(kept, "acme", agent, "safety", passed=True, figures=figures, by="x")))
    assert told[0] == "job cards of run check-1 bear out all 2 tries"
    assert [line.partition(":")[0] for line in told[1:]] == [
        "job cards bear out 2 of its 48 tries", "job cards bear out 0 of its 48 tries", "job cards bear out 0 of its unsaid tries"
    ]  # fmt: skip


CHANGES = {
    "passed": ("edited", sa.update(agent_reports).where(agent_reports.c.id == 1).values(passed=True)),
    "figures": ("edited", sa.update(agent_reports).where(agent_reports.c.id == 1).values(figures={"failed": []})),
    "agent": ("removed", sa.update(agent_reports).where(agent_reports.c.id == 1).values(agent="another")),
    "all of it": ("removed", sa.delete(agent_reports).where(agent_reports.c.id == 1)),
    "one more": ("inserted", sa.insert(agent_reports)),
}


def reported(store: Store) -> str:
    """An agent whose safety report failed, and then its evaluation passed."""
    agent = register_agent(store, "acme", Agent(checkpoint="c", tool_set="t"), "a")
    report(store, "acme", agent, "safety", passed=False, figures={"failed": ["s-1"]}, by="ann")
    report(store, "acme", agent, "evaluation", passed=True, figures={"reward": 0.5}, by="ann")
    return agent


@pytest.mark.parametrize("what", CHANGES)
def test_a_report_that_was_changed_behind_the_stores_back_is_named(store, what):
    agent = reported(store)
    assert list(ledger.verify(store, "acme")) == []
    found_as, change = CHANGES[what]
    made_up = {"agent": agent, "kind": "safety", "passed": True, "figures": {}, "tenant": "acme", "by": "ann", "at": NOW, "entry": 7}
    with store.writing() as connection:
        connection.execute(change, [made_up] if what == "one more" else None)
    found = list(ledger.verify(store, "acme"))
    assert (found_as, "report", agent) in [(one.what, one.kind, one.subject) for one in found]
    if what in ("passed", "figures", "one more"):  # the others are seen by the ledger alone
        with pytest.raises(UserError, match=rf"the safety report of {agent} \(entry [17]\) is not what was recorded"):
            reports_of(store, "acme", agent)


def test_a_failed_report_cannot_be_exchanged_with_one_that_passed(store):
    agent = reported(store)
    with store.writing() as connection:
        for one, entry in ((1, 99), (2, 1), (1, 2)):
            connection.execute(sa.update(agent_reports).where(agent_reports.c.id == one).values(entry=entry))
    found = [(one.what, one.kind, one.subject, one.seq) for one in ledger.verify(store, "acme")]
    assert found == [("edited", "report", agent, 1), ("edited", "report", agent, 2)]


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
