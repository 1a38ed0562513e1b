"""Which rows a step trains on and how fast: functions of the step alone, so that a resumed run needs no memory of the past."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from agent_rft.rollouts.seeds import derive_seed

Item = TypeVar("Item")


def total_steps(rows: int, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Whole passes over the rows; the last batch of a pass may be short."""
    steps = epochs * steps_per_epoch(rows, batch_size)
    return steps if max_steps is None else min(steps, max_steps)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


def rows_of_step(rows: Sequence[Item], step: int, batch_size: int, seed: int) -> list[Item]:
    """Each pass sees every row once, in an order of its own."""
    epoch, batch = divmod(step, steps_per_epoch(len(rows), batch_size))
    order = list(range(len(rows)))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return [rows[i] for i in order[batch * batch_size : (batch + 1) * batch_size]]


def learning_rate(step: int, peak: float, warmup_steps: int) -> float:
    """Rises evenly over the first steps, then stays."""
    return peak * min(1.0, (step + 1) / warmup_steps) if warmup_steps else peak
