"""Every answer becomes a card: over kill -9, with a full disk, with a store that is away; and what else is told of it: spans, metrics."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.rollouts import Ending, Limits
from agent_rft.rollouts.driver import new_rollout_id
from observability.cards import count_cards
from observability.intake import Intake
from observability.otlp.protobuf import read_protobuf
from observability.redaction.detectors import detectors_of
from observability.spool import Spool
from observability.store import open_store
from serving.gateway import writing
from serving.gateway.cardmaking import Kept, counted, events_of, ran_of, turn_of
from serving.gateway.ending import job_card
from serving.gateway.quotas import Quotas
from serving.gateway.recording import Recorder
from serving.gateway.spans import Exporter, endpoint_of
from serving.server import running_server

HERE = Path(__file__).parent


@pytest.fixture
def lib(helpers) -> SimpleNamespace:
    return SimpleNamespace(**helpers)


def kept(**more) -> Kept:
    told = {
        "rollout_id": new_rollout_id(), "tenant": "acme", "service": "plain", "session": "s", "agent": "a-1", "arm": "live", "release": 0,
        "checkpoint": "w", "tool_set": "t", "limits": Limits(), "started_at": "2026-11-22T00:00:00+00:00", "seconds": 0.5, "status": 200,
        "asked": b'{"messages": [{"role": "user", "content": "hi"}]}', "answered": b'{"choices": [{"message": {"content": "ho"}}]}',
    }  # fmt: skip
    return Kept(**{**told, **more})


# --- nothing is lost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_answered_survives_kill_9_in_the_same_moment(lib, in_thread, empty, tmp_path, stream):
    """The kill comes as the last answer does: each was written down before it was given, and becomes one card."""
    (tmp_path / "cards.db").write_bytes(empty.read_bytes())
    url = f"sqlite:///{tmp_path}/cards.db"
    store, fake = open_store(url), lib.FakeModel("live")
    key = lib.new_key(store, "acme").text
    lib.put_live(store, "acme", "plain")
    with in_thread(fake) as upstream:
        command = lambda port: [sys.executable, str(HERE / "gateway_server.py"), str(port), url, f"{upstream}/v1", str(tmp_path)]  # noqa: E731
        with running_server(command) as server:
            ids = asyncio.run(chats(server.base_url, key, lib, 20, lambda: os.kill(server.pid, signal.SIGKILL), stream=stream))
        with running_server(command):
            until = time.monotonic() + 30
            while count_cards(store) < len(ids) and time.monotonic() < until:
                time.sleep(0.05)
    assert len(ids) == len(set(ids)) == count_cards(store) == 20
    store.close()


async def chats(url, key, lib, count, at_the_last, **body):
    """The ids of as many answers; the call comes in the turn of the loop in which the last one's last word is there."""
    ids, headers = list[str](), {"authorization": f"Bearer {key}"}

    async def chat(client):
        async with client.stream("POST", f"{url}/v1/chat/completions", json=lib.asking("plain", **body), headers=headers) as answer:
            heard = b""
            async for piece in answer.aiter_raw():
                heard += piece
                if heard.endswith((b"[DONE]\n\n", b"}}")):
                    break
            ids.append(answer.headers["x-request-id"])
            if len(ids) == count:
                at_the_last()

    async with httpx.AsyncClient(timeout=20) as client:
        await asyncio.gather(*(chat(client) for _ in range(count)), return_exceptions=True)
    return ids


def test_a_spool_that_is_full_takes_no_further_requests_and_loses_nothing(open_world, tmp_path, monkeypatch):
    """`An answer without a card is not given`: the gateway says so, and goes on once there is room."""
    world = open_world()
    assert world.chat().status_code == 200
    until = time.monotonic() + 20
    while not count_cards(world.store) and time.monotonic() < until:
        time.sleep(0.02)
    room = world.gateway.recorder._spool._max_bytes
    world.gateway.recorder._spool._max_bytes = 10
    assert world.chat().status_code == 200, "what was asked before the disk said no waits in memory"
    until = time.monotonic() + 20
    while not world.gateway.recorder.why_not() and time.monotonic() < until:
        time.sleep(0.01)
    refused = world.chat()
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_room_for_cards" and "retry-after" in refused.headers
    world.gateway.recorder._spool._max_bytes = room
    until = time.monotonic() + 20
    while count_cards(world.store) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert count_cards(world.store) == 2 and world.chat().status_code == 200


