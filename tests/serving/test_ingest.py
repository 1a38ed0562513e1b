"""POST /v1/cards and /v1/traces over real HTTP: 200 is durable, and every refusal says what to do."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from litestar import Litestar
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from agent_rft.contracts.jobcards import JobCard
from observability.access import ROLES, Caller
from observability.intake import Intake
from observability.ledger import verify
from observability.otlp.json_form import write_json
from observability.otlp.protobuf import write_protobuf
from observability.otlp.spans import Span
from observability.records import RecordedCard
from observability.redaction.detectors import detectors_of
from observability.roots import LedgerFiles
from observability.store import Store, open_store
from observability.tables import job_cards, trace_parts
from observability.users import add_user, new_key
from serving import ingest
from serving.app import store_routes
from serving.server import running_server

HERE = Path(__file__).parent
NOW = dt.datetime.now(dt.UTC)
MakeCard = Callable[..., JobCard]
PROTOBUF, JSON = {"content-type": "application/x-protobuf"}, {"content-type": "application/json"}
START = 1_795_233_612_250_000_000


@pytest.fixture(scope="module")
def make_card() -> MakeCard:
    return runpy.run_path(str(HERE.parent / "observability" / "sample_cards.py"))["make_card"]


class Served(NamedTuple):
    store: Store
    intake: Intake
    client: httpx.Client
    viewer: str


def key_of(store: Store, name: str, role: str) -> str:
    boss = Caller("acme", "boss", "admin", ROLES["admin"], "")
    add_user(store, boss, name, role, NOW)
    return new_key(store, boss, name, NOW).text


@pytest.fixture(scope="module")
def served(in_thread: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('store')}/cards.db")
    intake = Intake(store, detectors_of(True), most_bytes=ingest.MOST_BODY)
    app = Litestar([store_routes(store, LedgerFiles.of(store, None), intake)], logging_config=None)
    key, viewer = key_of(store, "agent", "operator"), key_of(store, "reader", "viewer")
    with in_thread(app) as address, httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
        yield Served(store, intake, client, viewer)
    intake.close()
    store.close()


def line(card: JobCard, **changed: Any) -> Any:
    """A card as a client sends it."""
    return msgspec.to_builtins(RecordedCard(card, NOW), enc_hook=repr) | changed


def trace(number: int, **changed: Any) -> Span:
    told = {"gen_ai.operation.name": "invoke_agent", "gen_ai.output.messages": f"answer {number}"}
    own: dict[str, Any] = {"trace_id": f"{number:032x}", "span_id": f"{number:016x}", "attributes": told}
    return Span(**(own | {"start_ns": START, "end_ns": START + 10**9} | changed))


def answers(store: Store) -> Counter[str]:
    with store.reading() as connection:
        return Counter(connection.scalars(sa.select(job_cards.c.answer).where(job_cards.c.tenant == "acme")))


# --- what is taken ------------------------------------------------------------------------------------------------------


def test_cards_are_stored_once_and_what_is_not_is_told_by_name(served: Served, make_card: MakeCard):
    source = {"name": "an agent", "announced": 2, "sample_rate": 1.0}
    body = {"cards": [line(make_card("a", tenant="acme"), number=1), line(make_card("b", tenant="evil"), number=2)], "source": source}
    why = "it says that it is of tenant 'evil'; the key it came with is of 'acme'"
    first = served.client.post("/v1/cards", json=body)
    assert (first.status_code, first.json()) == (200, {"stored": 1, "known": 0, "refused": [{"rollout_id": "b", "why": why}]})
    packed = gzip.compress(json.dumps(body).encode())
    again = served.client.post("/v1/cards", content=packed, headers=JSON | {"content-encoding": "gzip"})
    assert again.json() == {"stored": 0, "known": 1, "refused": [{"rollout_id": "b", "why": why}]}


@pytest.mark.parametrize(("kind", "write"), [(PROTOBUF, write_protobuf), (JSON, write_json)])
@pytest.mark.parametrize("pack", [False, True])
def test_traces_are_stored_and_the_answer_is_otlps(served: Served, kind: dict[str, str], write: Any, pack: bool):
    number = 100 + 2 * len(kind["content-type"]) + pack
    body = write([trace(number), trace(number + 50, span_id="0" * 16)])
    if pack:
        body, kind = gzip.compress(body), kind | {"content-encoding": "gzip"}
    answer = served.client.post("/v1/traces", content=body, headers=kind)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith(kind["content-type"])
    if kind["content-type"] == JSON["content-type"]:
        told = answer.json()["partialSuccess"]
        rejected, why = int(told["rejectedSpans"]), told["errorMessage"]
    else:
        success = ExportTraceServiceResponse.FromString(answer.content).partial_success
        rejected, why = success.rejected_spans, success.error_message
    assert rejected == 1
    assert "not 16 hex digits that are not all 0" in why
    assert answers(served.store)[f"answer {number}"] == 1
    with served.store.reading() as connection:
        assert list(connection.scalars(sa.select(trace_parts.c.spans).where(trace_parts.c.trace_id == f"{number:032x}"))) == [1]


def test_two_clients_that_send_the_same_at_once_store_it_once(served: Served):
    body = write_protobuf([trace(number) for number in range(300, 320)])
    seen = list[int]()
    clients = [
        threading.Thread(target=lambda: seen.append(served.client.post("/v1/traces", content=body, headers=PROTOBUF).status_code))
        for _ in range(4)
    ]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert seen == [200] * 4
    assert {answers(served.store)[f"answer {number}"] for number in range(300, 320)} == {1}
    assert list(verify(served.store, "acme")) == []


@pytest.mark.parametrize("year", [2000, 9999])
def test_when_a_card_came_is_for_the_server_to_say(served: Served, make_card: MakeCard, year: int):
    """Retention counts from it: a sender could have a card kept for ever, or gone at once."""
    sent = line(make_card(f"from-{year}", tenant="acme"), recorded_at=f"{year}-01-01T00:00:00Z")
    before = dt.datetime.now(dt.UTC)
    assert served.client.post("/v1/cards", json={"cards": [sent]}).json()["stored"] == 1
    with served.store.reading() as connection:
        found = connection.scalar(sa.select(job_cards.c.recorded_at).where(job_cards.c.rollout_id == f"from-{year}"))
    assert found is not None and before <= found <= dt.datetime.now(dt.UTC)


# --- what is not --------------------------------------------------------------------------------------------------------


def test_a_batch_with_faults_is_refused_whole_with_all_of_them(served: Served, make_card: MakeCard):
    broken = line(make_card("x1", tenant="acme")) | {"recorded_at": "yesterday"}
    untyped = line(make_card("x2", tenant="acme")) | {"card": 7}
    answer = served.client.post("/v1/cards", json={"cards": [broken, line(make_card("x3", tenant="acme")), untyped]})
    assert answer.status_code == 400
    assert [(fault["where"], fault["what"].partition(" - ")[0]) for fault in answer.json()["faults"]] == [
        ("cards[0]", "Invalid RFC3339 encoded datetime"),
        ("cards[2]", "Expected `object`, got `int`"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("/v1/cards", b"{", JSON, 400, "this is no batch of cards"),
        ("/v1/cards", b"[]", JSON, 400, "this is no batch of cards"),
        ("/v1/cards", b'{"cards": [], "sauce": 1}', JSON, 400, "sauce"),
        ("/v1/cards", b"{}", {"content-type": "text/plain"}, 415, "application/json"),
        ("/v1/cards", b"{}", JSON | {"content-encoding": "br"}, 415, "gzip"),
        ("/v1/cards", b"no gzip", JSON | {"content-encoding": "gzip"}, 400, "no gzip"),
        ("/v1/cards", gzip.compress(b"{}", mtime=0)[:-4], JSON | {"content-encoding": "gzip"}, 400, "ends in the middle"),
        ("/v1/cards", b" " * (ingest.MOST_BODY + 1), JSON, 413, "16000000"),
        ("/v1/cards", gzip.compress(b" " * (ingest.MOST_BODY + 1), 9, mtime=0), JSON | {"content-encoding": "gzip"}, 413, "16000000"),
        ("/v1/traces", b"\xff\xff", PROTOBUF, 400, "not an OTLP request in protobuf"),
        ("/v1/traces", b"{]", JSON, 400, "not an OTLP request in JSON"),
        ("/v1/traces", b"", {}, 415, "application/x-protobuf"),
        ("/v1/traces", b"", PROTOBUF | {"authorization": "Bearer rft_no_key"}, 401, "key"),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_with_its_cure(
    served: Served, path: str, body: bytes, headers: dict[str, str], status: int, says: str
):  # fmt: skip
    answer = served.client.post(path, content=body, headers=headers)
    assert answer.status_code == status
    assert says in answer.text


def test_who_may_only_read_may_not_send(served: Served):
    for path in ("/v1/cards", "/v1/traces"):
        answer = served.client.post(path, json={"cards": []}, headers={"authorization": f"Bearer {served.viewer}"})
        assert answer.status_code == 403


def test_when_there_is_no_room_the_answer_says_when_to_come_back(served: Served, make_card: MakeCard):
    body = {"cards": [line(make_card("later", tenant="acme"))]}
    with served.intake.room(ingest.MOST_BODY, "acme"):
        answer = served.client.post("/v1/cards", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert served.client.post("/v1/cards", json=body).json()["stored"] == 1


def test_when_the_store_is_away_the_answer_says_when_to_come_back(
    served: Served, make_card: MakeCard, monkeypatch: pytest.MonkeyPatch
):  # fmt: skip
    body = {"cards": [line(make_card("away", tenant="acme"))]}
    with monkeypatch.context() as patched, open_store(served.store.address).writing():
        patched.setattr(served.intake, "_patience", 0.3)
        answer = served.client.post("/v1/cards", json=body)
        traced = served.client.post("/v1/traces", content=write_protobuf([trace(900)]), headers=PROTOBUF)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (traced.status_code, traced.headers["retry-after"], traced.headers["content-type"]) == (503, "5", "application/x-protobuf")
    assert b"did not take it within 0.3 s" in traced.content
    outcome = served.client.post("/v1/cards", json=body).json()
    assert outcome["stored"] + outcome["known"] == 1


# --- a killed server ----------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_before_a_kill_is_stored_and_once(tmp_path: Path):
    """A server is killed while four clients send; what got no answer is sent again to the next one over the same store."""
    url = f"sqlite:///{tmp_path}/cards.db"
    store = open_store(url)
    key = key_of(store, "agent", "operator")
    acknowledged, unanswered, lock = set[int](), list(range(1000, 1400)), threading.Lock()

    def send(address: str) -> None:
        with httpx.Client(base_url=address, headers=PROTOBUF | {"authorization": f"Bearer {key}"}, timeout=10) as client:
            while True:
                with lock:
                    numbers = [unanswered.pop() for _ in range(min(5, len(unanswered)))]
                if not numbers:
                    return
                try:
                    answer = client.post("/v1/traces", content=write_protobuf([trace(number) for number in numbers]))
                    answered = answer.status_code == 200 and not answer.content
                except httpx.TransportError:
                    answered = False
                with lock:
                    (acknowledged.update if answered else unanswered.extend)(numbers)
                if not answered:
                    return

    for killed in (True, False):
        command = [sys.executable, str(HERE / "store_server.py")]
        with running_server(lambda port: [*command, str(port), url], environment={"PYTHONPATH": os.getcwd()}) as server:  # noqa: B023
            clients = [threading.Thread(target=send, args=[server.base_url]) for _ in range(4)]
            for each in clients:
                each.start()
            while killed and len(acknowledged) < 20:
                time.sleep(0.001)
            if killed:
                os.kill(server.pid, signal.SIGKILL)
            for each in clients:
                each.join()
        assert bool(unanswered) is killed
        found = answers(store)
        assert [number for number in acknowledged if found[f"answer {number}"] != 1] == []
        assert max(found.values(), default=1) == 1
        assert list(verify(store, "acme")) == []
    assert len(acknowledged) == 400
    store.close()
