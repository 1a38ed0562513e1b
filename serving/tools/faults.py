"""Tools that fail on purpose: to see what a training run, a client or an alert does when the infrastructure does not do its work."""

from __future__ import annotations

import random
import time
from typing import Any, Literal

from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.ports import ToolProvider
from serving.tools.context import CallKey, current_call

Fate = Literal["well", "fails", "hangs"]


class FlakyTools:
    """Wraps tools so that a share of their calls fails or hangs, the same share whatever the number of retries.

    The fate of a call is drawn once, when it first arrives, and kept for its retries: a rate of 0.03 is 3% of calls lost
    *after* retries. It is drawn from a counter, not from the ids, which differ from run to run.
    """

    def __init__(
        self,
        inner: ToolProvider,
        *,
        failure_rate: float = 0.0,
        hang_rate: float = 0.0,
        latency_seconds: float = 0.0,
        hang_seconds: float = 10.0,
        seed: int = 0,
    ) -> None:
        """A hang outlasts the server's deadline, but not by much: its thread holds a place, which calls that go well need."""
        self.blocks = bool(hang_rate or latency_seconds) or bool(getattr(inner, "blocks", False))
        self._inner = inner
        self._failure_rate = failure_rate
        self._hang_rate = hang_rate
        self._latency_seconds = latency_seconds
        self._hang_seconds = hang_seconds
        self._draw = random.Random(seed).random
        self._doomed: dict[CallKey, Fate] = {}  # only the calls that do not go well: few, and forgotten with the server

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return self._inner.specs

    @property
    def version(self) -> str:
        return self._inner.version

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, str | None]:
        if self._latency_seconds:
            time.sleep(self._latency_seconds)
        fate = self._fate_of(current_call.get())
        if fate == "hangs":
            time.sleep(self._hang_seconds)
        if fate == "fails":
            raise ConnectionError(f"{name} failed on purpose (fault injection)")
        return self._inner.call(name, arguments)

    def _fate_of(self, key: CallKey | None) -> Fate:
        if key is not None and key in self._doomed:
            return self._doomed[key]
        drawn = self._draw()
        fate: Fate = "fails" if drawn < self._failure_rate else "hangs" if drawn < self._failure_rate + self._hang_rate else "well"
        if key is not None and fate != "well":
            self._doomed[key] = fate
        return fate
