"""By when a grade must be there.

Who waits for a grade only so long says so around `grade`. What the grader waits for inside, a judge, an endpoint, a free
sandbox, then gives up before, and the reason told is its own. Nothing is said in training: there each waits as long as it may.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float] = ContextVar("grade_until", default=math.inf)
"""On this machine's monotonic clock. Threads that a grader starts get it with a copy of the context."""


@contextmanager
def due_within(seconds: float) -> Generator[None]:
    """A deadline within a deadline does not put it off."""
    outer = _until.set(min(_until.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until.reset(outer)


def seconds_left() -> float:
    """Infinite where nobody set a deadline."""
    return max(0.0, _until.get() - time.monotonic())


def longest_wait() -> float:
    """The same, as locks and queues take it."""
    return min(seconds_left(), threading.TIMEOUT_MAX)
