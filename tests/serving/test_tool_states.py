"""What tools keep of a rollout, the notebook and the outbox built on it, and the places before a tool."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.datasets.filings import TOOLS
from serving.bulkheads import Bucket, Bulkhead, Full
from serving.tools.context import CallKey, current_call
from serving.tools.corpus import CorpusTools
from serving.tools.joined import JoinedTools
from serving.tools.notebook import MOST_NOTES, NotebookTools
from serving.tools.outbox import OutboxTools
from serving.tools.state import RolloutStates


@contextmanager
def call_of(rollout_id, call_id="c1", tenant=""):
    token = current_call.set(CallKey(rollout_id, call_id, tenant))
    yield
    current_call.reset(token)


def test_a_state_is_one_rollouts_of_one_tenant():
    states = RolloutStates(list)
    for tenant, rollout in (("a", "r1"), ("a", "r2"), ("b", "r1"), ("a", "r1")):
        with call_of(rollout, tenant=tenant):
            states.of_this_rollout().append(f"{tenant}{rollout}")
    with call_of("r1", tenant="a"):
        assert states.of_this_rollout() == ["ar1", "ar1"]
    states.clear("r1", "a")
    with call_of("r1", tenant="a"):
        assert states.of_this_rollout() == []
    assert states.of_this_rollout() is None, "a call that names no rollout has none"
    with call_of(""):
        assert states.of_this_rollout() is None


def test_states_are_bounded_in_number_and_in_age():
    now = [0.0]
    states = RolloutStates(list, most=2, seconds=10, clock=lambda: now[0])
    for rollout in ("r1", "r2", "r1", "r3"):  # r2 was not asked for longest
        with call_of(rollout):
            states.of_this_rollout().append(rollout)
    with call_of("r1"):
        assert states.of_this_rollout() == ["r1", "r1"] and len(states) == 2
    now[0] = 10.5
    assert len(states) == 0
    with call_of("r1"):
        assert states.of_this_rollout() == []


def test_a_notebook_is_a_rollouts_own_and_a_call_sent_twice_is_one_note():
    tools = NotebookTools()
    for call_id, note in (("c1", "margin 28.7%"), ("c2", "revenue $400M"), ("c1", "margin 28.7%")):
        with call_of("r1", call_id):
            assert tools.call("remember", {"note": note})[1] is None
    with call_of("r1"):
        assert tools.call("recall", {}) == ("1. margin 28.7%\n2. revenue $400M", None)
    with call_of("r2"):
        assert tools.call("recall", {}) == ("Nothing is noted yet.", None)
    with call_of("r1", "c9"):
        assert tools.call("remember", {"note": " "})[1] == "model_error"
        assert tools.call("remember", {"note": "x" * 4001})[1] == "model_error"
    assert tools.call("recall", {})[1] == "policy_denied"
    for number in range(MOST_NOTES + 1):
        with call_of("r3", f"c{number}"):
            told = tools.call("remember", {"note": "x"})
    assert told == ("Error: the notebook is full: it has 100 notes", "policy_denied")


# --- the outbox --------------------------------------------------------------------------------------------------------------


def publish(tools, name, text="hello"):
    return tools.call("publish", {"name": name, "text": text})


def test_a_note_is_published_whole_once_and_replaces_nothing(tmp_path):
    tools = OutboxTools(tmp_path)
    (tmp_path / "q3").mkdir()
    assert publish(tools, "a.md") == ("Published a.md, 5 bytes.", None) and publish(tools, "q3/b.md")[1] is None
    assert publish(tools, "a.md", "other") == ("Error: there is a note a.md already; choose another name", "model_error")
    assert publish(tools, "q4/a.md")[1] == publish(tools, "a.md/x")[1] == "model_error"
    assert {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.md")} == {"a.md": "hello", "q3/b.md": "hello"}
    assert not list(tmp_path.rglob(".*")), "no draft is left"


def test_no_link_leads_a_note_out(tmp_path):
    (inside := tmp_path / "in").mkdir()
    (outside := tmp_path / "out").mkdir()
    os.symlink(outside, inside / "door")
    os.symlink(outside / "target.md", inside / "note.md")
    tools = OutboxTools(inside)
    assert publish(tools, "door/x.md")[1] == "model_error" and publish(tools, "note.md")[1] == "model_error"
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", ".x", "a/.x", "a\\x", "a//x", "", "x\0", "x" * 301, None, 7])
def test_names_that_name_no_note(tmp_path, name):
    (tmp_path / "a").mkdir()
    assert publish(OutboxTools(tmp_path), name)[1] in ("policy_denied", "model_error")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_an_outbox_that_is_not_there_is_told_before_it_serves(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        OutboxTools(tmp_path / "gone")


def test_joined_tools_are_each_their_own(tmp_path):
    corpus, outbox = CorpusTools({"a": "b"}, TOOLS), OutboxTools(tmp_path)
    joined = JoinedTools([corpus, NotebookTools(), outbox])
    assert [spec.name for spec in joined.specs] == ["search", "list", "read", "remember", "recall", "publish"]
    assert joined.changes == {"publish"} and not joined.blocks and joined.version not in (corpus.version, outbox.version)
    assert joined.call("read", {"path": "a"}) == ("b", None) and joined.check("read", {}) is None
    assert joined.check("publish", {"name": "..", "text": "x"})[1] == "policy_denied"


# --- places and rates --------------------------------------------------------------------------------------------------------


def test_a_bulkhead_holds_so_many_queues_so_many_and_turns_the_rest_away():
    async def tried():
        bulkhead, gate, told = Bulkhead(1, 1), asyncio.Event(), []

        async def one(name, seconds=5.0):
            try:
                async with bulkhead.place(seconds):
                    told.append(f"{name} in")
                    await gate.wait()
            except Full:
                told.append(f"{name} full")

        tasks = []
        for name, seconds in (("a", 5), ("b", 0.05), ("c", 5)):
            tasks.append(asyncio.create_task(one(name, seconds)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        tasks.append(asyncio.create_task(one("d")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        return told, bulkhead.idle

    assert asyncio.run(tried()) == (["a in", "c full", "b full", "d in"], True)


def test_a_minutes_allowance_comes_back_evenly():
    bucket = Bucket(60, now=0.0)
    assert [bucket.take(0.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(0.25) == pytest.approx(0.75), "one a second"
    assert bucket.take(1.0) == 0.0 and not bucket.full(1.0)
    assert bucket.full(61.0)
