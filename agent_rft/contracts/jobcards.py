"""One record for a training rollout and a production run alike: what was attempted, decided, touched and why."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.rollouts import Rollout

DEFAULT_STORE = "sqlite:///runs/cards.db"
"""Where cards are kept when nobody says."""
Kind = Literal["prior", "train", "eval", "shadow", "production"]


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """What made it. Every artifact names these."""

    code: str
    checkpoint: str
    """Which weights spoke: a model's hash, or run/step."""
    dataset: str = ""
    tool_set: str = ""
    grader: str = ""
    seed: int | None = None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    context_tokens: int = 0
    sampled_tokens: int = 0
    tool_calls: int = 0
    seconds: float = 0.0
    tool_seconds: float = 0.0


class JobCard(msgspec.Struct, frozen=True, kw_only=True):
    rollout_id: str
    kind: Kind
    tenant: str
    run_id: str
    step: int | None
    """Training step, None outside training."""
    row_id: str
    sample_index: int
    """Which of the group's tries at the row."""
    started_at: str
    """UTC, ISO 8601."""
    rollout: Rollout
    """The agent's claims (its words, its answer) and the system's observations (results, ending)."""
    reference_answer: Any
    metadata: dict[str, Any]
    item: dict[str, Any] | None = None
    """What graders see of the row beyond what the card says anyway: `expected`, and the row's own keys. None of a card from
    before cards kept it."""
    grade: Grade | None
    """None for an infrastructure failure: no grade exists."""
    advantage: float | None = None
    cost: Cost
    versions: Versions
