"""How much better than its group each rollout did: the G in GRPO. A rollout that infrastructure failed is not there at all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

NO_SPREAD = 1e-6
SOFTENING = 1e-4
"""Keeps a group whose rewards hardly differ from being blown up to full-size advantages."""


def shaped(reward: float, tool_calls: int, call_cost: float) -> float:
    """The reward that is trained on: a right answer pays for its calls, down to nothing at most.

    So a wrong answer, worth nothing, never pays: charging it too teaches a weak model to stop calling tools before it has
    learnt to answer.
    """
    return max(0.0, reward - call_cost * tool_calls)


def group_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """Distance to the group's mean in standard deviations. None in (no reward exists), None out, and no part in either.

    A group with fewer than two rewards, or with all the same, tells nothing: 0.
    """
    valid = [reward for reward in rewards if reward is not None]
    if len(valid) < 2 or is_flat(rewards):
        return [None if reward is None else 0.0 for reward in rewards]
    mean, spread = statistics.fmean(valid), statistics.stdev(valid)
    return [None if reward is None else (reward - mean) / (spread + SOFTENING) for reward in rewards]


def is_flat(rewards: Sequence[float | None]) -> bool:
    """Nothing to learn here: every rollout that counts scored the same."""
    valid = [reward for reward in rewards if reward is not None]
    return not valid or max(valid) - min(valid) <= NO_SPREAD
