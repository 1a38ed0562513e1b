"""Calls that wait, kept off the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Runs work in a thread of its own. A pool's threads are joined when the program ends, so one call that hangs
    would keep the server from stopping; this thread is abandoned when its caller stops waiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        result, error = None, None
        try:
            result = work(*arguments)
        except StopIteration as raised:  # which no future takes: whoever waits would wait for ever
            error = RuntimeError("an iterator ended where something was expected")
            error.__cause__ = raised
        except Exception as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return await done
