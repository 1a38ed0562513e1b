"""Makes job cards of what the gateway answered: a process of its own, beside the gateway.

Redaction, the store's transactions and the index of words take many times what it takes to pass an answer on; here they take it from
nobody. What to do comes as the first line on standard input, and the end of standard input ends it. A store that is away is waited for;
what is not yet a card waits in the spool, over restarts of either process.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import structlog
from sqlalchemy.exc import SQLAlchemyError

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import JobCard, Kind
from agent_rft.contracts.releases import Turn
from agent_rft.contracts.retries import TryAgain
from observability.follower import Follower
from observability.ingest import STORE_AWAY, is_away, reason
from observability.intake import Away, Intake
from observability.records import RecordedCard
from observability.redaction.detectors import Detectors, detectors_of
from observability.spool import Patience, Sender, Spool
from observability.store import Store, StoreAway, open_store
from observability.turns import add_turns
from serving.garbage import look_less_often
from serving.gateway.cardmaking import Kept, counted, ran_of
from serving.gateway.ending import job_card
from serving.gateway.spans import Exporter
from serving.logs import log_as_json

PATIENCE = Patience(batch_cards=500, batch_bytes=16 * 2**20, idle_seconds=0.25, busy_seconds=0.5, longest_seconds=5.0)
NICE = 10
"""Behind the gateway, where both want the same core."""
RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.5, 30.0
WELL_SECONDS = 60.0
"""A writer that lived so long was well: its end is none of a row."""
log = structlog.get_logger("serving.gateway")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    store: str
    """Its URL, password and all."""
    folder: str
    """Of the spool."""
    most_bytes: int
    redact: bool
    patterns: dict[str, str]
    tenant_patterns: dict[str, dict[str, str]]
    code: str
    collector: str
    """Where spans go; empty for nowhere."""

    def spool(self) -> Spool:
        return Spool(Path(self.folder), self.most_bytes)


class Writer:
    def __init__(self, store: Store, intake: Intake, code: str, exporter: Exporter) -> None:
        self._store, self._intake, self._code, self._exporter = store, intake, code, exporter
        self._decode = msgspec.msgpack.Decoder(Kept).decode

    def post(self, records: Sequence[bytes]) -> Mapping[int, str]:
        """As a spool's sender asks for it: what will never be a card, by its place, and why."""
        refused, cards, turns = dict[int, str](), list[tuple[int, Kept, JobCard]](), list[Turn]()
        for place, record in enumerate(records):
            try:
                kept = self._decode(record)
                ran = ran_of(kept)
                cards.append((place, kept, job_card(ran, _kind(kept), self._code, kept.tool_set)))
                turns += [turn] if (turn := counted(kept, ran)) else []
            except (msgspec.MsgspecError, ValueError) as error:
                refused[place] = f"unreadable: {error}"
            except Exception as error:  # a mistake of ours over one answer is not to cost all others their cards
                log.error("no_card_of_an_answer", exc_info=error)
                refused[place] = f"no card can be made of it: {error!r}"
        try:
            for tenant in dict.fromkeys(kept.tenant for _, kept, _ in cards):
                refused |= self._store_those([each for each in cards if each[1].tenant == tenant], tenant)
            add_turns(self._store, turns)
        except Away as error:
            raise TryAgain(str(error)) from None
        except STORE_AWAY as error:
            if not is_away(error):
                raise
            raise TryAgain(reason(error)) from None
        for _, kept, card in cards:
            self._exporter.add(kept, card)
        return refused

    def _store_those(self, cards: Sequence[tuple[int, Kept, JobCard]], tenant: str) -> dict[int, str]:
        now = dt.datetime.now(dt.UTC)
        outcome = self._intake.submit(tenant, [RecordedCard(card, now) for _, _, card in cards])
        places = {kept.rollout_id: place for place, kept, _ in cards}
        return {places[each.rollout_id]: each.why for each in outcome.refused}


def _kind(kept: Kept) -> Kind:
    return "shadow" if kept.shadow and kept.arm == "candidate" else "production"


def write_until(stopped: threading.Event, plan: Plan, store: Store, detectors: Detectors) -> None:
    with closing(Intake(store, detectors)) as intake, closing(Follower(store, detectors, busy=intake.busy)):
        sender = Sender(plan.spool(), Writer(store, intake, plan.code, Exporter(plan.collector)).post, PATIENCE)
        sender.run(stopped)
        try:
            sender.drain()
        except (TryAgain, OSError) as error:
            log.warning("cards_wait_for_the_next_start", why=str(error))


def main() -> None:
    log_as_json()
    os.nice(NICE)
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    stopped = threading.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        stopped.set()

    threading.Thread(target=watch, daemon=True).start()
    detectors = detectors_of(plan.redact, plan.patterns, plan.tenant_patterns)
    look_less_often()
    while not stopped.is_set():
        try:
            store = open_store(plan.store)
        except StoreAway as error:
            log.warning("cards_wait_for_the_store", why=error.what)
            stopped.wait(RESTART_SECONDS)
            continue
        write_until(stopped, plan, store, detectors)
        store.close()


# --- the gateway's side -----------------------------------------------------------------------------------------------------


class WriterProcess:
    """Keeps one running. One that ends again and again, as over a store of another version, is started ever more rarely."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._closed, self._starting = plan, threading.Event(), threading.Lock()
        self._child = self._start()
        self._watching = threading.Thread(target=self._watch, name="card-writer-watch", daemon=True)
        self._watching.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def close(self, patience: float = 15.0) -> None:
        """It writes what waits, if the store takes it in time; else that waits for the next start."""
        with self._starting:
            self._closed.set()
        if self._child.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-m", "serving.gateway.writing"], stdin=subprocess.PIPE, start_new_session=True)
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already: whoever watches sees that
            child.stdin.write(msgspec.json.encode(self._plan) + b"\n")
            child.stdin.flush()
        return child

    def _watch(self) -> None:
        pause = RESTART_SECONDS
        while True:
            began = time.monotonic()
            code = self._child.wait()
            if self._closed.is_set():
                return
            pause = RESTART_SECONDS if time.monotonic() - began > WELL_SECONDS else min(2 * pause, LONGEST_RESTART_SECONDS)
            log.error("card_writer_ended", code=code, started_again_in=pause)
            if self._closed.wait(pause):
                return
            with self._starting:
                if self._closed.is_set():
                    return
                try:
                    self._child = self._start()
                except OSError as error:  # no memory, or no process left: after the next pause there may be
                    log.error("card_writer_not_started", why=str(error))


if __name__ == "__main__":
    try:
        main()
    except (UserError, SQLAlchemyError) as error:
        sys.exit(str(error))
