"""So that one who asks too much takes nothing from the others: places, a bounded queue before them, and a rate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Full(Exception):
    """There is no place, and the queue is as long as it may be; or none came free in time."""


class Bulkhead:
    def __init__(self, in_flight: int, queue: int) -> None:
        self._places = asyncio.Semaphore(in_flight)
        self._longest = queue
        self.waiting = 0
        self.inside = 0

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.inside)

    @asynccontextmanager
    async def place(self, seconds: float) -> AsyncGenerator[None]:
        """Waits for a place so long at most; raises Full."""
        if self._places.locked() and self.waiting >= self._longest:
            raise Full
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Full from None
        finally:
            self.waiting -= 1
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
            self._places.release()


class Bucket:
    """A minute's allowance, which may be spent at once and comes back evenly."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_second = per_minute / 60
        self._most = per_minute
        self._left = per_minute
        self._at = now

    def take(self, now: float) -> float:
        """Seconds until there is one to take; 0: it was taken."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self._per_second
        self._left -= 1
        return 0.0

    def full(self, now: float) -> bool:
        """As if nobody had asked yet."""
        return self._left + (now - self._at) * self._per_second >= self._most