def test_the_recorder_writes_all_it_was_given_before_it_closes(tmp_path):
    recorder = Recorder(Spool(tmp_path, 10**6))
    for _ in range(50):
        recorder.keep(kept())
    recorder.close()
    batch = Spool(tmp_path, 10**6).unsent(100, 10**6)
    assert batch is not None and len(batch.cards) == 50


def test_a_record_that_no_card_can_be_made_of_is_set_aside_and_holds_up_no_other(empty, tmp_path, monkeypatch):
    """Else the writer would end over it each time that it begins, and no answer of anybody's became a card any more."""
    (tmp_path / "cards.db").write_bytes(empty.read_bytes())
    real = writing.ran_of
    monkeypatch.setattr(writing, "ran_of", lambda each: 1 / 0 if each.session == "poison" else real(each))
    records = [msgspec.msgpack.encode(kept(session=session)) for session in ("poison", "sound")]
    with closing(open_store(f"sqlite:///{tmp_path}/cards.db")) as store, closing(Intake(store, detectors_of(True))) as intake:
        refused = writing.Writer(store, intake, "c1", Exporter("")).post(records)
        assert refused == {0: "no card can be made of it: ZeroDivisionError('division by zero')"} and count_cards(store) == 1


def test_the_recorder_outlives_a_machine_that_has_no_file_left_to_open(tmp_path, monkeypatch):
    """What a thread that ended would lose: every answer from then on."""
    spool, real, tries = Spool(tmp_path, 10**6), Spool.keep, list[int]()

    def keep(self, cards):
        tries.append(len(cards))
        if len(tries) == 1:
            raise OSError(24, "Too many open files")
        return real(self, cards)

    def put(self, card):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Spool, "keep", keep)
    monkeypatch.setattr(Spool, "put", put)
    recorder = Recorder(spool)
    recorder.keep(kept())
    until = time.monotonic() + 20
    while not ((batch := spool.unsent(10, 10**6)) and recorder.why_not() == "") and time.monotonic() < until:
        time.sleep(0.02)
    assert batch is not None and len(batch.cards) == 1 and tries == [1, 1] and recorder.why_not() == ""
    recorder.close()


# --- what stands on a card --------------------------------------------------------------------------------------------------------


def test_a_call_that_comes_piece_by_piece_is_one_call():
    pieces = (
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"sea","arguments":""}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":1,"id":"b","function":{"name":"read","arguments":"{}"}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"rch","arguments":"{\\"q\\": "}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":4}}\n\ndata: [DONE]\n\n',
    )
    turn = turn_of(events_of(b"".join(pieces), streamed=True), streamed=True)
    assert [(call.call_id, call.name, call.arguments) for call in turn.calls] == [("a", "search", {"q": 1}), ("b", "read", {})]
    assert (turn.context_tokens, turn.sampled_tokens) == (7, 4)


@given(st.binary(), st.binary(), st.booleans())
def test_whatever_came_back_makes_a_card(asked, answered, streamed):
    ran = ran_of(kept(asked=asked, answered=answered, streamed=streamed))
    assert ran.rollout.ending in (Ending.ANSWERED, Ending.INFRA_FAILED)


STREAM = b'data: {"choices":[{"delta":{"content":"half a"}}]}\n\n'


@pytest.mark.parametrize(
    ("answered", "streamed", "said"),
    [
        (STREAM + b'data: {"error": {"message": "engine died", "code": 500}}\n\ndata: [DONE]\n\n', True, "engine died"),
        (b'{"error": {"message": "engine died"}}', False, "engine died"),
        (b"<html>proxy</html>", False, "held no answer"),
        (b"data: [DONE]\n\n", True, "held no answer"),
        (b'{"choices": []}', False, "held no answer"),
    ],
)
def test_an_answer_with_an_error_or_nothing_in_it_is_a_failure_whatever_its_status(answered, streamed, said):
    """Model servers that fail within a stream have sent their 200 by then."""
    kept_of_a_release = kept(answered=answered, streamed=streamed, status=200, release=7)
    ran = ran_of(kept_of_a_release)
    assert ran.rollout.ending is Ending.INFRA_FAILED and said in ran.rollout.reason and ran.rollout.answer == ""
    turn = counted(kept_of_a_release, ran)
    assert turn is not None and turn.failed and not turn.to_grade


