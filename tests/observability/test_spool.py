"""What a spool accepted arrives, whatever happens to the process, the disk or the server; what it did not, it said."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent_rft.contracts.retries import TryAgain
from observability import spool as module
from observability.spool import Patience, Sender, Spool, SpoolFull
from observability.spooling import Refused, frame

HERE = Path(__file__).parent
QUICK = Patience(batch_cards=4, backoff_seconds=0.001, longest_seconds=0.004, idle_seconds=0.001)


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=100_000, segment_bytes=60)


def cards(*numbers):
    return [f"card {number}".encode() for number in numbers]


class Server:
    """Takes cards, but for those that a `fault` speaks against."""

    def __init__(self, fault=lambda cards: None):
        self.taken: list[bytes] = []
        self.asked = 0
        self._fault = fault

    def __call__(self, cards):
        self.asked += 1
        if error := self._fault(cards):
            raise error
        self.taken += cards
        return {}


def drained(spool):
    server = Server()
    Sender(spool, server).drain()
    return server.taken


# --- the ordinary way -----------------------------------------------------------------------------------------------


def test_cards_arrive_in_order_once_and_leave_no_file_behind(spool):
    for number in range(0, 30, 3):
        spool.keep(cards(number, number + 1, number + 2))
    assert len(list(spool.refused_file.parent.glob("*.spool"))) > 3
    server = Server()
    Sender(spool, server, QUICK).drain()
    assert server.taken == cards(*range(30))
    assert drained(spool) == [] and spool.bytes_used() == 0
    spool.keep(cards("again"))
    assert drained(spool) == cards("again")


def test_another_opening_goes_on_where_the_last_one_stopped(tmp_path):
    spool = Spool(tmp_path, 10_000)
    spool.keep(cards(1, 2, 3))
    spool.sent(spool.unsent(2, 1000).end)
    assert Spool(tmp_path, 10_000).unsent(9, 1000).cards == tuple(cards(3))


def test_a_card_larger_than_a_batch_goes_alone(spool):
    large = [b"a" * 5000, b"b" * 5000]
    spool.keep(large)
    server = Server()
    Sender(spool, server, Patience(batch_bytes=100)).drain()
    assert (server.taken, server.asked) == (large, 2)


# --- no room --------------------------------------------------------------------------------------------------------


def test_a_full_spool_refuses_keeps_what_it_has_and_takes_more_once_it_is_emptied(tmp_path):
    spool = Spool(tmp_path, max_bytes=3 * len(frame(b"card 1")))
    spool.keep(cards(1, 2))
    with pytest.raises(SpoolFull, match=r"36 bytes do not fit beside the 36 of 54"):  # 12 of header and 6 of card, twice
        spool.keep(cards(3, 4))
    spool.keep(cards(5))
    assert drained(spool) == cards(1, 2, 5)
    spool.keep(cards(3, 4))
    assert drained(spool) == cards(3, 4)


def test_a_full_disk_is_told_takes_no_half_card_and_hinders_no_sending(tmp_path):
    spool = Spool(tmp_path, max_bytes=10**6)
    spool.keep(cards(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(SpoolFull, match="File too large; 2 cards were not kept"):
            spool.keep([b"x" * 1500, b"y" * 1500])
        assert spool.bytes_used() == len(frame(b"card 1"))
        spool.keep(cards(2))
        assert drained(spool) == cards(1, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.keep([b"x" * 1500])
    assert drained(spool) == [b"x" * 1500]


def test_a_disk_that_fails_after_the_write_has_kept_nothing(spool, monkeypatch):
    def broken(file):
        raise OSError(5, "Input/output error")

    spool.keep(cards(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(SpoolFull, match="Input/output error"):
            spool.keep(cards(2))
    spool.keep(cards(3))
    assert drained(spool) == cards(1, 3)


# --- a torn or damaged file -----------------------------------------------------------------------------------------


def newest(spool):
    return max(spool.refused_file.parent.glob("*.spool"))


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 60, 111])  # of 12 bytes of header and 100 of card
def test_a_write_that_a_kill_cut_short_is_cut_off_and_the_next_card_follows_whole(tmp_path, cut):
    Spool(tmp_path, 10_000).keep(cards(1))
    with newest(Spool(tmp_path, 10_000)).open("ab") as file:
        file.write(frame(b"2" * 100)[:cut])
    spool = Spool(tmp_path, 10_000)
    assert spool.unsent(9, 1000).cards == tuple(cards(1))
    with capture_logs() as logs:
        spool.keep(cards(3))
    assert [line["log_level"] for line in logs] == ["warning"]
    assert drained(spool) == cards(1, 3)
    assert not list(tmp_path.glob("damaged-*"))


@pytest.mark.parametrize("at", [0, 5, 9, 13])  # the length, its checksum, the card's checksum, the card
def test_damage_is_put_away_and_told_and_what_lies_around_it_arrives(tmp_path, at):
    spool = Spool(tmp_path, 10_000)
    spool.keep(cards(1))
    spool.keep(cards(2))
    path = newest(spool)
    data = bytearray(path.read_bytes())
    data[len(frame(b"card 1")) + at] ^= 0xFF
    path.write_bytes(data)
    again = Spool(tmp_path, 10_000)
    again.keep(cards(3))
    with capture_logs() as logs:
        assert drained(again) == cards(1, 3)
    (kept,) = tmp_path.glob("damaged-*")
    assert kept.read_bytes() == data and kept.name.endswith("-from-18")
    assert [line["bytes"] for line in logs] == [18]
    again.keep(cards(4))
    assert drained(again) == cards(4)


def test_the_number_of_a_segment_that_was_put_away_is_not_given_again(tmp_path):
    spool = Spool(tmp_path, 10_000, segment_bytes=1)  # a segment for each
    spool.keep(cards(1))
    spool.keep(cards(2))
    newest(spool).write_bytes(bytes(100))
    assert drained(spool) == cards(1)
    (kept,) = tmp_path.glob("damaged-*")
    spool.keep(cards(3))
    assert newest(spool).stem > kept.name.removeprefix("damaged-")[:20]
    assert drained(spool) == cards(3)


def test_an_empty_segment_behind_a_damaged_one_hinders_nothing(tmp_path):
    spool = Spool(tmp_path, 10_000)
    spool.keep(cards(1))
    newest(spool).write_bytes(bytes(100))
    (tmp_path / f"{2:020d}.spool").touch()  # what a disk leaves that was full when the segment began
    assert drained(spool) == []
    spool.keep(cards(2))
    assert drained(spool) == cards(2)


# --- the server -----------------------------------------------------------------------------------------------------


def test_a_card_that_spoils_a_batch_is_set_aside_with_the_reason_and_the_others_go_on(spool):
    spool.keep(cards(*range(10)))
    spool.keep([b"\xff poison"])

    def fault(batch):
        return Refused("HTTP 400: no kind") if {b"card 3", b"\xff poison"} & set(batch) else None

    server = Server(fault)
    with capture_logs() as logs:
        Sender(spool, server, QUICK).drain()
    assert server.taken == [card for card in cards(*range(10)) if card != b"card 3"]
    aside = [json.loads(line) for line in spool.refused_file.read_text().splitlines()]
    assert [line["why"] for line in aside] == ["HTTP 400: no kind"] * 2
    assert (aside[0]["card"], aside[1]["card_base64"]) == ("card 3", "/yBwb2lzb24=")
    assert [line["event"] for line in logs] == ["the card server refused a card"] * 2
    assert spool.bytes_used() == spool.refused_file.stat().st_size  # counts against the bound until somebody looks


def test_cards_that_the_answer_names_are_set_aside_and_the_batch_does_not_come_again(spool):
    spool.keep(cards(*range(4)))
    asked = []

    def post(batch):
        asked.append(list(batch))
        return {1: "another tenant's", 3: "no such kind"}

    sender = Sender(spool, post, QUICK)
    sender.drain()
    aside = [json.loads(line) for line in spool.refused_file.read_text().splitlines()]
    assert asked == [cards(0, 1, 2, 3)]
    assert [(line["card"], line["why"]) for line in aside] == [("card 1", "another tenant's"), ("card 3", "no such kind")]
    assert sender.refused == 2 and drained(spool) == []


def test_where_kept_cards_end_is_reached_exactly_when_they_are_sent(spool):
    first, second = spool.keep(cards(1, 2)), spool.keep(cards(3))
    assert spool.sent_up_to() < first < second
    batch = spool.unsent(2, 1000)
    spool.sent(batch.end)
    assert first <= spool.sent_up_to() < second
    drained(spool)
    assert spool.sent_up_to() == second < spool.keep(cards(4))


def test_a_card_is_set_aside_once_though_its_batch_has_to_come_again(spool):
    spool.keep(cards(*range(4)))
    went_away = iter([False, False, False, True])  # all four, the first half, the poison alone, its neighbour

    def fault(batch):
        if next(went_away, False):
            return TryAgain("away")
        return Refused("bad") if b"card 0" in batch else None

    server = Server(fault)
    sender = Sender(spool, server, QUICK)
    with pytest.raises(TryAgain):
        sender.drain()
    sender.drain()
    assert server.taken == cards(1, 2, 3)
    assert len(spool.refused_file.read_text().splitlines()) == 1


class Clock(threading.Event):
    """Stops a sender after so many pauses, and remembers them."""

    def __init__(self, pauses):
        super().__init__()
        self.waited: list[float] = []
        self._pauses = pauses

    def wait(self, timeout=None):
        self.waited.append(timeout)
        if len(self.waited) >= self._pauses:
            self.set()
        return self.is_set()


def test_a_server_that_is_away_is_asked_ever_more_seldom_and_no_sooner_than_it_says(spool):
    spool.keep(cards(1))
    answers = iter([OSError("refused"), TryAgain("503"), TryAgain("429", 9.0), OSError("refused"), OSError("refused")])
    server = Server(lambda batch: next(answers, None))
    clock = Clock(6)
    Sender(spool, server, Patience(backoff_seconds=1.0, longest_seconds=5.0, idle_seconds=0.25)).run(clock)
    for waited, shortest, longest in zip(clock.waited[:2], (0.5, 1.0), (1.5, 3.0), strict=True):  # 1 and 2, times 0.5 to 1.5
        assert shortest <= waited <= longest
    assert clock.waited[2] == 9.0
    assert 4.0 <= clock.waited[3] <= 5.0  # 8 times 0.5 to 1.5, and the longest is 5
    assert clock.waited[4:] == [5.0, 0.25]
    assert server.taken == cards(1)


def test_while_the_server_is_away_cards_go_on_being_kept(spool):
    back = threading.Event()
    server = Server(lambda batch: None if back.is_set() else TryAgain("away"))
    stopped = threading.Event()
    thread = threading.Thread(target=Sender(spool, server, QUICK).run, args=(stopped,))
    thread.start()
    for number in range(200):
        spool.keep(cards(number))
        if number == 150:
            back.set()
    deadline = time.monotonic() + 10
    while len(server.taken) < 200 and time.monotonic() < deadline:
        time.sleep(0.005)
    stopped.set()
    thread.join()
    assert server.taken == cards(*range(200))


def test_only_one_process_sends_at_a_time(spool):
    spool.keep(cards(1))
    with spool.sending() as mine:
        assert mine and drained(spool) == []
    assert drained(spool) == cards(1)


# --- kill -9 --------------------------------------------------------------------------------------------------------


def killed_at_random(folder, server, prefix):
    """Runs the process, kills it within a tenth of a second of its first card; answers what it had accepted."""
    command = [sys.executable, str(HERE / "spool_until_killed.py"), str(folder), str(server), prefix]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1], env={**os.environ, "PYTHONPATH": "."})
    assert child.stdout is not None
    first = child.stdout.readline()
    assert first, "it did not start"
    time.sleep(random.random() * 0.1)
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()
    child.wait()
    whole = (first + rest).rpartition("\n")[0]
    return whole.splitlines()


def test_fifty_kills_of_two_processes_at_once_lose_nothing_that_was_accepted(tmp_path):
    folder, server = tmp_path / "spool", tmp_path / "server"
    accepted: list[str] = []

    def kill_and_go_on(name):
        for life in range(25):
            accepted.extend(killed_at_random(folder, server, f"{name}{life}"))

    threads = [threading.Thread(target=kill_and_go_on, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool = Spool(folder, 50_000_000)
    left = [card.decode().partition(" ") for card in drained(spool)]
    assert all(body == name * 50 for name, _, body in left)  # a card that came out other than it went in would stop the others here
    arrived = server.read_text().splitlines() + [name for name, _, _ in left]
    assert len(accepted) > 500
    assert set(accepted) <= set(arrived)
    assert len(set(arrived) - set(accepted)) <= 50 * 5  # kept, and killed before it could say so: one write a life at most
    assert spool.bytes_used() == 0 and not list(folder.glob("damaged-*"))


# --- written without waiting for the disk -------------------------------------------------------------------------------


def test_what_is_put_goes_out_in_order_beside_what_is_kept_and_whatever_was_delivered_meanwhile(tmp_path):
    """The segment may be deleted, and other processes may write into it, between any two."""
    ours, theirs, out = Spool(tmp_path, 10**6, segment_bytes=60), Spool(tmp_path, 10**6, segment_bytes=60), list[bytes]()
    for number in range(60):
        (theirs.keep([b"kept %d" % number]) if number % 7 == 3 else ours.put(b"put %d" % number))
        if number % 11 == 5 and (batch := theirs.unsent(4, 10**6)):
            out += batch.cards
            theirs.sent(batch.end)
    ours.sync()
    while batch := theirs.unsent(100, 10**6):
        out += batch.cards
        theirs.sent(batch.end)
    assert out == [b"kept %d" % number if number % 7 == 3 else b"put %d" % number for number in range(60)]
    assert ours.bytes_used() == 0


def test_a_segment_that_is_begun_while_others_are_brought_to_the_disk_comes_next(tmp_path, monkeypatch):
    """The thread that puts was stopped between looking up what is not on the disk and adding to it."""
    spool, real, synced = Spool(tmp_path, 10**6), module._sync, list[Path]()
    spool.put(b"1")
    late = spool._unsynced.add

    def sync(path):
        real(path)
        synced.append(path)
        late(99)

    monkeypatch.setattr(module, "_sync", sync)
    spool.sync()
    assert synced == [spool._path(1), tmp_path]
    spool._path(99).touch()
    spool.sync()
    assert synced[2] == spool._path(99)


def test_a_full_spool_takes_nothing_that_is_put_and_goes_on_once_there_is_room(tmp_path):
    spool = Spool(tmp_path, 3 * len(frame(b"12345")))
    for _ in range(3):
        spool.put(b"12345")
    with pytest.raises(SpoolFull):
        spool.put(b"1")
    batch = spool.unsent(10, 1000)
    assert batch is not None and len(batch.cards) == 3
    spool.sent(batch.end)
    spool.put(b"12345")
    assert spool.unsent(10, 1000).cards == (b"12345",)


def failing_once(monkeypatch, said):
    """The first sync of a file fails, as a disk's error is told: once, to whoever asks next. What is done then is said in order."""
    fsync, write_all, left = os.fsync, module._write_all, [OSError(errno.EIO, "Input/output error")]

    def failing(file):
        said.append("sync")
        if left:
            raise left.pop()
        fsync(file)

    def telling(file, data, at):
        said.append(f"{len(data)} at {at}")
        write_all(file, data, at)

    monkeypatch.setattr(os, "fsync", failing)
    monkeypatch.setattr(module, "_write_all", telling)


