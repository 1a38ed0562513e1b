"""Spans as both encodings of OTLP tell them, and how the parts of a trace that come one by one become one trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

EMPTY: dict[str, Any] = {}


class Event(msgspec.Struct, frozen=True):
    name: str
    at_ns: int
    attributes: dict[str, Any] = EMPTY


class Link(msgspec.Struct, frozen=True):
    trace_id: str
    span_id: str
    attributes: dict[str, Any] = EMPTY


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One span, whole. Attribute values are what JSON can hold: bytes are their base64, a float that is no number its name."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    parent_id: str = ""
    """Empty at the root."""
    name: str = ""
    kind: int = 0
    start_ns: int
    """Nanoseconds since 1970."""
    end_ns: int = 0
    """0: it had not ended when it was sent."""
    attributes: dict[str, Any] = EMPTY
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    failed: bool = False
    message: str = ""
    """Of its status."""
    trace_state: str = ""
    """Samplers say here how much they leave out."""
    dropped: int = 0
    """Attributes, events and links that the sender says it left out."""
    resource: dict[str, Any] = EMPTY
    scope: str = ""


class Rejected(msgspec.Struct, frozen=True):
    """A span that was not taken."""

    where: str
    why: str


class Received(msgspec.Struct, frozen=True):
    """What one request brought."""

    spans: tuple[Span, ...]
    rejected: tuple[Rejected, ...]


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Every span once, in the order of their times. The same spans give the same answer however they came: in one request
    or in many, in any order, again and again. Where a span was sent twice and differs, the one that ended last counts."""
    kept: dict[tuple[str, str], Span] = {}
    for span in spans:
        key = (span.trace_id, span.span_id)
        other = kept.get(key)
        kept[key] = span if other is None or other == span else max(span, other, key=_precedence)
    return tuple(sorted(kept.values(), key=lambda span: (span.start_ns, span.end_ns, span.span_id, span.trace_id)))


def _precedence(span: Span) -> tuple[int, bytes]:
    """A total order, so that it cannot matter which of two came first."""
    return span.end_ns, msgspec.json.encode(span, order="deterministic")


def why_not(span: Span, latest_ns: int) -> str:
    """Why a span cannot be stored; empty where it can."""
    if len(span.trace_id) != 32 or not span.trace_id.strip("0"):
        return f"its trace id is '{span.trace_id[:40]}', not 32 hex digits that are not all 0"
    if len(span.span_id) != 16 or not span.span_id.strip("0"):
        return f"its span id is '{span.span_id[:40]}', not 16 hex digits that are not all 0"
    if span.start_ns <= 0:
        return "it has no start time"
    if span.start_ns > latest_ns or span.end_ns > latest_ns:
        return "it lies in the future: set the sender's clock"
    return ""


def finite(value: float) -> float | str:
    """A float as JSON can hold it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


SHOWN = 5


def told(rejected: Sequence[Rejected]) -> str:
    """What the answer to the sender says about them."""
    lines = [f"{each.where}: {each.why}" for each in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"and {len(rejected) - SHOWN} more")
    return "; ".join(lines)
