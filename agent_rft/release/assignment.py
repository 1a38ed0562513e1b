"""Which arm a session belongs to: told by its name alone, so that every gateway says the same, now and after a restart."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from agent_rft.contracts.agents import Arm

BITS = 53
"""As many as a float holds exactly."""


def position_of(tenant: str, service: str, session: str) -> float:
    """Where a session stands on the line from 0 to, but not including, 1. The name is hashed as JSON: no two lists of names join alike."""
    digest = blake2b(msgspec.json.encode((tenant, service, session)), digest_size=8).digest()
    return (int.from_bytes(digest) >> (64 - BITS)) / 2**BITS


def arm_of(tenant: str, service: str, session: str, share: float) -> Arm:
    """A share that grows moves sessions to the candidate, and none back."""
    return "candidate" if position_of(tenant, service, session) < share else "live"