def test_no_caller_says_under_which_release_its_card_was_made():
    """Evidence goes by that. Everything else of its metadata is the caller's."""
    asked = b'{"messages": [{"role": "user", "content": "hi"}], "metadata": {"release": 7, "given_up": "no", "mine": 1}}'
    told = {release: job_card(ran_of(kept(asked=asked, release=release)), "production", "c", "t").metadata for release in (0, 3)}
    assert told[0]["mine"] == 1 and "release" not in told[0] and "given_up" not in told[0]
    assert told[3]["release"] == 3


def test_an_empty_answer_and_one_of_calls_alone_are_answers():
    for message in (b'{"content": ""}', b'{"content": null, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}'):
        assert ran_of(kept(answered=b'{"choices": [{"message": %s}]}' % message, status=200)).rollout.ending is Ending.ANSWERED


def test_pictures_leave_their_mark_and_texts_in_parts_are_joined():
    content = b'[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}, {"type": "text", "text": "b"}]'
    ran = ran_of(kept(asked=b'{"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": ' + content + b"}]}"))
    assert [(said.role, said.content) for said in ran.rollout.opening] == [("system", "d"), ("user", "a[image_url]b")]


# --- spans and metrics --------------------------------------------------------------------------------------------------------------


def test_finished_requests_go_to_a_collector_as_spans_without_a_word_of_them(open_world, in_thread):
    taken, came = [], threading.Event()

    async def collector(scope, receive, send):
        if scope["type"] != "http":
            return
        taken.append((scope["path"], (await receive())["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        came.set()

    with in_thread(collector) as address:
        world = open_world(collector=endpoint_of({"OTEL_EXPORTER_OTLP_ENDPOINT": address}))
        answer = world.chat(headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
        assert came.wait(10)
    path, body = taken[0]
    (span,) = read_protobuf(body).spans
    assert path == "/v1/traces" and (span.trace_id, span.parent_id) == ("ab" * 16, "cd" * 8)
    assert span.name == "chat plain" and not span.failed and span.end_ns > span.start_ns
    assert span.attributes["gen_ai.usage.output_tokens"] == 3 and span.attributes["rft.rollout_id"] == answer.headers["x-request-id"]
    assert b"who are you" not in body and b"I am" not in body
    assert (world.live.headers or world.second.headers)[0]["traceparent"].startswith("00-abab"), "the upstream goes on in the same trace"


def test_metrics_count_what_was_answered_and_what_was_refused(open_world, figure):
    world = open_world(tenant_quotas={"acme": Quotas(requests_per_minute=2)})
    told = {"tenant": "acme", "service": "plain", "arm": "candidate", "status": "200"}
    before = figure("rft_requests_total", **told), figure("rft_refused_total", tenant="acme", why="requests_per_minute")
    slo = figure("rft_requests_within_slo_total", tenant="acme")
    assert [world.chat().status_code for _ in range(3)] == [200, 200, 429]
    assert figure("rft_requests_total", **told) - before[0] == 2
    assert figure("rft_refused_total", tenant="acme", why="requests_per_minute") - before[1] == 1
    assert figure("rft_requests_within_slo_total", tenant="acme") - slo == 2
    until = time.monotonic() + 20
    while (figure("rft_cards_lag_seconds") or count_cards(world.store) < 2) and time.monotonic() < until:
        time.sleep(0.05)
    assert figure("rft_cards_lag_seconds") == 0 and count_cards(world.store) == 2


def test_metrics_are_for_whoever_has_the_servers_bearer(in_thread):
    from litestar import Litestar

    from serving.auth import Bearer
    from serving.metrics import metrics_route

    with in_thread(Litestar([metrics_route(Bearer("secret"))], openapi_config=None, logging_config=None)) as address:
        assert httpx.get(f"{address}/metrics").status_code == 401
        request = urllib.request.Request(f"{address}/metrics", headers={"Authorization": "Bearer secret"})
        with urllib.request.urlopen(request) as answer:
            assert b"rft_upstream_up" in answer.read() and "version=" in answer.headers["content-type"]
