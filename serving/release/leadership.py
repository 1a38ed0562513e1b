"""Of several servers on one store one does what only one may do: control, grade, send. Which one, a lease says."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import structlog
from sqlalchemy import exc

from observability.leases import give_up, take
from observability.store import Store
from serving.threads import in_daemon_thread

LEASE = "release control"
SECONDS, RENEWED_EACH = 3.0, 1.0
log = structlog.get_logger("serving.leadership")


class Leadership:
    def __init__(self, store: Store, owner: str = "") -> None:
        self._store = store
        self.owner = owner or f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self._until = 0.0

    @property
    def leads(self) -> bool:
        """By its own clock, from before it asked: it stops before another may begin."""
        return time.monotonic() < self._until

    async def run(self) -> None:
        """Until it is cancelled; then the next need not wait."""
        try:
            while True:
                await self.renew()
                await asyncio.sleep(RENEWED_EACH)
        finally:
            if self.leads:
                self._until = 0.0
                give_up(self._store, LEASE, self.owner)

    async def renew(self) -> None:
        asked, led = time.monotonic(), self.leads
        try:
            if await asyncio.wait_for(in_daemon_thread(take, self._store, LEASE, self.owner, SECONDS), SECONDS):
                self._until = asked + SECONDS
        except (exc.SQLAlchemyError, TimeoutError, OSError):
            pass  # whoever cannot renew it stops when it is over
        if self.leads != led:
            log.info("leads" if self.leads else "leads_no_more", owner=self.owner)
