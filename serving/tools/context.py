"""Which call a tool is serving: for tools that keep state per rollout, and for faults that must survive a retry."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class CallKey(NamedTuple):
    """The same key twice is the same call delivered twice."""

    rollout_id: str
    call_id: str


current_call: ContextVar[CallKey | None] = ContextVar("current_call", default=None)
"""Set around every call that comes in over HTTP; None where a tool is called directly."""
