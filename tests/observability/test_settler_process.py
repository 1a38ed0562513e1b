"""Cards settled in a process of its own: the same promises, and what may happen to that process costs no card."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from agent_rft.contracts.errors import InfraError
from observability.cards import count_cards, find_card
from observability.ingest import Settler, StoreRecorder, replay
from observability.records import without_token_ids
from observability.settler_process import SettlerProcess
from observability.store import open_store

HERE = Path(__file__).parent


def test_cards_settled_apart_are_those_that_were_recorded(store, make_card):
    with StoreRecorder(store, settling=SettlerProcess) as recorder:
        for number in range(120):
            recorder.record(make_card(f"card-{number}"))
        recorder.flush()
        assert (recorder.acknowledged, count_cards(store)) == (120, 120)
    assert find_card(store, "card-7").card == without_token_ids(make_card("card-7"))


def test_they_are_redacted_by_the_same_patterns(sqlite_store, make_card):
    card = make_card(reference_answer="ask ann@example.org about C-123456")
    with StoreRecorder(sqlite_store, patterns={"CASE": "C-[0-9]{6}"}, settling=SettlerProcess) as recorder:
        recorder.record(card)
    assert find_card(sqlite_store, "card-1").card.reference_answer == "ask [EMAIL] about [CASE]"


def test_a_process_that_is_killed_costs_no_card_and_doubles_none(store, make_card):
    processes = []

    def settling(*given):
        processes.append(SettlerProcess(*given))
        return processes[0]

    stop, killed = threading.Event(), []

    def kill():
        while not stop.wait(0.3):
            if child := processes[0]._child:
                killed.append(child.pid)
                child.kill()

    with StoreRecorder(store, settling=settling) as recorder:
        killer = threading.Thread(target=kill)
        killer.start()
        for number in range(300):
            recorder.record(make_card(f"card-{number}"))
            time.sleep(0.005)
        stop.set()
        killer.join()
    assert len(set(killed)) > 1  # it did hurt
    assert (recorder.acknowledged, recorder.refused, count_cards(store)) == (300, 0, 300)


def test_a_card_that_the_store_refuses_waits_in_the_file_and_holds_up_no_other(sqlite_store, make_card):
    too_large = msgspec.structs.replace(make_card().versions, seed=2**63)
    with StoreRecorder(sqlite_store, settling=SettlerProcess) as recorder:
        for number in range(5):
            recorder.record(make_card(f"card-{number}", **({"versions": too_large} if number == 2 else {})))
        recorder.flush()
        assert (recorder.acknowledged, recorder.refused) == (4, 1)
    assert "card-2" in recorder.rescue_file.read_text()


def test_what_cannot_travel_to_it_is_settled_here(sqlite_store, make_card):
    """A row's metadata may hold anything; a lock cannot be pickled, and no store takes one either."""
    with StoreRecorder(sqlite_store, settling=SettlerProcess) as recorder:
        recorder.record(make_card("odd", metadata={"odd": threading.Lock()}))
        recorder.flush()
        recorder.record(make_card("even"))
        recorder.flush()
    assert (recorder.acknowledged, recorder.refused) == (1, 1)
    assert replay(sqlite_store, recorder.rescue_file) == 1


def test_what_it_cannot_read_is_settled_here(sqlite_store, make_card):
    class Odd:  # the other process has no such class
        pass

    globals()["Odd"], Odd.__qualname__ = Odd, "Odd"
    with StoreRecorder(sqlite_store, settling=SettlerProcess) as recorder:
        recorder.record(make_card("odd", metadata={"odd": Odd()}))
        recorder.flush()
    assert (recorder.acknowledged, recorder.refused) == (0, 1)


def test_a_process_that_hangs_leaves_the_cards_in_a_file(sqlite_store, make_card):
    recorder = StoreRecorder(sqlite_store, settling=SettlerProcess)
    recorder.record(make_card("first"))
    recorder.flush()
    child = recorder._settler._child
    os.kill(child.pid, signal.SIGSTOP)
    recorder.record(make_card("second"))
    with pytest.raises(InfraError, match=r"1 of 2 cards are not durable after 0.2 s"):
        recorder.close(timeout=0.2)
    assert child.poll() is not None  # it is not left behind
    assert replay(sqlite_store, recorder.rescue_file) == 1


def test_it_ends_with_whoever_recorded(tmp_path):
    code = (
        "import os, sys; from sample_cards import make_card\n"
        "from observability.ingest import StoreRecorder; from observability.store import open_store\n"
        "from observability.settler_process import SettlerProcess\n"
        "recorder = StoreRecorder(open_store(sys.argv[1]), settling=SettlerProcess)\n"
        "recorder.record(make_card()); recorder.flush(); print(recorder._settler._child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    url = f"sqlite:///{tmp_path}/cards.db"
    done = subprocess.run([sys.executable, "-c", code, url], check=False, cwd=HERE, capture_output=True, text=True, timeout=60)
    settler = int(done.stdout)
    until = time.monotonic() + 10
    while Path(f"/proc/{settler}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{settler}").exists()
    assert count_cards(open_store(url)) == 1


@pytest.mark.parametrize("settling", [Settler, SettlerProcess])
def test_settling_the_same_cards_again_adds_none(sqlite_store, make_card, settling):
    with StoreRecorder(sqlite_store, settling=settling) as recorder:
        for _ in range(3):
            recorder.record(make_card())
            recorder.flush()
    assert count_cards(sqlite_store) == 1
