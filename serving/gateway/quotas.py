"""How much a tenant may ask for. Pure: whoever asks says what time it is.

Counted in this process: beside a second gateway each tenant has as much again, and a restart begins a new day.
"""

from __future__ import annotations

import msgspec

from serving.gateway.declined import Declined

DAY = 86_400


class Quotas(msgspec.Struct, frozen=True, kw_only=True):
    """Zero: no limit."""

    requests_per_minute: int = 6_000
    tokens_per_day: int = 0
    in_flight: int = 256


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant was promised."""

    seconds: float = 30.0
    at_least: float = 0.99
    """The share of turns that are over within the seconds."""
    errors_at_most: float = 0.01


class Allowance:
    """What one tenant has left. A minute's requests may come at once, and come back one by one."""

    def __init__(self, quotas: Quotas, now: float) -> None:
        self._quotas = quotas
        self._requests, self._filled_at = float(quotas.requests_per_minute), now
        self._tokens, self._day = 0, int(now // DAY)
        self.in_flight = 0

    def take(self, now: float) -> None:
        """For one request, which `give_back` ends. Raises Declined. `now` in seconds since 1970."""
        quotas = self._quotas
        self._roll(now)
        if quotas.in_flight and self.in_flight >= quotas.in_flight:
            what = f"{self.in_flight} requests of your tenant are in hand, which is as many as it may have"
            raise Declined(429, "in_flight", what, "wait for one to end, or have the quota raised", retry_after=1)
        if quotas.tokens_per_day and self._tokens >= quotas.tokens_per_day:
            what = f"your tenant's {quotas.tokens_per_day} tokens of this day (UTC) are spent"
            raise Declined(429, "tokens_per_day", what, "come back tomorrow, or have the quota raised", retry_after=DAY - now % DAY)
        if quotas.requests_per_minute:
            if self._requests < 1:
                wait = (1 - self._requests) * 60 / quotas.requests_per_minute
                what = f"your tenant sent more than its {quotas.requests_per_minute} requests a minute"
                raise Declined(429, "requests_per_minute", what, "send fewer, or have the quota raised", retry_after=wait)
            self._requests -= 1
        self.in_flight += 1

    def give_back(self, tokens: int) -> None:
        self.in_flight -= 1
        self._tokens += tokens

    def _roll(self, now: float) -> None:
        rate = self._quotas.requests_per_minute
        self._requests = min(float(rate), self._requests + max(0.0, now - self._filled_at) * rate / 60)
        self._filled_at = now
        if (day := int(now // DAY)) != self._day:
            self._tokens, self._day = 0, day
