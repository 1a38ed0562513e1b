"""Runs that were accepted are driven to their end, whatever happens to their gateway, their candidate, or the store."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.events import AskModel, InfraFailed
from observability import runs
from observability.erasure import erase
from observability.intake import Intake
from observability.ledger import verify
from observability.redaction.detectors import detectors_of
from observability.release_tables import agent_runs, release_turns
from observability.store import Store, migrate, open_store
from observability.tables import card_states, job_cards
from serving.gateway.driving import Conflict, InHand, Runner, Unknown
from serving.gateway.events import RunEvent

sys.path.insert(0, str(Path(__file__).parent))
from run_world import (
    CANDIDATE,
    FAST,
    LIVE,
    ROUTE,
    TRIAL,
    Hanging,
    Mirror,
    Routes,
    Tools,
    asked,
    call_of,
    decide,
    search_then_answer,
    world_of,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path}/cards.db"
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def light(tmp_path: Path) -> Iterator[Store]:
    """Where the database is not what a test is about."""
    store = open_store(f"sqlite:///{tmp_path}/light.db")
    yield store
    store.close()


@contextlib.contextmanager
def taking_in(store: Store) -> Iterator[Intake]:
    with contextlib.closing(Intake(store, detectors_of(True))) as intake:
        yield intake


@contextlib.asynccontextmanager
async def gateway(
    store: Store, tools: Tools, live: Any = search_then_answer, candidate: Any = None, route: Any = ROUTE, mirror: Any = None
) -> AsyncIterator[tuple[Runner, Routes]]:
    routes = Routes(route)
    with taking_in(store) as intake:
        runner = Runner(world_of(store, intake, routes, tools, live, candidate), mirror, FAST)
        async with runner.running():
            yield runner, routes


async def ended(runner: Runner, run: runs.Run) -> list[RunEvent]:
    async with asyncio.timeout(30):
        return [event async for _, news in runner.events("acme", run.rollout_id, 0, 5.0) for event in news]


def kinds(events: list[RunEvent]) -> list[str]:
    return [event.kind for event in events]


def rows(store: Store, table: sa.Table) -> list[sa.RowMapping]:
    with store.reading() as connection:
        return list(connection.execute(sa.select(table)).mappings())


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_run_goes_to_its_end_and_leaves_a_card(store):
    async with gateway(store, Tools(store)) as (runner, _):
        run, is_new = await runner.submit(asked(reference_answer="42"))
        events = await ended(runner, run)
    assert is_new and kinds(events) == ["run", "turn", "tool_call", "tool_result", "answer", "end"]
    assert events[0].data["id"] == run.rollout_id and events[4].data == {"text": "The answer of turn 1."}
    assert events[-1].data["ending"] == "answered" and events[-1].data["rollout_id"] == run.rollout_id
    (card,) = rows(store, job_cards)
    assert (card["rollout_id"], card["kind"], card["checkpoint"], card["reference_answer"]) == (
        run.rollout_id,
        "production",
        "live-weights",
        "42",
    )
    assert card["metadata"]["service"] == "research" and card["ending"] == "answered"
    assert [row["state"] for row in rows(store, agent_runs)] == ["done"]
    assert not rows(store, release_turns), "no release is open"
    assert list(verify(store, "acme")) == []


async def test_a_run_is_durable_before_its_caller_hears_of_it(light):
    tools = Tools(light, seconds=60)
    async with gateway(light, tools) as (runner, _):
        run, _ = await runner.submit(asked())
        (row,) = rows(light, agent_runs)
        assert (row["rollout_id"], row["state"], row["owner"], row["session"]) == (run.rollout_id, "running", runner.owner, "s-1")


async def test_the_same_id_answers_the_same_run_and_another_request_by_it_is_refused(light):
    async with gateway(light, Tools(light)) as (runner, _):
        run, _ = await runner.submit(asked("mine"))
        again, is_new = await runner.submit(asked("mine"))
        assert (again.rollout_id, is_new) == (run.rollout_id, False)
        with pytest.raises(Conflict, match="'mine' was sent with another request before"):
            await runner.submit(asked("mine", question="Another?"))
        await ended(runner, run)
        assert (await runner.submit(asked("mine")))[0].rollout_id == run.rollout_id, "also once it is over"
    assert len(rows(light, job_cards)) == 1


async def test_many_with_one_id_at_once_are_one_run(light):
    async with gateway(light, Tools(light)) as (runner, _):
        submitted = await asyncio.gather(*(runner.submit(asked("mine")) for _ in range(8)))
        assert len({run.rollout_id for run, _ in submitted}) == 1 and sum(is_new for _, is_new in submitted) == 1


async def test_a_service_that_is_not_there_is_said_so(light):
    async with gateway(light, Tools(light)) as (runner, _):
        with pytest.raises(Unknown, match="no service 'reserch'"):
            await runner.submit(msgspec.structs.replace(asked(), service="reserch"))


async def test_a_gateway_that_leaves_in_peace_hands_its_runs_over_at_once(light):
    tools = Tools(light, seconds=60)
    async with gateway(light, tools) as (runner, _):
        run, _ = await runner.submit(asked())
        await until(lambda: tools.called)
    tools.seconds, began = 0, time.monotonic()
    async with gateway(light, tools) as (other, _):
        events = await ended(other, run)
        assert time.monotonic() - began < 10
    assert kinds(events) == ["run", "turn", "tool_call", "tool_result", "answer", "end"]
    assert tools.called == [(run.rollout_id, "call-1-1")] * 2, "the same ids: the tool server runs it once"
    assert tools.ran == [(run.rollout_id, "call-1-1")]


async def test_a_caller_that_comes_back_misses_no_event_and_hears_none_twice(light):
    tools = Tools(light, seconds=0.3)
    async with gateway(light, tools) as (runner, _), gateway(light, tools) as (other, _):
        run, _ = await runner.submit(asked())
        first = await anext(aiter(runner.events("acme", run.rollout_id, 0, 5.0)))
        assert first[0] == 1 and first[1][0].kind == "run"
        async with asyncio.timeout(30):  # by the gateway that does not drive it
            rest = [(number, event) async for number, news in other.events("acme", run.rollout_id, 1, 5.0) for event in news]
    assert [event.kind for _, event in rest] == ["turn", "tool_call", "tool_result", "answer", "end"]


async def test_a_run_that_another_took_up_is_let_go_and_leaves_one_card(store):
    """As after a long pause of its machine: the lease was over, and another gateway went on."""

    def another_has_it(time_left: dt.timedelta) -> None:
        with store.writing() as connection:
            connection.execute(sa.update(agent_runs).values(owner="another", lease_until=dt.datetime.now(dt.UTC) + time_left))

    tools = Tools(store, seconds=0.5)
    async with gateway(store, tools) as (runner, _):
        run, _ = await runner.submit(asked())
        await until(lambda: tools.called)
        another_has_it(dt.timedelta(minutes=1))
        await until(lambda: runner.in_hand == 0)
        assert rows(store, agent_runs)[0]["owner"] == "another" and not rows(store, job_cards)
        another_has_it(dt.timedelta())
        await until(lambda: rows(store, job_cards))  # its lease was over too, and the run came back here
        assert kinds(await ended(runner, run)).count("end") == 1
    assert len(rows(store, job_cards)) == 1


# --- a person is needed ----------------------------------------------------------------------------------------------------


def publishes(ask: AskModel) -> Any:
    return call_of("publish", note="hello") if ask.turn == 0 else f"Heard: {ask.conversation[-1].content}"


async def test_a_call_that_a_person_has_to_allow_parks_the_run_over_a_restart_and_runs_once(store):
    tools = Tools(store, high_impact=frozenset({"publish"}))
    async with gateway(store, tools, publishes) as (runner, _):
        run, _ = await runner.submit(asked())
        await until(lambda: rows(store, agent_runs)[0]["state"] == "parked")
        (row,) = rows(store, agent_runs)
        assert (row["owner"], row["waits_for"]) == ("", tools.asked.id), "nobody holds it meanwhile"
        await until(lambda: rows(store, card_states))
        assert rows(store, card_states)[0]["state"] == "needs_human"
        await until(lambda: runner.in_hand == 0)
    async with gateway(store, tools, publishes) as (runner, _):
        await asyncio.sleep(1.0)  # more than a lease
        assert rows(store, agent_runs)[0]["state"] == "parked" and not tools.ran
        decide(store, tools.asked.id, "approve")
        events = await ended(runner, run)
    assert kinds(events) == ["run", "turn", "tool_call", "waiting", "tool_result", "answer", "end"]
    assert events[3].data["approval"] == tools.asked.id and events[3].data["arguments"] == {"note": "hello"}
    assert events[-1].data["answer"] == "Heard: publish did it" and events[-1].data["seconds"] < 0.9, "parked time does not count"
    assert tools.ran == [(run.rollout_id, "call-1-1")]
    assert list(verify(store, "acme")) == []


async def test_a_refusal_is_told_to_the_agent_and_the_run_goes_on(light):
    tools = Tools(light, high_impact=frozenset({"publish"}))
    async with gateway(light, tools, publishes, route=msgspec.structs.replace(TRIAL, share=0.0)) as (runner, _):
        run, _ = await runner.submit(asked())
        await until(lambda: rows(light, agent_runs)[0]["state"] == "parked")
        decide(light, tools.asked.id, "refuse", "not before Monday")
        events = await ended(runner, run)
    assert events[-1].data["answer"] == "Heard: Refused: a person does not allow this call: not before Monday Do without it."
    assert events[4].data["error"] == "policy_denied" and not tools.ran
    assert rows(light, release_turns)[0]["violations"] == [], "asking is what it should do"


async def test_an_approval_that_expires_is_a_refusal(light):
    tools = Tools(light, high_impact=frozenset({"publish"}), minutes=0.005)
    async with gateway(light, tools, publishes) as (runner, _):
        run, _ = await runner.submit(asked())
        events = await ended(runner, run)
    assert events[-1].data["answer"] == "Heard: Refused: nobody allowed this call in time. Do without it." and not tools.ran


# --- releases ----------------------------------------------------------------------------------------------------------------


async def test_both_arms_count_for_their_release(light):
    async with gateway(light, Tools(light), route=msgspec.structs.replace(TRIAL, share=0.5)) as (runner, _):
        submitted = [await runner.submit(asked(session=f"s-{n}", reference_answer="1")) for n in range(12)]
        for run, _ in submitted:
            await ended(runner, run)
    turns = {turn["rollout_id"]: turn for turn in rows(light, release_turns)}
    assert {turns[run.rollout_id]["arm"] for run, _ in submitted} == {"live", "candidate"}
    for run, _ in submitted:
        turn = turns[run.rollout_id]
        assert (turn["arm"], turn["release"], turn["session"], turn["failed"], turn["tool_calls"]) == (run.arm, 7, run.session, False, 1)
        assert turn["to_grade"] and not turn["shadow"] and turn["violations"] == []


def dead(_: AskModel) -> InfraFailed:
    return InfraFailed("model", "connection refused, 1 attempt")


async def test_users_see_nothing_of_a_dead_candidate_and_the_release_does(light):
    async with gateway(light, Tools(light), candidate=dead, route=TRIAL) as (runner, _):
        run, _ = await runner.submit(asked())
        events = await ended(runner, run)
    assert kinds(events) == ["run", "anew", "turn", "tool_call", "tool_result", "answer", "end"]
    assert events[-1].data["ending"] == "answered" and events[-1].data["rollout_id"] != run.rollout_id
    (turn,) = rows(light, release_turns)
    assert (turn["rollout_id"], turn["arm"], turn["failed"]) == (run.rollout_id, "candidate", True)
    by_arm = {card["metadata"]["arm"]: card for card in rows(light, job_cards)}
    assert by_arm["candidate"]["ending"] == "infra_failed" and by_arm["candidate"]["checkpoint"] == CANDIDATE.checkpoint
    assert by_arm["live"]["ending"] == "answered" and by_arm["live"]["checkpoint"] == LIVE.checkpoint
    assert by_arm["live"]["metadata"]["run"] == run.rollout_id and "connection refused" in by_arm["live"]["metadata"]["given_up"]


async def test_a_candidate_that_changed_something_is_not_begun_again(light):
    def publish_and_die(ask: AskModel) -> Any:
        return call_of("publish", note="x") if ask.turn == 0 else InfraFailed("model", "gone")

    tools = Tools(light)
    async with gateway(light, tools, candidate=publish_and_die, route=TRIAL) as (runner, _):
        run, _ = await runner.submit(asked())
        events = await ended(runner, run)
    assert kinds(events)[-1] == "end" and "anew" not in kinds(events) and events[-1].data["ending"] == "infra_failed"
    assert len(tools.ran) == 1


async def test_a_rollback_that_cuts_stops_a_hanging_candidate_at_once(light):
    async with gateway(light, Tools(light), candidate=Hanging(), route=TRIAL) as (runner, routes):
        run, _ = await runner.submit(asked())
        await until(lambda: runner.in_hand)
        began, routes.now = time.monotonic(), msgspec.structs.replace(ROUTE, cut=True, event=2)
        events = await ended(runner, run)
        assert time.monotonic() - began < 2
    assert kinds(events)[:2] == ["run", "anew"] and events[1].data["why"] == "release: the agent was withdrawn"
    assert events[-1].data["answer"] == "The answer of turn 1."
    assert not rows(light, release_turns), "what was cut off proves nothing against it"


async def test_a_store_that_says_nothing_holds_up_no_cut(light, monkeypatch):
    monkeypatch.setattr(runs, "take_over", lambda *_: time.sleep(3) or [])
    async with gateway(light, Tools(light), candidate=Hanging(), route=TRIAL) as (runner, routes):
        run, _ = await runner.submit(asked())
        await asyncio.sleep(0.2)  # until it looks for runs that were left, and waits
        began, routes.now = time.monotonic(), msgspec.structs.replace(ROUTE, cut=True, event=2)
        assert kinds(await ended(runner, run))[1] == "anew" and time.monotonic() - began < 2


async def test_a_rollback_that_drains_lets_a_candidate_end_what_it_began_and_no_longer(light):
    tools = Tools(light, seconds=0.4)
    async with gateway(light, tools, route=TRIAL) as (runner, routes):
        run, _ = await runner.submit(asked())
        await until(lambda: tools.called)
        routes.now = msgspec.structs.replace(ROUTE, drain_seconds=10.0)
        assert "anew" not in kinds(await ended(runner, run))
    async with gateway(light, tools, candidate=Hanging(), route=TRIAL) as (runner, routes):
        run, _ = await runner.submit(asked())
        routes.now = msgspec.structs.replace(ROUTE, drain_seconds=0.3)
        assert kinds(await ended(runner, run))[1] == "anew"


async def test_a_session_moves_at_its_next_turn_and_never_within_one(light):
    tools = Tools(light, seconds=0.3)
    async with gateway(light, tools, route=TRIAL) as (runner, routes):
        run, _ = await runner.submit(asked())
        await until(lambda: tools.called)
        routes.now = msgspec.structs.replace(TRIAL, share=0.0)
        await ended(runner, run)
        later, _ = await runner.submit(asked())
        await ended(runner, later)
    assert [(card["rollout_id"], card["checkpoint"]) for card in sorted(rows(light, job_cards), key=lambda card: card["rollout_id"])] == [
        (run.rollout_id, CANDIDATE.checkpoint),
        (later.rollout_id, LIVE.checkpoint),
    ]


async def test_a_leak_of_a_secret_is_a_critical_violation_by_name(light):
    key = "sk-ant-api03-" + "aB3" * 31 + "-xyzAA"
    async with gateway(light, Tools(light), live=lambda _: f"Use api_key={key}", route=TRIAL) as (runner, _):
        told, _ = await runner.submit(asked(question=f"My key is {key}. What is my key?"))
        await ended(runner, told)
        leaked, _ = await runner.submit(asked(session="s-2"))
        await ended(runner, leaked)
    named = {turn["rollout_id"]: turn["violations"] for turn in rows(light, release_turns)}
    assert named == {told.rollout_id: [], leaked.rollout_id: ["critical:leaked:KEY"]}


async def test_what_was_mirrored_says_so(light):
    mirror = Mirror()
    async with gateway(light, Tools(light), route=msgspec.structs.replace(TRIAL, share=0.0, shadow=True), mirror=mirror) as (runner, _):
        run, _ = await runner.submit(asked())
        await ended(runner, run)
    assert [ran.rollout.rollout_id for ran in mirror.offered] == [run.rollout_id]
    assert [(turn["arm"], turn["shadow"]) for turn in rows(light, release_turns)] == [("live", True)]


# --- trouble ------------------------------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_holds_runs_up_and_loses_none(light, monkeypatch):
    tools = Tools(light, seconds=0.2)
    async with gateway(light, tools) as (runner, _):
        run, _ = await runner.submit(asked())
        real = runs.keep

        def away(*_: Any) -> bool:
            raise sa.exc.OperationalError("UPDATE", {}, Exception("connection refused"))

        monkeypatch.setattr(runs, "keep", away)
        await asyncio.sleep(0.4)
        assert not tools.called and len((await runner.found("acme", run.rollout_id))[1].events) == 1, "it stands still"
        monkeypatch.setattr(runs, "keep", real)
        assert kinds(await ended(runner, run)) == ["run", "turn", "tool_call", "tool_result", "answer", "end"]


async def test_a_fault_of_ours_ends_the_run_and_not_the_gateway(light, monkeypatch):
    tools = Tools(light)
    tools.fails = ZeroDivisionError("a mistake")
    async with gateway(light, tools) as (runner, _):
        run, _ = await runner.submit(asked())
        events = await ended(runner, run)
        assert events[-1].data["ending"] == "infra_failed" and "ZeroDivisionError" in events[-1].data["reason"]
        monkeypatch.setattr(InHand, "show", lambda _: 1 / 0)
        run, _ = await runner.submit(asked())
        await until(lambda: runner.in_hand == 0)


async def test_a_run_that_cannot_be_read_holds_up_no_other(light):
    """As one of a version that keeps them otherwise."""
    async with gateway(light, Tools(light, seconds=60)) as (runner, _):
        unreadable, good = [(await runner.submit(asked(session=session)))[0] for session in ("s-1", "s-2")]
    with light.writing() as connection:
        broken = sa.update(agent_runs).where(agent_runs.c.rollout_id == unreadable.rollout_id)
        connection.execute(broken.values(rollout=b"\xc1", lease_until=unreadable.at))
    async with gateway(light, Tools(light)) as (runner, _), asyncio.timeout(4):
        assert kinds(await ended(runner, good))[-1] == "end"


async def test_erasing_a_card_takes_its_runs_words_too(store):
    async with gateway(store, Tools(store)) as (runner, _):
        run, _ = await runner.submit(asked())
        await ended(runner, run)
    erase(store, "acme", [run.rollout_id], "root", "asked for by the customer")
    assert not rows(store, agent_runs)


async def test_words_of_runs_that_are_over_do_not_stay(light):
    async with gateway(light, Tools(light)) as (runner, _):
        run, _ = await runner.submit(asked())
        await ended(runner, run)
    (row,) = rows(light, agent_runs)
    assert runs.forget(light, row["changed_at"]) == 0
    assert runs.forget(light, row["changed_at"].replace(year=2100)) == 1 and not rows(light, agent_runs)
