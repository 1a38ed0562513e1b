"""Every answer becomes a job card, off the way of the answers.

What a request was and what came back is written into a file before the caller has the answer: kill -9 costs no card of what was
acknowledged. A thread brings many such writes to the disk at once. From there another process makes cards of them (writing.py), so that
none of that work stands in the way of an answer. Where there is no room left for more, the gateway takes no further requests: an answer
without a card is not given.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import msgspec
import structlog

from agent_rft.contracts.errors import InfraError
from observability.spool import Spool
from observability.spooling import Position
from serving import metrics
from serving.gateway.cardmaking import Kept

GATHER_SECONDS = 0.05
"""In which answers gather before the disk has them: what a machine that loses its power can cost, beside the writing itself."""
MOST_IN_MEMORY = 64_000_000
"""Bytes that may wait for a disk that is slow."""
log = structlog.get_logger("serving.gateway")


class Recorder:
    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._encode = msgspec.msgpack.Encoder().encode
        self._waiting: list[tuple[float, bytes]] = []
        self._bytes = 0
        self._written: deque[tuple[float, Position]] = deque()
        self._came, self._closed, self._lock = threading.Event(), False, threading.Lock()
        self._trouble = ""
        self._writer = threading.Thread(target=self._write_forever, name="answers-to-disk", daemon=True)
        self._writer.start()

    def why_not(self) -> str:
        """Why nothing more is taken just now; empty where it is."""
        if self._trouble:
            return self._trouble
        return "answers come faster than the disk takes them" if self._bytes > MOST_IN_MEMORY else ""

    def keep(self, kept: Kept) -> None:
        """What is refused, as by a full disk, waits in memory; and what comes then waits behind it."""
        record, now = self._encode(kept), time.time()
        with self._lock:
            try:
                if self._waiting:
                    raise InfraError("spool", self._trouble)
                self._written.append((now, self._spool.put(record)))
            except (InfraError, OSError):
                self._waiting.append((now, record))
                self._bytes += len(record)
        self._came.set()

    def close(self) -> None:
        """What waits is still written."""
        self._closed = True
        self._came.set()
        self._writer.join(10)

    def observe(self) -> None:
        """Sets the gauges: how much is answered and not yet a card, and for how long the oldest of it."""
        sent = self._spool.sent_up_to()
        while self._written and self._written[0][1] <= sent:
            self._written.popleft()
        with self._lock:
            oldest = [self._written[0][0]] if self._written else [self._waiting[0][0]] if self._waiting else []
        metrics.CARDS_LAG_SECONDS.set(time.time() - oldest[0] if oldest else 0.0)
        metrics.CARDS_WAITING_BYTES.set(self._bytes + (self._spool.bytes_used() if self._written else 0))

    def _write_forever(self) -> None:
        closing = False
        while not closing:
            self._came.wait()
            self._came.clear()
            if not (closing := self._closed):
                time.sleep(GATHER_SECONDS)
            self._write()

    def _write(self) -> None:
        """Tried until the disk takes it. Meanwhile no request is, so that what waits cannot grow for ever."""
        while True:
            try:
                self._keep_waiting()
                self._spool.sync()
            except (InfraError, OSError) as error:  # the latter as where no file can be opened: too many are
                why = error.what if isinstance(error, InfraError) else str(error)
                if not self._trouble:
                    log.error("answers_wait_in_memory", why=why)
                self._trouble = why
                if self._closed:
                    metrics.CARDS_LOST.inc(len(self._waiting))
                    log.error("cards_lost", cards=len(self._waiting), why=why)
                    return
                time.sleep(0.5)
            else:
                self._trouble = ""
                return

    def _keep_waiting(self) -> None:
        with self._lock:
            batch = list(self._waiting)
        if not batch:
            return
        end = self._spool.keep([record for _, record in batch])
        with self._lock:
            self._written.append((batch[0][0], end))
            del self._waiting[: len(batch)]
            self._bytes -= sum(len(record) for _, record in batch)
