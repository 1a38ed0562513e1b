"""The database away while a release is rolled back, and one of two gateways killed: what was accepted is answered and becomes a card, no
session changes arms but by the rollback, and the state is the right one after a restart.

`AWAY_SECONDS=30 pytest -s tests/serving/gateway/test_outage.py` takes the database away for as long as it says, and prints what was seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import httpx
import pytest
import sqlalchemy as sa

from agent_rft.cli import main
from agent_rft.release.assignment import arm_of
from observability.releases import events
from observability.store import Store, migrate, open_store
from observability.tables import job_cards
from serving.server import RunningServer, running_server

AWAY_SECONDS = float(os.environ.get("AWAY_SECONDS", "2"))
SESSIONS = [f"s{number}" for number in range(12)]
CANDIDATES = {session for session in SESSIONS if arm_of("acme", "trial", session, 0.5) == "candidate"}
HERE = Path(__file__).parent


@pytest.fixture
def lib(helpers) -> SimpleNamespace:
    return SimpleNamespace(**helpers)


class Place(NamedTuple):
    store: Store
    url: str
    key: str
    release: int
    serve: Callable[[str], RunningServer]
    """A gateway in a folder of its own, which holds its spool."""

    def chat(self, server: RunningServer, session: str, client: httpx.Client | None = None, **body) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}", "x-session-id": session}
        asked = {"model": "trial", "messages": [{"role": "user", "content": "who are you?"}], **body}
        return (client or httpx).post(f"{server.base_url}/v1/chat/completions", json=asked, headers=headers, timeout=20)

    def cards(self) -> Counter[str]:
        with self.store.reading() as connection:
            return Counter(connection.scalars(sa.select(job_cards.c.rollout_id)))


@pytest.fixture
def place(postgres, in_thread, lib, tmp_path) -> Iterator[Place]:
    """A store on PostgreSQL with a release that half of the sessions go to, and two model servers."""
    migrate(url := postgres())
    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(url)))
        live, candidate = (lib.FakeModel(name) for name in ("live", "candidate"))
        addresses = [f"{stack.enter_context(in_thread(fake))}/v1" for fake in (live, candidate)]
        live.between = candidate.between = 0.05
        key = lib.new_key(store, "acme").text
        lib.put_live(store, "acme", "trial")
        release = lib.try_out(store, "acme", "trial", 0.5)

        def serve(name: str) -> RunningServer:
            (folder := tmp_path / name).mkdir(exist_ok=True)
            words = [sys.executable, str(HERE / "gateway_server.py")]
            server = stack.enter_context(running_server(lambda port: [*words, str(port), url, addresses[0], str(folder), addresses[1]]))
            stack.callback(lambda: kill(server))  # a clean end takes its time, and is not what is tried here
            return server

        yield Place(store, url, key, release, serve)


def kill(server: RunningServer) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGKILL)


class Answer(NamedTuple):
    at: float
    session: str
    status: int
    arm: str
    id: str


class Callers:
    """One after another, for as long as they are not stopped."""

    def __init__(self, place: Place, server: RunningServer) -> None:
        self.answers, self._stopped = list[Answer](), threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(place, server, SESSIONS[number::3])) for number in range(3)]
        for thread in self._threads:
            thread.start()

    def _call(self, place: Place, server: RunningServer, sessions: list[str]) -> None:
        with httpx.Client() as client:
            while not self._stopped.is_set():
                for session in sessions:
                    answer = place.chat(server, session, client)
                    told = [answer.headers.get(name, "") for name in ("x-rft-arm", "x-request-id")]
                    self.answers.append(Answer(time.monotonic(), session, answer.status_code, *told))
                    time.sleep(0.05)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> float:
    """How long it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began


def switch(url: str, on: bool) -> None:
    """Takes the database away, or brings it back."""
    elsewhere = sa.make_url(url).set(drivername="postgresql+psycopg", database="template1")
    name = sa.make_url(url).database
    admin = sa.create_engine(elsewhere, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {str(on).lower()}'))
        if not on:
            connection.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name})
    admin.dispose()


def test_with_the_database_away_during_a_rollback_nothing_that_was_accepted_is_lost(place, tmp_path, capsys):
    server = place.serve("a")
    callers = Callers(place, server)
    try:
        until(lambda: {answer.session for answer in callers.answers} == set(SESSIONS))
        switch(place.url, False)
        gone = time.monotonic()
        words = ["--tenant", "acme", "--store", place.url, "--folder", str(tmp_path / "a" / "withdrawn"), "--why", "worse"]
        assert main(["release", "rollback", str(place.release), *words]) == 0 and "withdraw it now" in capsys.readouterr().out
        told = time.monotonic()
        time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - gone)))
    finally:
        switch(place.url, True)
        back = time.monotonic()
        known = until(lambda: events(place.store, "acme", place.release)[-1].stage == "rolled_back")
        callers.stop()
    answers = callers.answers
    assert {answer.status for answer in answers} == {200}
    before = [answer for answer in answers if answer.at < gone]
    assert all((answer.arm == "candidate") == (answer.session in CANDIDATES) for answer in before)
    last = max(answer.at for answer in answers if answer.arm == "candidate")
    assert last - told < 1.5 + 1.0, "half a second until it is read, a request on its way; and a second for a crowded machine"
    caught_up = until(lambda: len(place.cards()) == len(answers), 30)
    assert place.cards() == Counter(answer.id for answer in answers), "each answer has its card, and one"
    kill(server)
    again = place.serve("a")
    assert {place.chat(again, session).headers["x-rft-arm"] for session in SESSIONS} == {"live"}
    with capsys.disabled():
        print(
            f"\n  database away for {back - gone:.1f} s: {len(answers)} answers, {sum(gone < one.at < back for one in answers)} of them "
            f"meanwhile, all 200; the candidate's last {max(0.0, last - told):.2f} s after the rollback; known to the store "
            f"{known:.2f} s after its return, every card {caught_up:.2f} s after that"
        )


def test_one_of_two_gateways_killed_the_other_answers_from_the_same_arm(place):
    one, other = place.serve("one"), place.serve("other")
    ids = list[str]()
    for number, session in enumerate(SESSIONS * 2):
        answer = place.chat((one, other)[number % 2 ^ number // len(SESSIONS)], session)
        assert answer.headers["x-rft-arm"] == ("candidate" if session in CANDIDATES else "live"), "the same at both"
        ids.append(answer.headers["x-request-id"])

    session, heard = min(CANDIDATES), ""
    headers = {"authorization": f"Bearer {place.key}", "x-session-id": session}
    asked = {"model": "trial", "messages": [{"role": "user", "content": "who?"}], "stream": True}
    with httpx.stream("POST", f"{one.base_url}/v1/chat/completions", json=asked, headers=headers, timeout=20) as torn:
        pieces = torn.iter_text()
        heard = next(pieces)
        kill(one)
        with pytest.raises(httpx.RemoteProtocolError):
            heard += "".join(pieces)
    assert "candidate0" in heard and "[DONE]" not in heard and "live" not in heard
    retried = place.chat(other, session, stream=True)
    assert retried.headers["x-rft-arm"] == "candidate" and retried.text.endswith("data: [DONE]\n\n")
    assert [f"candidate{number} " in retried.text for number in range(5)] == [True] * 5 and "live" not in retried.text
    ids.append(retried.headers["x-request-id"])

    place.serve("one")  # what it had answered waits in its folder
    until(lambda: set(ids) <= set(place.cards()), 30)
    assert all(count == 1 for count in place.cards().values())
    assert set(place.cards()) - set(ids) == set(), "what was torn was never acknowledged"
