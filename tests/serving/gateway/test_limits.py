"""What the gateway refuses, and how: keys, quotas, sizes, slowness, full upstreams. Each with a reason and a cure."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import socket
import time
from http.client import HTTPResponse
from types import SimpleNamespace

import httpx
import pytest

from observability import users
from observability.access import person_at_the_machine
from serving.gateway import keys as gateway_keys
from serving.gateway.chat import ChatLimits
from serving.gateway.quotas import Quotas
from serving.gateway.upstreams import UpstreamSpec, faults_of
from serving.gateway.wire import Wire

ME = person_at_the_machine("acme", "root")


@pytest.fixture
def lib(helpers) -> SimpleNamespace:
    return SimpleNamespace(**helpers)


def refused(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert told["code"] == code and told["message"]
    return told


# --- keys ---------------------------------------------------------------------------------------------------------------------


def test_keys_that_open_nothing(open_world, lib, monkeypatch):
    world, now = open_world(), dt.datetime.now(dt.UTC)
    assert "rft key new" in refused(world.chat(key="x"), 401, "unknown_key")["cure"]
    assert httpx.post(f"{world.url}/v1/chat/completions", json=lib.asking("plain")).status_code == 401
    narrow = lib.new_key(world.store, "acme", "bob", "viewer").text
    assert "'run'" in refused(world.chat(key=narrow), 403, "scope")["message"]
    old = lib.new_key(world.store, "acme")
    assert world.chat(key=old.text).status_code == 200
    new = users.rotate_key(world.store, ME, old.id, now, dt.timedelta(hours=1))
    assert world.chat(key=new.text).status_code == world.chat(key=old.text).status_code == 200, "both, for the time of the overlap"
    users.revoke_key(world.store, ME, new.id, now)
    assert gateway_keys.REMEMBERED_SECONDS <= 5
    monkeypatch.setattr(gateway_keys, "REMEMBERED_SECONDS", 0.0)
    refused(world.chat(key=new.text), 401, "unknown_key")
    assert world.chat(key=old.text).status_code == 200


def test_another_tenants_key_reaches_none_of_ones_services(open_world, lib):
    world = open_world()
    theirs = lib.new_key(world.store, "other").text
    refused(world.chat("plain", key=theirs), 404, "model_not_found")
    assert not world.live.asked and not world.second.asked


def test_a_store_that_is_away_locks_out_nobody_who_was_let_in_before(open_world, lib, monkeypatch):
    world = open_world()
    stranger = lib.new_key(world.store, "acme", "eve").text
    assert world.chat().status_code == 200
    monkeypatch.setattr(gateway_keys, "REMEMBERED_SECONDS", 0.0)
    world.gateway.keys._gate.store = SimpleNamespace(reading=away)
    assert world.chat().status_code == 200
    refused(world.chat(key=stranger), 503, "store_away")
    monkeypatch.setattr(gateway_keys, "GRACE_SECONDS", 0.0)
    refused(world.chat(), 503, "store_away")


def away():
    from sqlalchemy.exc import OperationalError

    raise OperationalError("SELECT 1", {}, Exception("connection refused"))


def test_many_requests_with_one_key_ask_the_store_once(open_world, lib, monkeypatch):
    world = open_world()
    asked = []
    lookup = world.gateway.keys._gate.caller_of_text

    async def counted(*arguments, **more):
        asked.append(1)
        await asyncio.sleep(0.2)
        return await lookup(*arguments, **more)

    monkeypatch.setattr(world.gateway.keys._gate, "caller_of_text", counted)
    assert asyncio.run(at_once(world, lib, 10)) == [200] * 10
    assert len(asked) == 1


async def at_once(world, lib, count, service="plain", **body):
    async with httpx.AsyncClient(timeout=20) as client:
        post = (
            client.post(f"{world.url}/v1/chat/completions", json=lib.asking(service, **body), headers=world.headers()) for _ in range(count)
        )
        return sorted(answer.status_code for answer in await asyncio.gather(*post))


# --- quotas ---------------------------------------------------------------------------------------------------------------------


def test_a_tenants_quotas_are_its_own(open_world, lib):
    world = open_world(tenant_quotas={"acme": Quotas(requests_per_minute=2)})
    assert [world.chat().status_code for _ in range(2)] == [200, 200]
    answer = world.chat()
    assert "2 requests a minute" in refused(answer, 429, "requests_per_minute")["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    lib.put_live(world.store, "other", "theirs")
    key, until = lib.new_key(world.store, "other").text, time.monotonic() + 20
    while (answer := world.chat("theirs", key=key)).status_code == 404 and time.monotonic() < until:
        time.sleep(0.05)
    assert answer.status_code == 200


def test_tokens_of_a_day_and_requests_in_hand_are_bounded(open_world, lib):
    world = open_world(quotas=Quotas(tokens_per_day=4, in_flight=2))
    world.live.wait = world.second.wait = 0.4
    assert asyncio.run(at_once(world, lib, 3)) == [200, 200, 429], "3 tokens each: 6 are spent"
    answer = world.chat()
    assert "4 tokens" in refused(answer, 429, "tokens_per_day")["message"] and int(answer.headers["retry-after"]) <= 86_400


# --- what comes in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{}", b'{"model": 1, "messages": []}', b'{"model": "plain", "messages": []}',
    b'{"model": "plain", "messages": [{"role": 1}]}', b'{"model": "plain", "messages": [{"role": "user"}], "stream": "yes"}'])  # fmt: skip
def test_what_is_no_chat_is_told_so(world, body):
    answer = httpx.post(f"{world.url}/v1/chat/completions", content=body, headers=world.headers())
    assert answer.status_code == 400 and answer.json()["error"]["cure"] and not world.live.asked and not world.second.asked


def test_a_body_that_is_too_large_or_too_slow_is_refused(open_world):
    world = open_world(limits=ChatLimits(max_body_bytes=1000, body_seconds=0.3))
    refused(world.chat(messages=[{"role": "user", "content": "x" * 2000}]), 413, "too_large")
    pieces = httpx.post(f"{world.url}/v1/chat/completions", content=iter([b"x" * 600, b"x" * 600]), headers=world.headers())
    refused(pieces, 413, "too_large")
    host, port = world.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.key}\r\nContent-Length: 90\r\n\r\n{{".encode()
        )
        answer = HTTPResponse(slow)
        answer.begin()
        assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "slow_client"


def test_a_deadline_is_kept_and_a_candidate_that_hangs_leaves_time_for_the_live_agent(open_world):
    from agent_rft.release.assignment import arm_of

    world = open_world(upstream={"total_seconds": 30.0})
    world.candidate.wait = 60
    session = next(f"s{number}" for number in range(100) if arm_of("acme", "trial", f"s{number}", 0.5) == "candidate")
    before = time.monotonic()
    answer = world.chat("trial", headers={"x-session-id": session, "x-rft-deadline": "4.0"})
    assert answer.status_code == 200 and answer.headers["x-rft-arm"] == "live" and 1.6 < time.monotonic() - before < 4
    world.live.wait = world.second.wait = 60
    refused(world.chat(headers={"x-rft-deadline": "0.2"}), 504, "upstream_failed")
    refused(world.chat(headers={"x-rft-deadline": "soon"}), 400, "deadline")


# --- upstreams ------------------------------------------------------------------------------------------------------------------


def test_each_upstream_has_so_many_at_once_a_bounded_queue_and_no_more(open_world, lib):
    """Two replicas with one place and one in the queue each: of six at once two are asked, two wait, two are turned away."""
    world = open_world(upstream={"in_flight": 1, "queue": 1})
    world.live.wait = world.second.wait = 0.4
    assert asyncio.run(at_once(world, lib, 6)) == [200] * 4 + [429] * 2
    assert world.live.most_at_once == world.second.most_at_once == 1
    assert len(world.live.asked) == len(world.second.asked) == 2, "the one with the least in hand is asked"


def test_a_replica_that_is_gone_is_out_and_nobody_notices(open_world, figure):
    world = open_world()
    replicas = world.gateway.upstreams.for_checkpoint("weights-live").replicas
    dead = next(replica for replica in replicas if replica.spec.name == "live")
    alive, dead._wire = dead._wire, Wire("http://127.0.0.1:1/v1", {}, 0.5)
    assert [world.chat().status_code for _ in range(6)] == [200] * 6
    assert dead.out and not world.live.asked and len(world.second.asked) == 6
    assert figure("rft_upstream_up", upstream="live") == 0
    dead._wire = alive
    until = time.monotonic() + 20
    while dead.out and time.monotonic() < until:
        time.sleep(0.05)
    assert not dead.out, "a probe brings it back"


def test_with_every_replica_out_the_caller_is_told_and_may_try_again(open_world):
    world = open_world()
    for replica in world.gateway.upstreams.for_checkpoint("weights-live").replicas:
        replica._wire = Wire("http://127.0.0.1:1/v1", {}, 0.5)
    assert [world.chat().status_code for _ in range(3)] == [503] * 3
    told = world.chat()
    assert refused(told, 503, "upstream_failed")["cure"] == "try again" and told.headers["retry-after"] == "1"
    assert "127.0.0.1" not in told.text, "where the model servers stand is nobody's business"


def test_a_redirect_is_not_followed(open_world):
    world = open_world()
    for fake in (world.live, world.second):
        fake.status = 307
    refused(world.chat(), 502, "upstream_failed")


def test_the_upstreams_key_is_the_upstreams_and_the_callers_stays_here(open_world, monkeypatch):
    monkeypatch.setenv("LIVE_KEY", "upstream-secret")
    world = open_world(upstream={"key_variable": "LIVE_KEY"})
    answer = world.chat()
    sent = (world.live.headers or world.second.headers)[0]
    assert sent["authorization"] == "Bearer upstream-secret" and world.key not in str(sent)
    assert "upstream-secret" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "url",
    [
        "http://h:99999/v1",
        "http://h:abc/v1",
        "http://h:0/v1",
        "http://[::1/v1",
        "http://h/v 1",
        "http://h/v1?api-version=2",
        "http://h/\u00e4",
    ],
)
def test_an_address_that_no_request_can_be_sent_to_is_told_before_the_first(url):
    (fault,) = faults_of([UpstreamSpec(name="live", url=url, model="m", checkpoint="c")])
    assert fault.where == "gateway.upstreams[0].url" and fault.what.startswith(f"'{url}'") and fault.cure == "http://HOST:PORT/v1"


@pytest.mark.parametrize("key", ["sk-1\n", "sk-1\r\nx: y", "sk 1 ", "sk-\u00fc"])
def test_a_key_that_would_end_its_header_is_told_and_not_shown(monkeypatch, key):
    """One that was read from a file has a line's end, and what follows it would be the request's body."""
    monkeypatch.setenv("LIVE_KEY", key)
    (fault,) = faults_of([UpstreamSpec(name="live", url="http://h/v1", model="m", checkpoint="c", key_variable="LIVE_KEY")])
    assert fault.where == "gateway.upstreams[0].key_variable" and fault.what.startswith("LIVE_KEY holds more than a key")
    assert "sk" not in fault.what + fault.cure
