"""What a plan is made from, and the words that its figures come in."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.training import Algorithm, Model
from agent_rft.planning.shapes import ModelShape, lora_parameters

Engine = Literal["local", "nemo"]
Kind = Literal["weights", "optimizer", "activations", "reference", "rollouts", "process"]
"""The five parts that the seed's picture stacks, and what a process takes just by running."""

GB = 1e9
TIGHT = 0.05
"""Less than this share of the memory to spare is said to be tight: fragmentation alone may take it."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as far as memory and time go."""

    engine: Engine
    shape: ModelShape
    model: Model
    algorithm: Algorithm
    limits: Limits
    layout: Layout
    in_flight: int
    """Rollouts at a time, of the local engine; NeMo RL hands vLLM the whole batch."""

    @property
    def rollouts(self) -> int:
        """A step's."""
        return self.algorithm.batch_size * self.algorithm.rollouts_per_prompt

    @property
    def fused(self) -> bool:
        return self.engine == "nemo" and self.layout.workers == "megatron"

    @property
    def lora_parameters(self) -> int:
        return lora_parameters(self.shape, self.model.lora, self.fused) if self.model.lora else 0


class Item(msgspec.Struct, frozen=True):
    """One thing that takes memory."""

    name: str
    kind: Kind
    gb: float
    how: str
    """The arithmetic in words."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What must be in one memory at one time."""

    place: str
    """training, hand-over, generation, reference: of a GPU. host, process: of a machine."""
    count: int
    """So many memories of this kind."""
    limit: float
    """What one holds, in GB."""
    items: tuple[Item, ...]
    short: str = ""
    """What does not fit although the sum does."""
    note: str = ""

    @property
    def total(self) -> float:
        return sum(item.gb for item in self.items)

    @property
    def margin(self) -> float:
        return self.limit - self.total

    @property
    def fits(self) -> bool:
        return self.margin >= 0 and not self.short

    @property
    def tight(self) -> bool:
        return self.fits and self.margin < TIGHT * self.limit
