"""The process that makes the cards: one that ends is started again, and one that ends at once ever more rarely."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from serving.gateway import writing
from serving.gateway.writing import Plan, WriterProcess

PLAN = Plan(store="sqlite:///x", folder="x", most_bytes=1, redact=True, patterns={}, tenant_patterns={}, code="c", collector="")


@pytest.fixture
def pauses(monkeypatch):
    """Before each start after the first; what runs in place of the process is the test's."""
    seen, real = list[float](), subprocess.Popen

    def lives(seconds: float) -> list[float]:
        code = f"import time; time.sleep({seconds})"
        monkeypatch.setattr(writing.subprocess, "Popen", lambda _, **more: real([sys.executable, "-S", "-c", code], **more))
        return seen

    monkeypatch.setattr(writing.log, "error", lambda _, *, code, started_again_in: seen.append(started_again_in), raising=False)
    monkeypatch.setattr(writing, "RESTART_SECONDS", 0.05)
    monkeypatch.setattr(writing, "LONGEST_RESTART_SECONDS", 0.4)
    return lives


def wait_for(seen: list[float], count: int) -> None:
    until = time.monotonic() + 20
    while len(seen) < count and time.monotonic() < until:
        time.sleep(0.02)


def test_one_that_ends_at_once_is_started_again_ever_more_rarely(pauses):
    seen = pauses(0)
    writer = WriterProcess(PLAN)
    wait_for(seen, 5)
    writer.close()
    assert seen[:5] == [0.1, 0.2, 0.4, 0.4, 0.4]
    count = len(seen)
    time.sleep(0.6)
    assert len(seen) == count, "closed, it starts none"


def test_one_that_was_well_for_long_is_started_again_soon_however_often(pauses, monkeypatch):
    monkeypatch.setattr(writing, "WELL_SECONDS", 0.1)
    seen = pauses(0.2)
    writer = WriterProcess(PLAN)
    wait_for(seen, 3)
    writer.close()
    assert seen[:3] == [0.05, 0.05, 0.05]


def test_one_that_cannot_be_started_just_now_is_tried_again(pauses, monkeypatch):
    """As where the machine has no memory left: what waits would wait for ever, and then no request be taken."""
    seen, told = pauses(0), list[str]()
    writer = WriterProcess(PLAN)
    starts, refusals = writing.subprocess.Popen, iter(range(2))

    def start(*command, **more):
        if next(refusals, None) is not None:
            raise OSError(12, "Cannot allocate memory")
        return starts(*command, **more)

    monkeypatch.setattr(writing.subprocess, "Popen", start)
    monkeypatch.setattr(
        writing.log, "error", lambda _, *, why="", started_again_in=0.0, **more: told.append(why) if why else seen.append(started_again_in)
    )
    first = writer.pid
    wait_for(seen, 6)
    writer.close()
    assert told == ["[Errno 12] Cannot allocate memory"] * 2 and writer.pid != first
