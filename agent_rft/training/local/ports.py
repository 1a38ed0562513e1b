"""What the training loop needs from the engine and from the run's folder. [0] words; the adapters stand behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from agent_rft.contracts.ports import Sampler
from agent_rft.contracts.training import StepMetrics
from agent_rft.guards.sentinel import Memory
from agent_rft.training.local.batches import Trajectory


class Update(msgspec.Struct, frozen=True):
    """What one update did, measured over the step's sampled tokens."""

    loss: float = 0.0
    kl: float = 0.0
    clip_fraction: float = 0.0
    entropy: float = 0.0
    grad_norm: float = 0.0


class Position(msgspec.Struct, frozen=True):
    """How far training has come. With weights, optimizer and the job's seed it decides everything that follows."""

    step: int = 0
    """Updates made."""
    sentinel: Memory = Memory()
    """What the guards remember."""


class Engine(Protocol):
    """A policy that speaks and learns."""

    @property
    def sampler(self) -> Sampler:
        """Speaks with the newest weights."""
        ...

    def update(self, trajectories: Sequence[Trajectory], learning_rate: float) -> Update:
        """One optimizer step; raises Diverged, weights untouched, where it would not be a number."""
        ...

    def save(self, position: Position) -> str:
        """A checkpoint from which training resumes and a model loads; answers its folder."""
        ...

    @property
    def position(self) -> Position:
        """Where training goes on: the start, or what the checkpoint it resumed from says."""
        ...

    @property
    def newest_checkpoint(self) -> str:
        """Folder of the newest checkpoint; the base model while there is none."""
        ...


class Journal(Protocol):
    """The run's metrics, one line a step."""

    def append(self, metrics: StepMetrics) -> None:
        """Durable when this returns."""
        ...

    def rewind(self, step: int) -> list[StepMetrics]:
        """Forget this step and those after; answers those before."""
        ...
