"""Works behind a server that takes cards in: brings their words into the index, makes cards of traces that have gone quiet, and
prepares PostgreSQL's months.

Each work goes on whatever happens to the others, and the words of each tenant whatever another's cards do to the index. Tenants
take turns: who keeps sending keeps nobody else waiting.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from observability.ingest import is_away, reason
from observability.redaction.detectors import Detectors
from observability.search import behind, index_some
from observability.store import Store, prepare_months
from observability.traces import AT_ONCE, settle_quiet

EVERY = 0.5
"""Seconds between two looks."""
QUIET = 120.0
"""Seconds after the last span of a trace until its card is made without the agent's."""
STANDS_BACK = 10.0
"""Seconds that it lets pass, at most, while cards keep coming: they are to be durable first, and words are found a little later."""
MONTHS_EVERY = 3600.0
"""Seconds between two looks at whether months are to be prepared: a year's are, so one that fails is in no hurry."""
T = TypeVar("T")
log = structlog.get_logger(__name__)


class Follower:
    """Rests as long as it works, so that those who send cards are served first."""

    def __init__(self, store: Store, detectors: Detectors, quiet: float = QUIET, busy: Callable[[], bool] = lambda: False) -> None:
        """`busy`: whether cards are coming in just now."""
        self._store, self._detectors, self._busy = store, detectors, busy
        self._quiet = dt.timedelta(seconds=quiet)
        self._stopping = threading.Event()
        self._troubles: dict[str, str] = {}  # of each work that failed when it was last tried
        self._months_at = time.monotonic()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10.0)

    def _follow(self) -> None:
        pause, looked_at = EVERY, time.monotonic()
        while not self._stopping.wait(pause):
            if self._busy() and time.monotonic() - looked_at < STANDS_BACK:
                pause = EVERY
                continue
            more, looked_at = self._look(), time.monotonic()
            pause = 0.0 if more and not self._busy() else EVERY

    def _look(self) -> bool:
        """Some of all that there is to do. Whether there is more."""
        now = dt.datetime.now(dt.UTC)
        if time.monotonic() >= self._months_at:
            self._months_at = time.monotonic() + MONTHS_EVERY
            self._tried("months", lambda: prepare_months(self._store))
        settled = self._tried("quiet traces", lambda: settle_quiet(self._store, now - self._quiet, now, self._detectors))
        waiting = self._tried("words", lambda: behind(self._store)) or {}
        indexed = [self._tried(f"words of {tenant}", lambda tenant=tenant: index_some(self._store, tenant)) for tenant in waiting]
        return settled == AT_ONCE or any(indexed)

    def _tried(self, work: str, do: Callable[[], T]) -> T | None:
        """None where it failed, which is told once, or where it is time to stop."""
        if self._stopping.is_set():
            return None
        began = time.monotonic()
        try:
            done = do()
            self._troubles.pop(work, None)
        except Exception as error:  # it is tried again
            self._tell(work, error)
            done = None
        self._stopping.wait(time.monotonic() - began)
        return done

    def _tell(self, work: str, error: Exception) -> None:
        if reason(error) == self._troubles.get(work):
            return
        self._troubles[work] = reason(error)
        if is_away(error):
            log.warning("store away; this waits", work=work, trouble=reason(error))
        else:
            log.error("follower_failed", work=work, exc_info=error)
