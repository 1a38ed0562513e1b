"""What a service lives through is held against its training and its last week, once, whoever looks; and who has to know is told."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_rft.contracts.agents import Agent
from observability import drift, outbox
from observability.levels import levels
from observability.registry import register_agent
from observability.releases import Move, decided, routes
from observability.store import Store, migrate, open_store
from serving.gateway.quotas import Slo
from serving.release import acts
from serving.release.leadership import Leadership
from serving.release.looking import Promises, drift_of, levels_of
from serving.release.monitors import LAST_WEEK, TRAINING, Monitors, look_at

traffic = runpy.run_path(str(Path(__file__).parent / "sample_traffic.py"))
NOW, THIS_WEEK, Habits, lived = traffic["NOW"], traffic["THIS_WEEK"], traffic["Habits"], traffic["lived"]
ODD = Habits(words=40)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("monitors")
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{folder}/cards.db"
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture(scope="module")
def calm(empty: Store) -> Store:
    """A service that was trained, lived through a week, and is answered by the agent of that run."""
    traffic["trained"](empty)
    lived(empty, "week", traffic["LAST_WEEK"], 120, Habits(), 3)
    traffic["first_release"](empty)
    return empty


def look(store: Store, now: dt.datetime = NOW) -> list[tuple[str, bool]]:
    return [(one.monitor, one.alarmed) for one in look_at(store, routes(store)[0], now)]


def test_what_is_alike_raises_no_alarm_and_what_is_not_raises_one_until_it_is_over(calm):
    assert look(calm) == []
    lived(calm, "calm", THIS_WEEK, 100, Habits(), 4)
    lived(calm, "tried", THIS_WEEK, 100, ODD, 5, arm="candidate")  # on trial: no drift of the service
    assert look(calm) == []
    [service] = drift_of(calm, "acme")
    assert (service.service, service.runs, service.missing, service.standing) == ("research", 220, [], 0)
    assert {(one.monitor, one.reference) for one in service.compared} >= {("grade", TRAINING), ("grade", LAST_WEEK), ("tools", TRAINING)}
    assert all(one.figures["n"] == 220 for one in service.compared)

    lived(calm, "odd", THIS_WEEK, 60, ODD, 6)
    told = look(calm)
    assert {monitor.partition(",")[0] for monitor, alarmed in told} == {"answer_length", "tokens"} and all(alarmed for _, alarmed in told)
    assert look(calm) == []  # said once, and nothing came since
    alarms = drift.alarms_of(calm, "acme")
    words = [word for word in outbox.of_tenant(calm, "acme") if word.kind == "alarm"]
    assert len(alarms) == len(words) == len(told) and words[-1].body["why"] in {alarm.why for alarm in alarms}
    assert "against training: length of answers" in alarms[-1].why and drift_of(calm, "acme")[0].standing == len(told)

    lived(calm, "again", THIS_WEEK, 230, Habits(), 7)
    assert {alarmed for _, alarmed in look(calm)} == {False} and drift_of(calm, "acme")[0].standing == 0
    assert [word.subject for word in outbox.of_tenant(calm, "acme", 1)] == ["research: alarm over, tokens, last week"]


def test_of_two_who_look_at_once_one_counts(calm):
    lived(calm, "two", THIS_WEEK, 10, Habits(), 8)
    before = drift.states_of(calm, "acme", "research")["research", drift.READING]
    look(calm)
    after = drift.states_of(calm, "acme")
    assert after["research", drift.READING]["runs"] == before["runs"] + 10
    assert not drift.save(calm, "acme", "research", before, {drift.READING: before}, [], NOW)  # who read what was so before
    assert drift.states_of(calm, "acme") == after


def test_only_the_first_run_of_a_session_counts(calm):
    runs = drift_of(calm, "acme")[0].runs
    again = []
    for one in drift.of_days(calm, "acme", "research", THIS_WEEK, NOW, 10_000)[:5]:
        name = f"{one.card.rollout_id}-2"
        again.append(msgspec.structs.replace(one.card, rollout_id=name, rollout=msgspec.structs.replace(one.card.rollout, rollout_id=name)))
    traffic["add"](calm, again)
    look(calm)
    assert drift_of(calm, "acme")[0].runs == runs


def test_another_tenant_sees_nothing_of_it(calm):
    assert drift_of(calm.of("acme"), "acme") and drift_of(calm.of("other"), "acme") == [] == drift_of(calm, "other")
    assert drift.alarms_of(calm.of("acme"), "acme") and drift.alarms_of(calm.of("other"), "acme") == []


def test_levels_are_those_of_the_cards(calm):
    at = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)
    for name, seconds, ending in (("fast", 1.0, "answered"), ("slow", 9.0, "answered"), ("lost", 1.0, "infra_failed")):
        made = next(iter(drift.of_days(calm, "acme", "research", THIS_WEEK, NOW, 1))).card
        rollout = msgspec.structs.replace(made.rollout, rollout_id=name, ending=msgspec.convert(ending, type(made.rollout.ending)))
        cost = msgspec.structs.replace(made.cost, seconds=seconds, sampled_tokens=10)
        started = (at - dt.timedelta(minutes=5)).isoformat()
        traffic["add"](calm, [msgspec.structs.replace(made, rollout_id=name, rollout=rollout, cost=cost, started_at=started)])
    every, one = [level for level in levels(calm.of("acme"), "acme", 5.0, at) if level.span == "hour"]
    assert (one.service, every.service) == ("research", "")
    assert (one.turns, one.failed, one.in_time, one.tokens, one.longest_seconds) == (3, 1, 1, 30, 9.0)
    assert every == msgspec.structs.replace(one, service="") and one.mean_seconds == pytest.approx(11 / 3)
    found = levels_of(calm, "acme", Promises(tenant_slos={"acme": Slo(seconds=10, at_least=0.6, errors_at_most=0.5)}), at)
    assert (found.levels[0].in_time, found.levels[0].kept) == (pytest.approx(2 / 3), True)
    strict = levels_of(calm, "acme", Promises(), at)
    assert not strict.levels[0].kept and strict.tokens_today == 30 and strict.requests_last_minute == 0


def test_a_reference_goes_with_its_week_and_with_its_agent_and_its_alarms_with_it(calm):
    lived(calm, "late", THIS_WEEK, 120, ODD, 9)
    assert {alarmed for _, alarmed in look(calm)} == {True}
    monday = NOW + dt.timedelta(days=6)
    assert set(look(calm, monday)) == {("answer_length, last week", False), ("tokens, last week", False)}
    figures = {(one.monitor, one.reference): one.figures for one in drift_of(calm, "acme")[0].compared}
    assert figures["turns", LAST_WEEK]["n"] == 0 and figures["turns", TRAINING]["n"] > 100
    fresh = register_agent(calm, "acme", Agent(checkpoint="run-2/step-9", tool_set="t1"), "another")
    release = acts.begin(calm, "ann", "acme", "research", fresh, traffic["Policy"]())
    decided(calm, "ann", "acme", release.id, lambda *_: [Move(act="advance", stage="full", share=1.0, why="by hand")])
    Monitors(calm, Leadership(calm)).look(monday)
    assert {alarm.monitor for alarm in drift.alarms_of(calm, "acme", limit=2)} == {"answer_length, training", "tokens, training"}
    assert drift_of(calm, "acme")[0].missing == [TRAINING]  # nobody knows where those weights come from
