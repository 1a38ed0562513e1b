"""What watches a run, and what it found. The rules themselves are in guards/."""

from __future__ import annotations

from typing import Literal

import msgspec

Action = Literal["off", "warn", "stop", "halt"]
"""off: not looked at. warn: said, and the run goes on. stop: the run ends with a checkpoint and can be resumed. halt: it ends, and the
weights of the step are not kept."""
ACTIONS: tuple[Action, ...] = ("off", "warn", "stop", "halt")
ENDING: tuple[Action, ...] = ("stop", "halt")
"""Those that end a run."""


class Limit(msgspec.Struct, frozen=True):
    at: float
    """From which figure on the guard speaks."""
    action: Action


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A guard that spoke, with the figure it spoke for."""

    guard: str
    step: int
    figure: float
    limit: float
    action: Action
    what: str
    """What was seen, in a sentence with its figures."""
    cure: str
    """What to look at, and what to do."""
    rollouts: tuple[str, ...] = ()
    """Where to look first: a few ids, the most telling first."""
