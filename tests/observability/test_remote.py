"""Cards on their way to a server: training never waits, and what was spooled arrives, whatever happens on either side."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import pickle
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

import observability.remote as remote
from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.messages import ToolCall
from observability.cards import count_cards, find_card
from observability.ingest import insert_cards
from observability.records import RecordedCard, without_token_ids
from observability.remote import CardServer, HttpRecorder, send_spool, spool_folder
from observability.sources import Said, disclosed
from observability.spool import Patience, Spool, SpoolFull
from observability.store import open_store

HERE = Path(__file__).parent
QUICK = Patience(backoff_seconds=0.01, longest_seconds=0.05, idle_seconds=0.005)


class ToyServer:
    """Says what POST /v1/cards says, over a real store and real HTTP. `faults` are statuses that it answers with first, or None for
    an answer that never arrives, after the cards were stored."""

    def __init__(self, store, *faults, tenant="local", port=0):
        self.faults = list(faults)
        self.posts = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.posts += 1
                if self.headers["Authorization"] != "Bearer the-key" or self.path != "/v1/cards":
                    return self.answer(401, {"error": "no such key", "cure": "", "faults": []})
                fault = outer.faults.pop(0) if outer.faults else 200
                if fault not in (200, None):
                    return self.answer(fault, {"error": "not now", "faults": []})
                cards = msgspec.convert(body["cards"], list[RecordedCard])
                mine = [recorded for recorded in cards if recorded.card.tenant == tenant]
                source = body.get("source")
                said = [Said(tenant=tenant, source=source["name"], announced=source["announced"])] if source else []
                new = insert_cards(store, mine, said)
                if fault is None:
                    self.close_connection = True
                    return self.connection.shutdown(2)
                refused = [{"rollout_id": one.card.rollout_id, "why": "another tenant's"} for one in cards if one.card.tenant != tenant]
                return self.answer(200, {"stored": new, "known": len(mine) - new, "refused": refused})

            def answer(self, status, told):
                text = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                if status in (429, 503):
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(sqlite_store):
    with ToyServer(sqlite_store) as server:
        yield server


def recorder_to(server, folder, **changed):
    return HttpRecorder(CardServer(server.url, "the-key"), folder / "spool", **({"patience": QUICK} | changed))


def test_what_flush_returned_from_is_in_the_servers_store_as_it_was_recorded(server, sqlite_store, make_card, tmp_path):
    with recorder_to(server, tmp_path, part="train run-7") as recorder:
        for number in range(120):
            recorder.record(make_card(f"card-{number}"))
        recorder.flush()
        assert (recorder.acknowledged, recorder.refused, count_cards(sqlite_store)) == (120, 0, 120)
        assert find_card(sqlite_store, "card-7").card == without_token_ids(make_card("card-7"))
    (source,) = disclosed(sqlite_store, "local")
    assert source.complete and (source.came, source.announced) == (120, 120) and source.name.startswith("train run-7 on ")
    assert Spool(tmp_path / "spool", 1000).bytes_used() == 0


def test_a_server_that_sheds_fails_or_hangs_up_gets_every_card_once_in_the_end(sqlite_store, make_card, tmp_path):
    with ToyServer(sqlite_store, 429, 503, 200, None, 500, 401, 200, None, None) as server:
        with recorder_to(server, tmp_path) as recorder:
            for number in range(30):
                recorder.record(make_card(f"card-{number}"))
                if not number % 5:
                    recorder.flush(10)
        assert not server.faults
    assert count_cards(sqlite_store) == 30
    assert disclosed(sqlite_store, "local")[0].complete


def test_recording_waits_for_neither_disk_nor_server(sqlite_store, make_card, tmp_path, monkeypatch):
    slow = Spool.keep
    monkeypatch.setattr(Spool, "keep", lambda *given: (time.sleep(0.2), slow(*given))[1])
    with ToyServer(sqlite_store, *[503] * 1000) as server:
        recorder = recorder_to(server, tmp_path)
        seconds = []
        for number in range(300):
            card = make_card(f"card-{number}")
            started = time.perf_counter()
            recorder.record(card)
            seconds.append(time.perf_counter() - started)
        assert statistics.median(seconds) < 0.001
        assert sum(seconds) < 0.2  # not one write of the spool was waited for
        server.faults.clear()
        recorder.close()
    assert count_cards(sqlite_store) == 300


def test_a_server_that_is_away_at_the_end_is_told_of_and_the_next_run_sends_what_was_left(sqlite_store, make_card, tmp_path):
    with ToyServer(sqlite_store) as gone:
        recorder = recorder_to(gone, tmp_path)
    recorder.record(make_card("card-1"))
    with pytest.raises(
        InfraError, match=r"2 of 2 records are not durable there .* They are safe in .*spool, and go there with the next run"
    ):
        recorder.close(timeout=0.3)
    with ToyServer(sqlite_store, port=gone.port) as server:
        with recorder_to(server, tmp_path) as following:
            following.record(make_card("card-2"))
    assert count_cards(sqlite_store) == 2
    assert [source.complete for source in disclosed(sqlite_store, "local")] == [True, True]


def test_a_spool_without_a_run_is_sent_by_hand(server, sqlite_store, make_card, tmp_path):
    with ToyServer(sqlite_store) as gone:
        recorder = recorder_to(gone, tmp_path)
    recorder.record(make_card("card-1"))
    with pytest.raises(InfraError):
        recorder.close(timeout=0.1)
    with pytest.raises(InfraError, match="the rest is safe in"):
        send_spool(CardServer(gone.url, "the-key"), tmp_path / "spool")
    send_spool(CardServer(server.url, "the-key"), tmp_path / "spool")
    assert find_card(sqlite_store, "card-1") and disclosed(sqlite_store, "local")[0].complete


def test_what_the_server_refuses_is_set_aside_counted_and_a_gap(server, sqlite_store, make_card, tmp_path):
    with capture_logs() as logs, recorder_to(server, tmp_path) as recorder:
        for number, tenant in enumerate(("local", "other", "local")):
            recorder.record(make_card(f"card-{number}", tenant=tenant))
        recorder.flush()
        assert (recorder.acknowledged, recorder.refused) == (2, 1)
    (line,) = (tmp_path / "spool" / "refused.jsonl").read_text().splitlines()
    aside = json.loads(line)
    assert aside["why"] == "another tenant's" and json.loads(aside["card"])["card"]["rollout_id"] == "card-1"
    assert disclosed(sqlite_store, "local")[0].missing == ((2, 2),)
    assert {key: logs[-1][key] for key in ("event", "refused", "of")} == {"event": "cards refused", "refused": 1, "of": 3}


def test_nothing_that_redaction_takes_out_touches_the_disk_or_the_wire(sqlite_store, make_card, tmp_path):
    with ToyServer(sqlite_store) as gone:
        recorder = recorder_to(gone, tmp_path, patterns={"CASE_NUMBER": "C-[0-9]{6}"})
    card = make_card("card-1")
    card.rollout.turns[0].calls = (ToolCall("call-1-1", "search", {"query": "anna.schmidt@example.org about C-123456"}),)
    recorder.record(card)
    with pytest.raises(InfraError):
        recorder.close(timeout=0.2)
    spooled = b"".join(path.read_bytes() for path in (tmp_path / "spool").glob("*.spool"))
    assert b"card-1" in spooled and b"anna.schmidt" not in spooled and b"C-123456" not in spooled
    assert b"EMAIL" in spooled and b"CASE_NUMBER" in spooled


def test_a_card_that_cannot_be_redacted_holds_up_no_other(server, sqlite_store, make_card, tmp_path, monkeypatch):
    real = remote.redacted

    def failing(recorded, detectors):
        if recorded.card.rollout_id == "card-1":
            raise RecursionError("too deep")
        return real(recorded, detectors)

    monkeypatch.setattr(remote, "redacted", failing)
    with recorder_to(server, tmp_path) as recorder:
        for number in range(3):
            recorder.record(make_card(f"card-{number}"))
        recorder.flush()
        assert (recorder.acknowledged, recorder.refused, count_cards(sqlite_store)) == (2, 1, 2)
    assert '"card-1"' in (tmp_path / "spool-unspooled.jsonl").read_text()
    assert disclosed(sqlite_store, "local")[0].missing == ((2, 2),)


def test_a_full_spool_makes_cards_wait_in_memory_and_loses_none(sqlite_store, make_card, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.02)
    with ToyServer(sqlite_store, *[503] * 20) as server, recorder_to(server, tmp_path, spool_bytes=60_000) as recorder:
        for number in range(40):  # some 3.5 KB each
            recorder.record(make_card(f"card-{number}"))
            time.sleep(0.002)
        recorder.flush(10)
    assert count_cards(sqlite_store) == 40


def test_what_never_got_into_the_spool_is_saved_beside_it(sqlite_store, make_card, tmp_path, monkeypatch):
    def full(*_):
        raise SpoolFull("card spool", "no room")

    with ToyServer(sqlite_store) as server:
        recorder = recorder_to(server, tmp_path)
        monkeypatch.setattr(Spool, "keep", full)
        recorder.record(make_card("card-1"))
        with pytest.raises(InfraError, match="1 did not even get into the spool: they are safe in"):
            recorder.close(timeout=0.1)
    assert '"card-1"' in (tmp_path / "spool-unspooled.jsonl").read_text()


def test_sent_to_another_process_it_is_a_source_of_its_own_over_the_same_spool(server, sqlite_store, make_card, tmp_path):
    with recorder_to(server, tmp_path) as recorder, pickle.loads(pickle.dumps(recorder)) as other:
        recorder.record(make_card("card-1"))
        other.record(make_card("card-2"))
        other.flush()
        recorder.flush()
    assert [(source.came, source.complete) for source in disclosed(sqlite_store, "local")] == [(1, True), (1, True)]


# --- at the start ---------------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_told_at_the_start_and_a_server_that_is_away_is_not_held_against_anybody(server):
    CardServer(server.url, "the-key").check()
    with pytest.raises(UserError, match=r"(?s)does not take cards: HTTP 401: no such key\n.*look at store.url and at RFT_KEY"):
        CardServer(server.url, "another").check()
    with capture_logs() as logs:
        CardServer("http://127.0.0.1:9", "the-key").check()
    assert logs[0]["event"] == "the card server is away; cards wait in the spool"


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://host:99999", "https://user:secret@host", "https://host/path", "https://[1"]
)
def test_what_is_no_address_is_told(url):
    with pytest.raises(UserError, match=r"is no (card server's )?address"):
        CardServer(url, "the-key")


def test_a_place_where_nothing_can_be_spooled_is_told_at_the_start(server, tmp_path):
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(UserError, match=r"no card can be spooled in .*spool: File exists"):
        recorder_to(server, tmp_path)


def test_what_needs_the_store_itself_says_so():
    with pytest.raises(UserError, match=r"(?s)https://cards.example:8080 is a card server.*this needs the store itself.*postgresql://"):
        open_store("https://cards.example:8080")


def test_each_server_and_tenant_has_a_spool_of_its_own():
    assert spool_folder(Path("runs"), "https://cards.example:8080", "a/b") == Path("runs/spool/cards.example%3A8080/a%2Fb")


# --- kill -9 ----------------------------------------------------------------------------------------------------------------


def test_after_a_kill_the_next_process_sends_what_was_spooled(sqlite_store, make_card, tmp_path):
    with ToyServer(sqlite_store) as gone:
        pass
    command = [sys.executable, str(HERE / "spool_cards_until_killed.py"), gone.url, str(tmp_path / "spool"), "victim"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1], env={**os.environ, "PYTHONPATH": "."})
    assert child.stdout is not None
    told = (line.strip() for line in child.stdout)
    spooled = list(itertools.islice((line for line in told if line.startswith("victim-")), 5))  # beside what the log says
    child.send_signal(signal.SIGKILL)
    child.wait()
    with ToyServer(sqlite_store, port=gone.port) as server, recorder_to(server, tmp_path) as recorder:
        recorder.record(make_card("card-1"))
    victim, other = disclosed(sqlite_store, "local")
    assert set(spooled) <= {f"victim-{number}" for number in range(count_cards(sqlite_store) - 1)}
    assert (victim.missing, victim.announced) == ((), None) and victim.came >= 5
    assert other.complete
