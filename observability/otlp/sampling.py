"""Which share of their runs OpenTelemetry's senders record, as far as their spans say. Pure.

Consistent probability sampling writes its threshold into the W3C trace state, `ot=th:c`: hexadecimal digits, filled up with zeros on the
right to fourteen, of a number out of 2^56. A trace is dropped if its randomness is below it, so 1 - threshold / 2^56 are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from observability.otlp.spans import Span

DIGITS = 14
THRESHOLD = re.compile(r"(?:.*;)?th:([0-9a-f]{1,14})(?:;.*)?")


def sampling_rate(trace_state: str) -> float | None:
    """None where it says nothing about it, or nothing that can be read."""
    for member in trace_state.split(","):
        key, _, value = member.strip().partition("=")
        if key == "ot" and (found := THRESHOLD.fullmatch(value)):
            return 1 - int(found[1].ljust(DIGITS, "0"), 16) / 16**DIGITS
    return None


def senders(spans: Iterable[Span]) -> dict[str, float | None]:
    """The services that sent these spans, and the lowest rate that any span of each names."""
    found: dict[str, float | None] = {}
    for span in spans:
        name = str(span.resource.get("service.name") or "of no name")
        rate, so_far = sampling_rate(span.trace_state), found.get(name)
        found[name] = rate if so_far is None else so_far if rate is None else min(rate, so_far)
    return found
