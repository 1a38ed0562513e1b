"""What a tool keeps of one rollout from call to call: in memory, so much of it and so long at most.

It is this process's. Several tool servers behind one address keep a rollout's calls together by its id, or keep nothing that matters:
a tool must do without what it finds forgotten.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from serving.tools.context import current_call

T = TypeVar("T")
Place = tuple[str, str]


class RolloutStates(Generic[T]):
    """One state for each (tenant, rollout), made when it is first asked for. The one that was not asked for longest goes first."""

    def __init__(
        self, make: Callable[[], T], *, most: int = 10_000, seconds: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[Place, tuple[float, T]] = OrderedDict()
        self._lock = threading.Lock()  # tools that block are called in threads

    def of_this_rollout(self) -> T | None:
        """None where a call names no rollout: there is nobody whose state it would be."""
        key = current_call.get()
        if key is None or not key.rollout_id:
            return None
        with self._lock:
            return self._of((key.tenant, key.rollout_id))

    def clear(self, rollout_id: str, tenant: str = "") -> None:
        with self._lock:
            self._kept.pop((tenant, rollout_id), None)

    def __len__(self) -> int:
        with self._lock:
            self._forget_old(self._clock())
            return len(self._kept)

    def _of(self, place: Place) -> T:
        now = self._clock()
        self._forget_old(now)
        _, state = self._kept.pop(place, None) or (now, self._make())
        self._kept[place] = (now, state)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return state

    def _forget_old(self, now: float) -> None:
        """They stand in the order in which they were last asked for."""
        while self._kept and now - next(iter(self._kept.values()))[0] > self._seconds:
            self._kept.popitem(last=False)
