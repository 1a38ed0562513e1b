"""Testing by betting: a test that may be looked at after every single outcome, for as long as one likes.

A Bet holds that outcomes from 0 to 1 come with a mean of at least m. It starts with a capital of 1 and, before each outcome, stakes
on the outcome's falling below m, at odds that are fair or worse as long as the mean is at least m. Whatever the rule for stopping,
the chance that the capital is ever multiplied by 1/alpha is then at most alpha (Ville's inequality): a large capital is the evidence.

How much to stake depends on how far below m the mean is, which nobody knows: the capital is dealt out in equal parts to bettors that
always stake their own fraction of what they may lose. The method is Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting". A stake that adapts itself (their aGRAPA) was measured beside this mixture: no sooner on differences of
rewards and twice as late on rare events; twelve fractions were no sooner than these six.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

FRACTIONS = (0.015, 0.05, 0.12, 0.25, 0.5, 0.9)
"""Of what may be lost in one outcome. The small ones find rare events, the large ones great differences."""
BINS = 40
HALVINGS = 40


class Bet(msgspec.Struct, kw_only=True):
    """The state of one one-sided test of: the mean of what comes, given all that came, is at least m. It goes through JSON unchanged."""

    m: float
    logs: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(FRACTIONS))
    """The logarithm of each bettor's capital."""
    n: int = 0
    log_e: float = 0.0
    """Of the capital of all: the mean of the bettors'."""
    highest_log_e: float = 0.0
    """So far. What once was enough stays enough."""

    def __post_init__(self) -> None:
        if not 0 < self.m < 1:
            raise ValueError(f"m is {self.m}: between 0 and 1, or no outcome could speak against it")
        if len(self.logs) != len(FRACTIONS):
            raise ValueError(f"{len(self.logs)} capitals for {len(FRACTIONS)} fractions")

    def update(self, x: float) -> None:
        if not 0 <= x <= 1:  # nan as well
            raise ValueError(f"an outcome of {x}: from 0 to 1")
        self.n += 1
        if x == self.m:  # nobody wins or loses: most pairs of sessions without an error are of this kind
            return
        below, log1p = self.m - x, math.log1p
        self.logs = logs = [log + log1p(stake * below) for log, stake in zip(self.logs, _stakes(self.m), strict=True)]
        self.log_e = log_e = _log_mean(logs)
        self.highest_log_e = max(self.highest_log_e, log_e)

    @property
    def p_value(self) -> float:
        return math.exp(-self.highest_log_e)

    def rejects(self, alpha: float) -> bool:
        """Whether the mean is less than m, with a chance of error of at most alpha over all looks together."""
        return self.highest_log_e >= bound(alpha)


def bound(alpha: float) -> float:
    """What the logarithm of the capital has to reach. An alpha of 0 allows no error, so nothing is enough."""
    return -math.log(alpha) if alpha > 0 else math.inf


@lru_cache(maxsize=256)
def _stakes(m: float) -> tuple[float, ...]:
    return tuple(fraction / (1 - m) for fraction in FRACTIONS)


def _log_mean(logs: Sequence[float]) -> float:
    top, exp = max(logs), math.exp
    return top + math.log(sum([exp(log - top) for log in logs]) / len(logs))


class Outcomes(msgspec.Struct):
    """Outcomes from 0 to 1, kept as weights on a grid: enough to say, at any time, what their mean may be.

    An outcome between two grid points is dealt out to both. A bettor's logarithm is concave in the outcome, so this never gains
    capital: the bounds hold, and are off by nothing for outcomes on the grid.
    """

    weights: list[float] = msgspec.field(default_factory=lambda: [0.0] * (BINS + 1))

    def add(self, x: float) -> None:
        place = x * BINS
        lower = min(int(place), BINS - 1)
        self.weights[lower] += 1 - (place - lower)
        self.weights[lower + 1] += place - lower

    @property
    def mean(self) -> float | None:
        """Dealing out leaves it as it was."""
        n = math.fsum(self.weights)
        return math.fsum(place * weight for place, weight in enumerate(self.weights)) / (BINS * n) if n else None

    def mean_within(self, alpha: float) -> tuple[float, float]:
        """From where to where the mean may be: with a chance of error, over all looks together, of at most alpha."""
        weights = np.array(self.weights)
        outcomes = np.flatnonzero(weights) / BINS
        weights = weights[weights > 0]
        return 1 - _highest_mean(1 - outcomes, weights, bound(alpha / 2)), _highest_mean(outcomes, weights, bound(alpha / 2))


def _highest_mean(outcomes: NDArray[np.float64], weights: NDArray[np.float64], enough: float) -> float:
    """The lowest m that is ruled out: a Bet's capital grows with its m, so halving finds it."""
    fractions = np.array(FRACTIONS)[:, None]
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        m = (low + high) / 2
        logs = np.log1p(fractions / (1 - m) * (m - outcomes)) @ weights
        low, high = (low, m) if _log_mean(logs.tolist()) >= enough else (m, high)
    return high
