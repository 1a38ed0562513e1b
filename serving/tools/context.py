"""Which call a tool is serving: for tools that keep state per rollout, and for faults that must survive a retry."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import NamedTuple


class CallKey(NamedTuple):
    """The same key twice is the same call delivered twice."""

    rollout_id: str
    call_id: str
    tenant: str = ""
    """Whose call it is, in production. In training all are one."""


current_call: ContextVar[CallKey | None] = ContextVar("current_call", default=None)
"""Set around every call that comes in over HTTP; None where a tool is called directly."""
current_deadline: ContextVar[float | None] = ContextVar("current_deadline", default=None)
"""Until when somebody waits for the answer, by time.monotonic; None: nobody said."""


def seconds_left() -> float | None:
    """For tools that ask others: to wait longer than whoever asked helps nobody. None: as long as it takes."""
    deadline = current_deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
