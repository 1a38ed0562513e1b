"""What may be said of a mean, a change and a share from a few dozen rows, and how surely. Pure; numpy alone.

Rows are the unit everywhere: the tries of one row share its question, so that four tries of fifty rows are fifty numbers, not two
hundred. What comes in here is one number a row, the mean over its tries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
DRAWN_AT_ONCE = 1_000_000
"""Values that the bootstrap holds at a time."""
EXACT = 200
"""Differences up to which the rank test counts every possible outcome; beyond, the normal curve fits it to three digits."""
NO_MOVE = 1e-9
"""Means of the same rewards may differ by this much; it is no difference."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate, and where the truth lies with the probability that was asked for."""

    estimate: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Zero is not among what it may be."""
        return self.low > 0 or self.high < 0

    def told(self, form: str = ".3f") -> str:
        return f"{self.estimate:{form}} [{self.low:{form}}, {self.high:{form}}]"


# --- intervals ----------------------------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float], level: float = LEVEL, *, least: float = 0.0, most: float = 1.0) -> Interval:
    """Of the mean of bounded values, one a row: rewards and shares from 0 to 1; changes in reward with `least=-1`.

    Student's interval over the rows and two imagined ones, one at either end of the scale. Rewards bunch at the ends of theirs: where
    thirty rows of thirty are right, Student's interval and any bootstrap have no width at all, though one row in ten may be wrong.
    The imagined rows keep the coverage at 94% and more from 30 rows on, and weigh next to nothing from 200 on.
    The estimate is the mean itself.
    """
    imagined = np.array([*values, least, most], dtype=float)
    middle, reach = imagined.mean(), _reach(imagined, level)
    estimate = math.fsum(values) / len(values)
    return Interval(estimate, max(least, min(estimate, float(middle - reach))), min(most, max(estimate, float(middle + reach))))


def _reach(values: Numbers, level: float) -> float:
    return student(len(values) - 1, (1 + level) / 2) * float(values.std(ddof=1)) / math.sqrt(len(values))


def bootstrap_interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval | None:
    """Of the mean of values without bounds, one a row: tool calls, tokens, seconds. None for a single one, which tells no spread.

    The studentised bootstrap: rows are drawn again and again, and how far the mean then strays is measured in its own standard
    errors. Of the common bootstraps it covers best where a few rows are long: the percentiles and BCa are too narrow there.
    Student's where so many draws are all alike that the quantiles would be theirs: of two or three rows, or where one row alone differs.
    """
    drawn_from = np.array(values, dtype=float)
    rows = len(drawn_from)
    if rows < 2:
        return None
    centre, spread = drawn_from.mean(), drawn_from.std(ddof=1)
    means, errors = _resampled(drawn_from, np.random.default_rng(seed))
    varied = errors > NO_MOVE
    if (~varied).mean() > (1 - level) / 2:
        reach = _reach(drawn_from, level)
        return Interval(float(centre), float(centre - reach), float(centre + reach))
    strays = np.where(varied, (means - centre) / np.where(varied, errors, 1.0), 0.0)
    low, high = np.quantile(strays, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(centre), float(centre - high * spread), float(centre - low * spread))


def _resampled(values: Numbers, luck: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Mean and spread of each draw; some draws at a time, for all of them would be gigabytes of a large set's rows."""
    means, spreads = np.empty(RESAMPLES), np.empty(RESAMPLES)
    at_once = max(1, DRAWN_AT_ONCE // len(values))
    for first in range(0, RESAMPLES, at_once):
        some = slice(first, min(first + at_once, RESAMPLES))
        draws = values[luck.integers(0, len(values), (some.stop - some.start, len(values)))]
        means[some], spreads[some] = draws.mean(axis=1), draws.std(axis=1, ddof=1)
    return means, spreads


@lru_cache(512)
def student(freedom: int, below: float) -> float:
    """The value that a Student's t with so many degrees of freedom stays under with probability `below`.

    With t = sqrt(freedom) tan(angle) the density becomes a power of a cosine, which adds up on an even grid.
    """
    angles = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.abs(np.cos(angles)) ** (freedom - 1)
    upto = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(below, upto / upto[-1], angles)))


def pass_at_k(successes: int, tries: int, k: int) -> float:
    """The share of the choices of k among the tries that hold a success: without bias what k fresh tries would reach."""
    return 1.0 - math.comb(tries - successes, k) / math.comb(tries, k)


# --- tests --------------------------------------------------------------------------------------------------------------


def wilcoxon(differences: Sequence[float]) -> float:
    """How likely changes as lopsided as these are, were each as likely up as down: the signed-rank test, two-sided.

    Rows that did not move say nothing and are left out; equal sizes share their rank. Exact where the changes are few, ties and all.
    """
    moved = np.array([round(one, 9) for one in differences if abs(one) > NO_MOVE])
    if not len(moved):
        return 1.0
    twice_ranks = _twice_ranks(np.abs(moved))
    upward = int(twice_ranks[moved > 0].sum())
    return _exact_p(twice_ranks, upward) if len(moved) <= EXACT else _normal_p(twice_ranks, upward)


def leaning(differences: Sequence[float]) -> int:
    """Which way the signed ranks weigh more: 1 up, -1 down, 0 neither. It need not be the mean's: many small losses outweigh few leaps."""
    moved = np.array([round(one, 9) for one in differences if abs(one) > NO_MOVE])
    return int(np.sign((_twice_ranks(np.abs(moved)) * np.sign(moved)).sum())) if len(moved) else 0


def _twice_ranks(sizes: Numbers) -> NDArray[np.int64]:
    """Doubled, so that a shared rank is a whole number."""
    _, group, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (2 * last - counts + 1)[group]


def _exact_p(twice_ranks: NDArray[np.int64], upward: int) -> float:
    """The share of all ways to sign the ranks that lie as far out."""
    ways = np.zeros(int(twice_ranks.sum()) + 1)
    ways[0] = 1.0
    for rank in twice_ranks:
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[: len(ways) - rank]
        ways = (ways + shifted) / 2
    return min(1.0, 2 * float(min(ways[: upward + 1].sum(), ways[upward:].sum())))


def _normal_p(twice_ranks: NDArray[np.int64], upward: int) -> float:
    ranks = twice_ranks / 2
    away = abs(upward / 2 - ranks.sum() / 2) / math.sqrt(float((ranks**2).sum()) / 4)
    return math.erfc(away / math.sqrt(2))


def mcnemar(gained: int, lost: int) -> float:
    """How likely so uneven a split of the rows that flipped is, were each flip as likely either way: exact, two-sided."""
    flips = gained + lost
    fewest = sum(math.comb(flips, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * fewest / 2**flips)


def holm(ps: Sequence[float]) -> tuple[float, ...]:
    """Each p as it counts when all are looked at: of twenty slices one falls under 5% by luck alone."""
    adjusted, worst = [1.0] * len(ps), 0.0
    for place, at in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        worst = max(worst, min(1.0, ps[at] * (len(ps) - place)))
        adjusted[at] = worst
    return tuple(adjusted)