def test_what_the_disk_failed_to_take_is_written_again_before_a_sync_says_yes(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "spool", 2**20)
    for card in (b"one", b"two"):
        spool.put(card)
    with monkeypatch.context() as patched:
        failing_once(patched, said := [])
        with pytest.raises(OSError, match="Input/output"):
            spool.sync()
        spool.sync()
    assert said == ["sync", "30 at 0", "sync", "sync"], "two cards of 12 + 3 bytes; the segment, then its folder"
    batch = spool.unsent(10, 2**20)
    assert batch and batch.cards == (b"one", b"two")
    spool.put(b"three")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_write_all", None)  # what went well is not written again
        spool.sync()


def test_cards_that_the_disk_lost_are_never_said_to_be_safe(tmp_path, monkeypatch):
    spool = Spool(tmp_path / "spool", 2**20)
    spool.put(b"one")
    with monkeypatch.context() as patched:
        failing_once(patched, [])
        with pytest.raises(OSError):
            spool.sync()
    (segment,) = (tmp_path / "spool").glob("*.spool")
    segment.write_bytes(bytes(15))  # what was on the disk before
    for _ in range(2):
        with pytest.raises(OSError, match="the disk lost cards of"):
            spool.sync()
    spool.put(b"two")
    batch = spool.unsent(10, 2**20)
    assert batch and batch.cards == (b"two",)
    assert [path.read_bytes() for path in (tmp_path / "spool").glob("damaged-*")] == [bytes(15)]
