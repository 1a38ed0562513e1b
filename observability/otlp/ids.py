"""The ids that tie traces and cards together: a trace sent twice is the same card, a card exported twice the same trace."""

from __future__ import annotations

import hashlib
import re
from uuid import UUID

import msgspec

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
NS_PER_MS = 1_000_000


def rollout_id_of(tenant: str, trace_id: str, start_ns: int) -> str:
    """A UUIDv7: the millisecond in which the trace started, then 74 bits of a hash over tenant and trace."""
    bits = int.from_bytes(hashlib.sha256(msgspec.json.encode([tenant, trace_id])).digest()[:10], "big") >> 6
    milliseconds = start_ns // NS_PER_MS & (1 << 48) - 1
    return str(UUID(int=milliseconds << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (1 << 62) - 1))


def is_uuid7(text: str) -> bool:
    return UUID7.match(text) is not None


def started_ns(rollout_id: str) -> int:
    """The time in a UUIDv7."""
    return (UUID(rollout_id).int >> 80) * NS_PER_MS


def trace_id_of(rollout_id: str) -> str:
    """Of a card's own trace: its id, which has the very size."""
    return UUID(rollout_id).hex if is_uuid7(rollout_id) else _digest("trace", rollout_id)[:32]


def span_id_of(rollout_id: str, *place: str | int) -> str:
    return _digest("span", rollout_id, *place)[:16]


def _digest(*of: str | int) -> str:
    return hashlib.sha256(msgspec.json.encode(of)).hexdigest()
