"""The shadow never executes a tool, never delays an answer, and tells of the candidate what a release is decided from."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.events import AskModel, InfraFailed
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Limits, Rollout, ToolResult, Turn
from observability.intake import Intake
from observability.redaction.detectors import detectors_of
from observability.release_tables import release_turns
from observability.store import Store, open_store
from observability.tables import job_cards
from serving.gateway.driving import Runner
from serving.gateway.ending import Ran
from serving.gateway.shadow import STUB, ReplayedTools, Shadow

sys.path.insert(0, str(Path(__file__).parent))
from run_world import CANDIDATE, FAST, LIVE, TRIAL, Hanging, Routes, Tools, asked, call_of, search_then_answer, world_of

MIRRORED = msgspec.structs.replace(TRIAL, share=0.0, shadow=True)


@pytest.fixture
def store(empty: Path, tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "cards.db").write_bytes(empty.read_bytes())
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield store
    store.close()


@pytest.fixture
def intake(store: Store) -> Iterator[Intake]:
    with contextlib.closing(Intake(store, detectors_of(True))) as intake:
        yield intake


def live_run(answer: str = "42") -> Ran:
    calls = (ToolCall("call-1-1", "search", {"a": 1, "b": 2}), ToolCall("call-1-2", "search", {"a": 1, "b": 2}))
    results = {"call-1-1": ToolResult("call-1-1", "first", None, 3.0, 2), "call-1-2": ToolResult("call-1-2", "then")}
    rollout = Rollout("r-1", (Message("user", "Q?"),), (), Limits(), turns=[Turn("", calls=calls, results=results)], answer=answer)
    return Ran(
        tenant="acme", service="research", session="s-1", run_id="r-1", agent=LIVE, agent_id=LIVE.id, arm="live", release=7, caller="sam",
        said=rollout.opening, rollout=rollout, item={}, metadata={},
    )  # fmt: skip


def rows(store: Store, table: sa.Table) -> list[sa.RowMapping]:
    with store.reading() as connection:
        return list(connection.execute(sa.select(table)).mappings())


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_the_same_call_gets_the_live_runs_results_in_their_order_and_any_other_a_stub():
    tools = ReplayedTools(live_run().rollout)
    first = await tools.call("other", ToolCall("call-9-1", "search", {"b": 2, "a": 1}))
    assert first == ToolResult("call-9-1", "first"), "whatever the order of its keys; what it cost was paid for already"
    assert [(await tools.call("other", ToolCall("c", "search", {"a": 1, "b": 2}))).output for _ in range(3)] == ["then"] * 3
    assert (await tools.call("other", ToolCall("c", "search", {"a": 2}))).output == STUB
    assert (await tools.call("other", ToolCall("c", "publish", {"a": 1, "b": 2}))).output == STUB


async def test_the_candidate_answers_in_the_shadow_and_no_tool_is_called(store, intake):
    def candidate(ask: AskModel) -> Any:
        return call_of("publish", note="x") if ask.turn == 0 else f"Heard: {ask.conversation[-1].content}"

    tools = Tools(store)
    world = world_of(store, intake, Routes(MIRRORED), tools, search_then_answer, candidate)
    shadow = Shadow(world)
    runner = Runner(world, shadow, FAST)
    async with shadow.running(), runner.running():
        run, _ = await runner.submit(asked(session="s-9", id="row-1", reference_answer="1"))
        await until(lambda: len(rows(store, release_turns)) == 2)
    assert [called for called, _ in tools.ran] == [run.rollout_id], "the live run's search alone"
    card = next(card for card in rows(store, job_cards) if card["kind"] == "shadow")
    assert (card["checkpoint"], card["answer"], card["reference_answer"]) == (CANDIDATE.checkpoint, f"Heard: {STUB}", "1")
    assert card["metadata"]["run"] == run.rollout_id
    by_arm = {turn["arm"]: turn for turn in rows(store, release_turns)}
    for arm in ("live", "candidate"):
        assert (by_arm[arm]["shadow"], by_arm[arm]["session"], by_arm[arm]["failed"]) == (True, "s-9", False)
    assert by_arm["live"]["to_grade"] and not by_arm["candidate"]["to_grade"], "an answer without its tools' results is held against nobody"


async def test_a_candidate_that_calls_otherwise_is_not_said_to_fail_and_one_that_calls_alike_is_graded(store, intake):
    """Stubs alone made a candidate that answered 88% of users' questions run out of its calls in 40% of its mirrored runs."""

    def candidate(ask: AskModel) -> Any:
        return call_of("search", query=f"again {ask.turn}")

    for candidates in (candidate, search_then_answer):
        world = world_of(store, intake, Routes(MIRRORED), Tools(store), search_then_answer, candidates)
        shadow = Shadow(world)
        runner = Runner(world, shadow, FAST)
        before = len(rows(store, release_turns))
        async with shadow.running(), runner.running():
            await runner.submit(asked(id="row-1", reference_answer="1"))
            await until(lambda: len(rows(store, release_turns)) == before + 2)  # noqa: B023
    told = [(turn["to_grade"], turn["failed"]) for turn in rows(store, release_turns) if turn["arm"] == "candidate"]
    assert told == [(False, False), (True, False)]


async def test_a_full_queue_drops_its_oldest_and_counts_it(store, intake):
    shadow = Shadow(world_of(store, intake, Routes(MIRRORED), Tools(store), search_then_answer), most_waiting=3)
    for number in range(5):
        assert shadow.offer(live_run(str(number)), MIRRORED)
    assert shadow.dropped == 2 and [waiting.ran.rollout.answer for waiting in shadow._waiting] == ["2", "3", "4"]
    assert not shadow.offer(live_run(), msgspec.structs.replace(MIRRORED, candidate="", release=0))


async def test_a_dead_candidate_in_the_shadow_fails_its_turn_and_nothing_else(store, intake):
    dead = lambda _: InfraFailed("model", "connection refused")  # noqa: E731
    shadow = Shadow(world_of(store, intake, Routes(MIRRORED), Tools(store), search_then_answer, dead))
    async with shadow.running():
        shadow.offer(live_run(), MIRRORED)
        await until(lambda: rows(store, release_turns))
    (turn,) = rows(store, release_turns)
    assert (turn["arm"], turn["shadow"], turn["failed"], turn["to_grade"]) == ("candidate", True, True, False)


async def test_a_hanging_candidate_in_the_shadow_does_not_delay_the_live_answer(store, intake):
    """p99 with the shadow off, and on before a candidate that never answers: within what the machine itself varies."""

    def live(_: AskModel) -> str:
        return "at once"

    async def seconds(route: Any) -> list[float]:
        world = world_of(store, intake, Routes(route), Tools(store), live, Hanging())
        shadow = Shadow(world, most_waiting=5)
        runner, took = Runner(world, shadow, FAST), list[float]()
        async with shadow.running(), runner.running():
            for _ in range(40):
                began = time.perf_counter()
                run, _ = await runner.submit(asked())
                async for _, news in runner.events("acme", run.rollout_id, 0, 5.0):
                    if any(event.kind == "answer" for event in news):
                        took.append(time.perf_counter() - began)
        assert not route.shadow or shadow.dropped >= 40 - 5 - 4
        return took

    off, on = await seconds(msgspec.structs.replace(MIRRORED, shadow=False)), await seconds(MIRRORED)
    middle = statistics.median(off), statistics.median(on)
    print(f"shadow off: median {1000 * middle[0]:.1f} ms, worst {1000 * max(off):.1f}; on: {1000 * middle[1]:.1f}, {1000 * max(on):.1f}")
    assert middle[1] < 2 * middle[0] + 0.02
