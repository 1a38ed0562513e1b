"""POST /v1/agent/runs at a real server with real tools, before a model server that does what a test tells it: what a caller sees."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import sqlalchemy as sa

from observability import approvals
from observability.access import ROLES, Caller
from observability.ledger import verify
from observability.release_tables import agent_runs, release_turns
from observability.store import Store, open_store
from observability.tables import job_cards
from serving.server import RunningServer, running_server

sys.path.insert(0, str(Path(__file__).parent))
from run_world import new_key, release_first, release_trial

HERE = Path(__file__).parent


class Model:
    """Says a tool call first, then what came of it. `hold` stops it before the answer."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.asked = list[tuple[str, dict[str, Any]]]()
        self.dead = frozenset[str]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        who, body, more = scope["path"].split("/")[1], b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        status, told = (500, {}) if who in self.dead else (200, {"data": []})
        if body:
            self.asked.append((who, json.loads(body)))
            if status == 200:
                told = await self._speak(json.loads(body)["messages"])
        answer = json.dumps(told).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(answer)).encode())]})
        await send({"type": "http.response.body", "body": answer})

    async def _speak(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        told = [message["content"] for message in messages if message["role"] == "tool"]
        question = next(message["content"] for message in messages if message["role"] == "user")
        if told:
            while not self.go.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            said: dict[str, Any] = {"content": f"It says: {told[-1]}"}
        else:
            name, arguments = (
                ("publish", {"name": "note.md", "text": "hello"}) if "publish" in question else ("search", {"query": "Henderson"})
            )
            said = {
                "content": None,
                "tool_calls": [{"id": "x", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}],
            }
        choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 5}}


