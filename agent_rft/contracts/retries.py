"""When another try is worth it, and how long to wait before it: one rule for every client of somebody else's server."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from agent_rft.contracts.errors import InfraError

WORTH_ANOTHER_TRY = frozenset({408, 429})
"""And every 5xx: the server's trouble, which may pass."""
MOST_DOUBLINGS = 30


class TryAgain(Exception):
    """This attempt failed, the next may not."""

    def __init__(self, what: str, pause_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.pause_seconds = pause_seconds
        """What the server asked us to wait."""


class NoAnswer(InfraError):
    """It was asked again and again until the time for that was spent."""


def may_pass(status: int) -> bool:
    """Whether what an HTTP status tells of is the server's trouble of the moment."""
    return status >= 500 or status in WORTH_ANOTHER_TRY


def seconds_asked_for(retry_after: str, now: float) -> float:
    """What a Retry-After header asks for, as seconds or as a date; `now` in seconds since 1970. Zero where it says nothing."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def pause_before_next(attempt: int, asked_seconds: float, backoff_seconds: float, longest_seconds: float, spread: float) -> float:
    """Seconds to wait after the given attempt, counted from 1: doubling each time, up to the longest, and never less than
    the server asked for. `spread` is a random factor around 1, so that those who failed together do not return together."""
    return max(asked_seconds, min(backoff_seconds * 2 ** min(attempt - 1, MOST_DOUBLINGS) * spread, longest_seconds))
