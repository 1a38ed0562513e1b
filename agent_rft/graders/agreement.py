"""How far two judges of the same samples agree: Cohen's kappa, rank correlation, and what differs sample by sample.

Each figure is None where it is not defined: for kappa, where chance alone would agree on everything (both said one and the
same thing throughout, or there is nothing to compare); for a rank correlation, where one side ranks all alike.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import groupby
from statistics import NormalDist, correlation, fmean
from typing import Literal

import msgspec

from agent_rft.contracts.grades import Grade

Z95 = NormalDist().inv_cdf(0.975)
SAME = 1e-9
"""Rewards that differ by less are the same: the order in which a formula adds up is nobody's news."""
Weights = Literal["linear", "quadratic"]
Change = Literal["now passes", "now fails", "other reward", "lost its score", "gained a score"]


class Kappa(msgspec.Struct, frozen=True):
    """Agreement beyond chance: 1 for full agreement, 0 for what chance alone would give.

    The interval is the large-sample one: of few samples, or where nothing differs (its width is then 0), it promises too much.
    """

    samples: int
    observed: float | None
    """The share of agreement that was seen; where weighted, near misses count in part."""
    expected: float | None
    """What chance would give with the same habits of both judges."""
    kappa: float | None
    error: float | None
    """Standard error."""
    low: float | None
    high: float | None
    """The 95% interval."""


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> Kappa:
    """Of two judges' categories. After Fleiss, Cohen and Everitt (1969), as is the weighted one."""
    return _kappa(pairs, lambda one, other: float(one == other))


def weighted_kappa(pairs: Sequence[tuple[float, float]], levels: Sequence[float], weights: Weights) -> Kappa:
    """Of graded scores: the further apart two are among the `levels`, from the lowest to the highest, the less they agree."""
    place = {level: at for at, level in enumerate(levels)}
    power = 1 if weights == "linear" else 2

    def agreed(one: Hashable, other: Hashable) -> float:
        apart = abs(place[one] - place[other]) / max(len(levels) - 1, 1)  # type: ignore[index]
        return 1 - apart**power

    return _kappa(pairs, agreed)


def _kappa(pairs: Sequence[tuple[Hashable, Hashable]], agreed: Callable[[Hashable, Hashable], float]) -> Kappa:
    n = len(pairs)
    if not n:
        return Kappa(0, None, None, None, None, None, None)
    cells = {cell: count / n for cell, count in Counter(pairs).items()}
    rows, columns = _shares([one for one, _ in pairs]), _shares([other for _, other in pairs])
    observed = math.fsum(share * agreed(*cell) for cell, share in cells.items())
    expected = math.fsum(rows[one] * columns[other] * agreed(one, other) for one in rows for other in columns)
    left = 1 - expected
    if left < SAME:
        return Kappa(n, observed, expected, None, None, None, None)
    of_row = {one: math.fsum(columns[other] * agreed(one, other) for other in columns) for one in rows}
    of_column = {other: math.fsum(rows[one] * agreed(one, other) for one in rows) for other in columns}
    spread = math.fsum(
        share * (agreed(one, other) * left - (of_row[one] + of_column[other]) * (1 - observed)) ** 2
        for (one, other), share in cells.items()
    )
    variance = (spread - (observed * expected - 2 * expected + observed) ** 2) / (n * left**4)
    kappa, error = (observed - expected) / left, math.sqrt(max(variance, 0.0))
    return Kappa(n, observed, expected, kappa, error, max(kappa - Z95 * error, -1.0), min(kappa + Z95 * error, 1.0))


def _shares(said: Sequence[Hashable]) -> dict[Hashable, float]:
    return {category: count / len(said) for category, count in Counter(said).items()}


# --- ranks --------------------------------------------------------------------------------------------------------------


def spearman(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """Correlation of the ranks; those that tie share their mean rank."""
    if len(set(ones)) < 2 or len(set(others)) < 2:
        return None
    return correlation(_ranks(ones), _ranks(others))


def _ranks(values: Sequence[float]) -> list[float]:
    ranks, before = [0.0] * len(values), 0
    for _, tied in groupby(sorted(range(len(values)), key=values.__getitem__), key=values.__getitem__):
        places = list(tied)
        for place in places:
            ranks[place] = before + (len(places) + 1) / 2
        before += len(places)
    return ranks


def kendall(ones: Sequence[float], others: Sequence[float]) -> float | None:
    """Tau-b: of all pairs of samples, those in the same order less those in the opposite one, ties allowed for."""
    pairs = math.comb(len(ones), 2)
    tied_ones, tied_others, tied_both = _tied(ones), _tied(others), _tied(list(zip(ones, others, strict=True)))
    if pairs in (tied_ones, tied_others):
        return None
    opposite, seen = 0, list[float]()
    for _, other in sorted(zip(ones, others, strict=True)):
        opposite += len(seen) - bisect_right(seen, other)
        insort(seen, other)
    same_less_opposite = pairs - tied_ones - tied_others + tied_both - 2 * opposite
    return same_less_opposite / math.sqrt((pairs - tied_ones) * (pairs - tied_others))


def _tied(values: Sequence[Hashable]) -> int:
    return sum(math.comb(count, 2) for count in Counter(values).values())


# --- sample by sample ---------------------------------------------------------------------------------------------------


class Changed(msgspec.Struct, frozen=True):
    """A sample that two graders do not see alike."""

    sample: str
    change: Change
    before: float | None
    after: float | None


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Means, rates and correlations are over the samples that both graders scored: only these compare."""

    samples: int
    scored_by_both: int
    mean_before: float | None
    mean_after: float | None
    pass_rate_before: float | None
    pass_rate_after: float | None
    spearman: float | None
    kendall: float | None
    changed: tuple[Changed, ...]

    def count(self, change: Change) -> int:
        return sum(one.change == change for one in self.changed)


def difference(before: Mapping[str, Grade], after: Mapping[str, Grade]) -> Difference:
    """Over the samples that both have a grade for, in the order of `before`."""
    shared = {sample: (before[sample], after[sample]) for sample in before if sample in after}
    both = [(old.reward, new.reward) for old, new in shared.values() if old.reward is not None and new.reward is not None]
    passed = [(bool(old.passed), bool(new.passed)) for old, new in shared.values() if old.reward is not None and new.reward is not None]
    ones, others = [old for old, _ in both], [new for _, new in both]
    changed = [Changed(sample, change, old.reward, new.reward) for sample, (old, new) in shared.items() if (change := _change(old, new))]
    return Difference(
        samples=len(shared),
        scored_by_both=len(both),
        mean_before=fmean(ones) if both else None,
        mean_after=fmean(others) if both else None,
        pass_rate_before=fmean(old for old, _ in passed) if both else None,
        pass_rate_after=fmean(new for _, new in passed) if both else None,
        spearman=spearman(ones, others),
        kendall=kendall(ones, others),
        changed=tuple(changed),
    )


def _change(old: Grade, new: Grade) -> Change | None:
    if old.reward is None or new.reward is None:
        if old.reward is new.reward:
            return None
        return "lost its score" if new.reward is None else "gained a score"
    if bool(old.passed) != bool(new.passed):
        return "now passes" if new.passed else "now fails"
    return "other reward" if abs(old.reward - new.reward) > SAME else None