class Place(NamedTuple):
    store: Store
    url: str
    model: Model
    model_url: str
    folder: Path
    key: str

    def server(self) -> AbstractContextManager[RunningServer]:
        words = (self.url, self.model_url, str(self.folder))
        return running_server(lambda port: [sys.executable, str(HERE / "run_server.py"), str(port), *words])

    def post(self, server: RunningServer, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.post(f"{server.base_url}/v1/agent/runs", json={"model": "plain", **body}, headers=headers, timeout=30)

    def get(self, server: RunningServer, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{server.base_url}/v1/agent/runs/{path}", headers={"authorization": f"Bearer {self.key}", **headers}, timeout=30)

    def rows(self, table: sa.Table) -> list[sa.RowMapping]:
        with self.store.reading() as connection:
            return list(connection.execute(sa.select(table)).mappings())


@pytest.fixture(scope="module")
def place(in_thread: Any, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("runs")
    url = f"sqlite:///{folder}/cards.db"
    (folder / "cards.db").write_bytes(empty.read_bytes())
    (folder / "outbox").mkdir()
    store, model = open_store(url), Model()
    key = new_key(store, "acme")
    release_first(store, "acme", "plain")
    release_first(store, "acme", "trial")
    release_trial(store, "acme", "trial", 1.0)
    with in_thread(model) as model_url:
        yield Place(store, url, model, model_url, folder, key)
    store.close()


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[RunningServer]:
    with place.server() as running:
        yield running


def events_of(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Of a stream's text; comments are heartbeats."""
    told = list[tuple[int, str, dict[str, Any]]]()
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            told.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return told


def test_a_question_is_answered_with_our_tools(place, server):
    answer = place.post(server, input="What does Henderson say?", session="s-1", item={"id": "row-1", "reference_answer": "13.4%"})
    told = answer.json()
    assert (answer.status_code, told["status"], told["ending"], told["model"], told["session"]) == (200, "done", "answered", "plain", "s-1")
    assert told["answer"].startswith("It says: filings/henderson-10q-2025-q3.html") and answer.headers["x-rft-arm"] == "candidate", (
        "in full, and still counted"
    )
    assert told["usage"] == {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30, "tool_calls": 1}, (
        "20 + 5, then no context more"
    )
    card = next(card for card in place.rows(job_cards) if card["rollout_id"] == told["rollout_id"])
    assert (card["row_id"], card["reference_answer"], card["checkpoint"], card["kind"]) == ("row-1", "13.4%", "weights-live", "production")
    asked = next(body for who, body in place.model.asked if who == "live")
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."} and "13.4%" not in json.dumps(asked)


def test_a_stream_tells_each_event_once_and_goes_on_where_it_broke(place, server):
    whole = events_of(place.post(server, input="Henderson?", stream=True).text)
    assert [(number, kind) for number, kind, _ in whole] == list(enumerate(("run", "turn", "tool_call", "tool_result", "answer", "end"), 1))
    run = whole[0][2]["id"]
    assert events_of(place.get(server, f"{run}/events", **{"last-event-id": "3"}).text) == whole[3:]
    assert events_of(place.get(server, f"{run}/events?after=5").text) == whole[5:]
    assert place.get(server, run).json()["answer"] == whole[4][2]["text"]


def test_a_caller_that_leaves_does_not_stop_its_run(place, server):
    place.model.go.clear()
    try:
        with httpx.stream(
            "POST",
            f"{server.base_url}/v1/agent/runs",
            json={"model": "plain", "input": "Henderson?", "stream": True},
            headers={"authorization": f"Bearer {place.key}"},
            timeout=30,
        ) as response:
            run = response.headers["x-rft-run"]
    finally:
        place.model.go.set()
    assert events_of(place.get(server, f"{run}/events").text)[-1][2]["ending"] == "answered"


def test_the_same_id_is_the_same_run_for_one_tenant_and_another_request_is_refused(place, server):
    first, again = (place.post(server, input="Henderson?", id="mine").json() for _ in range(2))
    assert first == again
    refused = place.post(server, input="Atlas?", id="mine")
    assert refused.status_code == 409 and "another request" in refused.json()["error"] and refused.json()["cure"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": ""}, 400, "length >= 1"),
        ({"input": []}, 400, "length >= 1"),
        ({"input": 3}, 400, "Expected `str | array`"),
        ({"input": "x", "modle": "y"}, 400, "unknown field `modle`"),
        ({"input": "x", "model": "reserch"}, 404, "no service 'reserch'"),
        ({"input": "x", "id": "a\nb"}, 400, "the run cannot be begun"),
        ({"input": [{"role": "assistant", "content": "x"}]}, 400, "the run cannot be begun"),
        ({"input": "x" * 1_000_001}, 413, "larger than"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(place, server, body, status, said):
    refused = place.post(server, **body)
    assert refused.status_code == status and said in refused.json()["error"]
    assert refused.json()["cure"] or all(fault["cure"] for fault in refused.json()["faults"])


def test_keys_open_their_own_tenants_runs_only(place, server):
    run = place.post(server, input="Henderson?").json()["id"]
    release_first(place.store, "other", "plain")
    other, reader = (new_key(place.store, *who) for who in (("other", "eve"), ("acme", "vic", "viewer")))
    assert place.post(server, key="rft_no_key", input="x").status_code == 401
    assert place.post(server, key=reader, input="x").status_code == 403
    theirs = {"authorization": f"Bearer {other}"}
    assert place.get(server, run, **theirs).status_code == 404 == place.get(server, f"{run}/events", **theirs).status_code
    assert place.get(server, "none").status_code == 404


def test_a_dead_candidate_costs_its_users_nothing(place, server):
    place.model.dead = frozenset({"new"})
    try:
        told = place.post(server, model="trial", input="Henderson?", session="s-dead").json()
    finally:
        place.model.dead = frozenset()
    assert told["ending"] == "answered" and told["rollout_id"] != told["id"]
    turn = next(turn for turn in place.rows(release_turns) if turn["rollout_id"] == told["id"])
    assert (turn["arm"], turn["failed"], turn["session"]) == ("candidate", True, "s-dead")


# --- what dies ----------------------------------------------------------------------------------------------------------------


def test_a_killed_gateways_run_is_gone_on_with_by_another_and_no_event_is_lost_or_told_twice(place, server):
    place.model.go.clear()
    with place.server() as doomed:
        with httpx.stream(
            "POST",
            f"{doomed.base_url}/v1/agent/runs",
            json={"model": "plain", "input": "Henderson?", "stream": True},
            headers={"authorization": f"Bearer {place.key}"},
            timeout=30,
        ) as response:
            run, seen = response.headers["x-rft-run"], ""
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
                for piece in response.iter_text():
                    seen += piece
                    if "event: tool_result" in seen:
                        os.kill(doomed.pid, signal.SIGKILL)
        place.model.go.set()
        before = events_of(seen)
        assert [kind for _, kind, _ in before] == ["run", "turn", "tool_call", "tool_result"]
        began = time.monotonic()
        after = events_of(place.get(server, f"{run}/events", **{"last-event-id": str(before[-1][0])}).text)
        waited = time.monotonic() - began
    assert [(number, kind) for number, kind, _ in after] == [(5, "answer"), (6, "end")]
    assert after[1][2]["rollout_id"] == run and waited < 15
    assert len([card for card in place.rows(job_cards) if card["metadata"].get("run") == run]) == 1
    (row,) = [row for row in place.rows(agent_runs) if row["rollout_id"] == run]
    assert row["state"] == "done"


def test_a_high_impact_call_waits_for_a_person_whatever_dies_and_runs_once(place, server):
    with place.server() as doomed:
        told = place.post(doomed, input="Please publish it.")
        assert told.status_code == 202 and told.json()["status"] == "waiting"
        run, approval = told.json()["id"], told.json()["approval"]["id"]
        os.kill(doomed.pid, signal.SIGKILL)
    assert not list(place.folder.glob("outbox/*"))
    assert place.get(server, run).json()["status"] == "waiting"
    ann = Caller("acme", "kim", "approver", ROLES["approver"], "")
    approvals.decide(place.store, ann, approval, "approve", "", dt.datetime.now(dt.UTC))
    events = events_of(place.get(server, f"{run}/events").text)
    assert [kind for _, kind, _ in events] == ["run", "turn", "tool_call", "waiting", "tool_result", "answer", "end"]
    assert len(list(place.folder.glob("outbox/*"))) == 1
    assert approvals.state(place.store, "acme", approval) == "used"
    assert list(verify(place.store, "acme")) == []
