"""What becomes of those whom a candidate is answering when it is withdrawn: cut where it was unsafe, else let finish."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

from agent_rft.release.assignment import arm_of
from observability.releases import Move

SESSION = next(f"s{number}" for number in range(100) if arm_of("acme", "trial", f"s{number}", 0.5) == "candidate")


@pytest.fixture
def lib(helpers) -> SimpleNamespace:
    return SimpleNamespace(**helpers)


def withdraw(world, lib, cut):
    release = max(route.release for route in world.gateway.routing.routes("acme") if route.service == "trial")
    lib.move(world.store, "acme", release, Move(act="rollback", stage="rolled_back", cut=cut, why="a test"))


def streamed_over_a_withdrawal(world, lib, cut):
    """All that one caller heard, and for how long after the withdrawal."""
    asked = {"model": "trial", "messages": [{"role": "user", "content": "x"}], "stream": True}
    headers = world.headers(more={"x-session-id": SESSION})
    with httpx.stream("POST", f"{world.url}/v1/chat/completions", json=asked, headers=headers, timeout=20) as answer:
        pieces = answer.iter_text()
        heard = next(pieces)
        withdraw(world, lib, cut)
        since = time.monotonic()
        heard += "".join(pieces)
    return heard, time.monotonic() - since


def test_an_unsafe_candidates_stream_is_cut_within_a_second_and_the_session_goes_on_with_the_live_agent(open_world, lib):
    world = open_world()
    world.candidate.chunks, world.candidate.between = 400, 0.05  # 20 s
    heard, seconds = streamed_over_a_withdrawal(world, lib, cut=True)
    last = [line for line in heard.split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_failed" and "[DONE]" not in heard
    assert seconds < 3.0, "half a second for the routes, a quarter for the look, on a crowded machine"
    until = time.monotonic() + 20
    while not world.candidate.cut_off and time.monotonic() < until:
        time.sleep(0.02)
    assert world.candidate.cut_off == 1
    answer = world.chat("trial", headers={"x-session-id": SESSION})
    assert answer.status_code == 200 and "candidate" not in answer.text


def test_a_candidate_that_was_only_worse_finishes_its_sentence(open_world, lib):
    world = open_world()
    world.candidate.chunks, world.candidate.between = 30, 0.05  # 1.5 s: the withdrawal is known long before
    heard, _ = streamed_over_a_withdrawal(world, lib, cut=False)
    assert heard.endswith("data: [DONE]\n\n") and heard.count("candidate") == 30


def test_whom_an_agent_had_said_nothing_to_that_was_live_already_is_told_to_try_again(open_world, lib):
    world = open_world()
    release = max(route.release for route in world.gateway.routing.routes("acme") if route.service == "trial")
    lib.move(world.store, "acme", release, Move(act="advance", stage="full", share=1.0, why="a test"))
    until = time.monotonic() + 20
    while world.gateway.routing.route("acme", "trial").live != lib.CANDIDATE.id and time.monotonic() < until:
        time.sleep(0.02)
    answer = answered_over_a_withdrawal(world, lib)
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "upstream_failed"
    answer = world.chat("trial", headers={"x-session-id": SESSION})
    assert answer.status_code == 200 and answer.headers["x-rft-agent"] == lib.LIVE.id


def answered_over_a_withdrawal(world, lib):
    world.candidate.wait = 15
    told: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: told.append(world.chat("trial", headers={"x-session-id": SESSION})))
    caller.start()
    until = time.monotonic() + 20
    while not world.candidate.asked and time.monotonic() < until:
        time.sleep(0.02)
    withdraw(world, lib, cut=True)
    caller.join(10)
    return told[0]


def test_whom_the_cut_candidate_had_said_nothing_to_is_answered_by_the_live_agent(open_world, lib):
    answer = answered_over_a_withdrawal(open_world(), lib)
    assert answer.status_code == 200 and answer.headers["x-rft-arm"] == "live"
