"""A try at a row and what it was worth: what prior check, training and evaluation all count with."""

from __future__ import annotations

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.rollouts import Ending, Rollout
from agent_rft.contracts.rows import Row


class GradedRollout(msgspec.Struct):
    row: Row
    sample_index: int
    """Which try at the row, from 0."""
    rollout: Rollout
    grade: Grade | None
    """None where infrastructure failed, the grader's own included: then no score exists."""

    @property
    def reward(self) -> float | None:
        return self.grade.reward if self.grade else None

    @property
    def infra_failed(self) -> bool:
        return self.rollout.ending is Ending.INFRA_FAILED
