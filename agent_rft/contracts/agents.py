"""What is released and routed to: an agent, whole, under one hash."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from agent_rft.contracts.rollouts import Limits

Arm = Literal["live", "candidate"]


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides how it behaves. Two that differ in any of it are two agents."""

    checkpoint: str
    """Which weights speak, as cards name them."""
    tool_set: str
    """Version of the tools that it works with."""
    system_prompt: str = ""
    limits: Limits = Limits()
    temperature: float = 1.0

    @property
    def id(self) -> str:
        return f"agent-{hashlib.sha256(msgspec.json.encode(self, order='sorted')).hexdigest()[:20]}"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tenant's service sends its sessions just now."""

    tenant: str
    service: str
    """What callers name as the model."""
    live: str
    """An agent's id."""
    candidate: str = ""
    """Empty where none is on trial."""
    release: int = 0
    """The release on trial; 0: none."""
    share: float = 0.0
    """Of the sessions that go to the candidate."""
    shadow: bool = False
    """Whether live runs are mirrored to the candidate."""
    cut: bool = False
    """Whether what the withdrawn candidate is still saying is cut off: after a safety rollback. Else it ends by itself."""
    event: int = 0
    """Of the release: the newest that this route was made from."""
    drain_seconds: float = 30.0
    """How long a withdrawn candidate that is not cut off may still take over what it had begun."""
    graded_share: float = 1.0
    """Of the release's sessions that are graded."""
