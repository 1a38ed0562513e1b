"""Writes of many runs in one transaction: while one is on its way to the disk, those that come gather for the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from observability.ingest import is_away
from observability.store import Store
from serving.threads import in_daemon_thread

Write = Callable[[sa.Connection], Any]
T = TypeVar("T")


class _Asked(NamedTuple):
    write: Write
    done: asyncio.Future[Any]


class Saving:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[_Asked] = []
        self._working: asyncio.Task[None] | None = None

    async def do(self, write: Callable[[sa.Connection], T]) -> T:
        """Durable when it returns. Raises what the write raised, and the database's error where it is away."""
        asked = _Asked(write, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await asked.done

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            for asked, (result, error) in zip(batch, await in_daemon_thread(self._write, [each.write for each in batch]), strict=True):
                if asked.done.cancelled():
                    continue
                if error is None:
                    asked.done.set_result(result)
                else:
                    asked.done.set_exception(error)

    def _write(self, writes: Sequence[Write]) -> list[tuple[Any, Exception | None]]:
        """All together, or each by itself where something spoils it."""
        try:
            with self._store.writing() as connection:
                return [(write(connection), None) for write in writes]
        except Exception as error:
            if len(writes) == 1 or is_away(error):
                return [(None, error) for _ in writes]
        return [self._write([write])[0] for write in writes]
