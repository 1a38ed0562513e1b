"""Those who send, and keep outside what they were told is stored: `clients.py cards|traces URL KEY FOLDER SPOOLS NAME TENANT`, until
their input ends. Each id of which the server has said that it is durable is a line of FOLDER/NAME.acknowledged."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from observability.remote import CardServer, HttpRecorder
from observability.spool import Patience

STEPS = 4
"""Of a card: two messages, a call and its result."""
SPANS = 3
"""Of a trace."""
AT_ONCE = 4
PATIENCE = Patience(backoff_seconds=0.05, longest_seconds=0.3, idle_seconds=0.005)
PATIENT = 180.0
"""Seconds that a sender waits for its server: longer than any fault lasts."""


def card(rollout_id: str, tenant: str) -> JobCard:
    call, result = ToolCall("c1", "search", {"query": f"margin {rollout_id}"}), ToolResult("c1", f"{rollout_id}: 13.4% " * 40)
    turns = [Turn("I look it up.", calls=(call,), results={"c1": result}), Turn("13.4%")]
    opening = (Message("user", "What was the operating margin?"),)
    started = "2026-11-21T04:00:00+00:00"
    rollout = Rollout(rollout_id, opening, (), Limits(), turns=turns, ending=Ending.ANSWERED, answer="13.4%", started_at=started)
    return JobCard(
        rollout_id=rollout_id,
        kind="production",
        tenant=tenant,
        run_id="faults",
        step=None,
        row_id="row-1",
        sample_index=0,
        started_at=started,
        rollout=rollout,
        reference_answer=None,
        metadata={},
        grade=Grade(GraderRef("numeric", "1", "a1b2"), 1.0, True),
        versions=Versions(code="1", checkpoint="c"),
        cost=Cost(tool_calls=1),
    )


def send_cards(url: str, key: str, folder: Path, spools: Path, name: str, tenant: str, ended: threading.Event) -> None:
    acknowledged = (folder / f"{name}.acknowledged").open("a")
    with HttpRecorder(CardServer(url, key, timeout_seconds=15), spools / f"{name}.spool", patience=PATIENCE, part=name) as recorder:
        for number in itertools.count():
            ids = [f"{name}-{number}-{one}" for one in range(AT_ONCE)]
            for rollout_id in ids:
                recorder.record(card(rollout_id, tenant))
            recorder.flush(PATIENT)
            print(*ids, sep="\n", file=acknowledged, flush=True)
            if ended.is_set():
                return recorder.close(PATIENT)


def trace(trace_id: str) -> list[dict[str, object]]:
    def span(number: int, name: str, attributes: dict[str, str]) -> dict[str, object]:
        told = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
        times = {"startTimeUnixNano": str(1_795_000_000_000_000_000 + number), "endTimeUnixNano": str(1_795_000_001_000_000_000)}
        parent = {"parentSpanId": f"{1:016x}"} if number > 1 else {}
        return {"traceId": trace_id, "spanId": f"{number:016x}", "name": name, "attributes": told, **times, **parent}

    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.output.messages": "13.4%"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search", "gen_ai.tool.call.id": "c1"}
    return [span(1, "invoke_agent", agent), span(2, "chat", {"gen_ai.operation.name": "chat"}), span(3, "execute_tool", tool)]


def send_traces(url: str, key: str, folder: Path, _spools: Path, name: str, _tenant: str, ended: threading.Event) -> None:
    """The same bytes again and again until they are taken, as exporters do. The status of each answer is kept beside."""
    acknowledged, answers = (folder / f"{name}.acknowledged").open("a"), (folder / f"{name}.answers").open("a")
    while not ended.is_set():
        ids = [secrets.token_hex(16) for _ in range(2)]
        spans = [span for trace_id in ids for span in trace(trace_id)]
        body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()
        while (status := answer_to(url, key, body)) != 200:
            print(status or "none", file=answers, flush=True)
            time.sleep(0.1)
        print(status, file=answers, flush=True)
        print(*ids, sep="\n", file=acknowledged, flush=True)


def answer_to(url: str, key: str, body: bytes) -> int | None:
    """Its status; None where no answer came."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=15)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/traces", body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
        if answer.status == 200:
            assert "partialSuccess" not in json.loads(told) or not json.loads(told)["partialSuccess"], told
        return answer.status
    return None


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    what, url, key, folder, spools, name, tenant = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    {"cards": send_cards, "traces": send_traces}[what](url, key, Path(folder), Path(spools), name, tenant, ended)
    os._exit(0)
