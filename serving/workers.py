"""Tasks at work that does not end, for as long as a context is open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def at_work(*works: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """When it is left, what they were at is called off."""
    workers = [asyncio.create_task(work()) for work in works]
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
