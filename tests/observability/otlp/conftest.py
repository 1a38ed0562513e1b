"""Spans to make traces of."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest

from observability.otlp.spans import Span

START = 1_795_233_612_250_000_000  # 2026-11-21 04:00:12.25 UTC
MS = 1_000_000
TRACE = "5b8efff798038103d269b633813fc60c"


@pytest.fixture(scope="session")
def now() -> dt.datetime:
    return dt.datetime(2026, 11, 21, 5, tzinfo=dt.UTC)


@pytest.fixture(scope="session")
def make_span() -> Callable[..., Span]:
    """A span of one trace by its number, so many milliseconds after the trace's start and so many long."""

    def made(number: int, after: float = 0, lasts: float = 1, parent: int = 0, **changed: object) -> Span:
        ids = {"trace_id": TRACE, "span_id": f"{number:016x}", "parent_id": f"{parent:016x}" if parent else ""}
        start = START + round(after * MS)
        return Span(**(ids | {"start_ns": start, "end_ns": start + round(lasts * MS)} | changed))

    return made
