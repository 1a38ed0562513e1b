"""What the sessions of a release say of its candidate: one test by betting for each figure, with a share of alpha each.

A session is the unit: its turns are alike, and to count them one by one would raise false alarms many times over. Of every figure but
safety violations the difference between the arms is tested, so that what happens to both of them (an outage, harder questions) speaks
against neither. A candidate's session is paired with the mean of the live sessions that closed since the last pair, or, where there
is none, waits for the next. Few wait at a time: where the candidate has most of the traffic they are put together, since a session
that waited long would be held against another hour. Who is paired with whom hangs on the order of the arms alone, never on a figure.

Nothing is ever reset: not at a new share, not after a hold. The shadow's sessions are tested apart, with a part of alpha of their own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from agent_rft.contracts.agents import Arm
from agent_rft.contracts.releases import KPIS, Kpi, Policy, Session
from agent_rft.release.betting import Bet, Outcomes, bound
from agent_rft.release.policies import check_numbers

SHADOW_PART = 0.2
"""Of alpha, where the policy has a shadow."""
IN_SHADOW: frozenset[Kpi] = frozenset(("reward", "holdout", "errors", "slow", "unsafe"))
"""Tools are not called in the shadow: what their replay fails at says nothing of the candidate."""
THE_MORE_THE_BETTER: frozenset[Kpi] = frozenset(("reward", "holdout"))
PROMOTES: tuple[Kpi, ...] = ("reward", "errors", "tool_failures", "slow")
"""What has to be shown of all of these before everybody gets the candidate: afterwards there is nothing left to hold it against."""
MOST_WAITING = 4
CURVE_POINTS = 200
PAGE_ALPHA = 0.05
"""Of the bounds that figures show."""


class Sum(msgspec.Struct):
    n: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.total += value

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None


class Curve(msgspec.Struct):
    """The course of a test, thinned: once it is full every second point goes, and only every second comes from then on."""

    points: list[tuple[int, float]] = []
    every: int = 1

    def add(self, n: int, log_e: float) -> None:
        if n % self.every:
            return
        self.points.append((n, round(log_e, 3)))
        if len(self.points) >= CURVE_POINTS:
            self.every *= 2
            self.points = [point for point in self.points if point[0] % self.every == 0]


class Pairing(msgspec.Struct):
    """Whoever waits for the other arm: live sessions as one sum, or candidate's in a short queue, never both."""

    live: Sum = msgspec.field(default_factory=Sum)
    candidates: list[Sum] = []

    def take(self, arm: Arm, value: float) -> tuple[float, float] | None:
        """The means of candidate and live, where this one completes a pair."""
        if arm == "candidate":
            self._queue(value)
        else:
            self.live.add(value)
        if not self.candidates or not self.live.n:
            return None
        candidate, live = self.candidates.pop(0), self.live
        self.live = Sum()
        return candidate.total / candidate.n, live.total / live.n

    def _queue(self, value: float) -> None:
        if len(self.candidates) < MOST_WAITING:
            self.candidates.append(Sum())
        self.candidates[-1].add(value)


class KpiTest(msgspec.Struct, kw_only=True):
    """Of one figure: that the candidate is no worse than is borne."""

    kpi: Kpi
    alpha: float
    bet: Bet
    candidate: Sum = msgspec.field(default_factory=Sum)
    live: Sum = msgspec.field(default_factory=Sum)
    pairing: Pairing = msgspec.field(default_factory=Pairing)
    outcomes: Outcomes = msgspec.field(default_factory=Outcomes)
    curve: Curve = msgspec.field(default_factory=Curve)

    @property
    def rejected(self) -> bool:
        return self.bet.rejects(self.alpha)

    def take(self, arm: Arm, value: float) -> float | None:
        """The outcome that was bet on, where there was one: from 0 to 1, the larger the better for the candidate."""
        (self.candidate if arm == "candidate" else self.live).add(value)
        if (outcome := self._outcome(arm, value)) is not None:
            self.bet.update(outcome)
            self.outcomes.add(outcome)
            self.curve.add(self.bet.n, self.bet.log_e)
        return outcome

    def _outcome(self, arm: Arm, value: float) -> float | None:
        if self.kpi == "unsafe":
            return 1 - value if arm == "candidate" else None
        pair = self.pairing.take(arm, value)
        if pair is None:
            return None
        better = pair[0] - pair[1] if self.kpi in THE_MORE_THE_BETTER else pair[1] - pair[0]
        return min(max((better + 1) / 2, 0.0), 1.0)

    def figures(self) -> dict[str, Any]:
        candidate, live = self.candidate.mean, self.live.mean
        low, high = self._difference_within() if self.bet.n else (None, None)
        return {
            "n": self.bet.n,
            "candidate": candidate,
            "candidate_sessions": self.candidate.n,
            "live": live,
            "live_sessions": self.live.n,
            "difference": self._difference(),
            "low": low,
            "high": high,
            "p": self.bet.p_value,
            "alpha": self.alpha,
            "log_e": self.bet.log_e,
            "highest_log_e": self.bet.highest_log_e,
            "bound": bound(self.alpha) if self.alpha else None,
        }

    def _difference(self) -> float | None:
        """The mean over the pairs: that of all sessions mixes times at which the arms had other shares."""
        mean = self.outcomes.mean
        if mean is None or self.kpi == "unsafe":
            return None
        return 2 * mean - 1 if self.kpi in THE_MORE_THE_BETTER else 1 - 2 * mean

    def _difference_within(self) -> tuple[float, float]:
        """Of candidate less live, or of the rate of violations."""
        low, high = self.outcomes.mean_within(PAGE_ALPHA)
        if self.kpi == "unsafe":
            return 1 - high, 1 - low
        low, high = 2 * low - 1, 2 * high - 1
        return (low, high) if self.kpi in THE_MORE_THE_BETTER else (-high, -low)


class Tests(msgspec.Struct, kw_only=True):
    """All of a release. It goes through JSON unchanged, and is all that is kept of the sessions that were counted."""

    __test__: ClassVar[bool] = False  # pytest takes it for one of its own by the name

    canary: list[KpiTest]
    shadow: list[KpiTest]
    promotions: dict[Kpi, Bet]
    """That the candidate is worse by the margin or more, in each figure. All of it has to be refuted before everybody gets it."""
    margins: dict[Kpi, float]
    promote_alpha: float

    def take(self, session: Session) -> None:
        for test in self.shadow if session.shadow else self.canary:
            value = getattr(session, test.kpi)
            if value is None:
                continue
            outcome = test.take(session.arm, value)
            if outcome is not None and test.kpi in self.promotions and not session.shadow:
                self.promotions[test.kpi].update(1 - outcome)

    def rejected(self) -> tuple[KpiTest, bool] | None:
        """The test that speaks against the candidate, and whether it is one of the shadow's. What is unsafe goes before the rest."""
        found = [(test, tests is self.shadow) for tests in (self.canary, self.shadow) for test in tests if test.rejected]
        return max(found, key=lambda one: (one[0].kpi == "unsafe", one[0].bet.highest_log_e - bound(one[0].alpha)), default=None)

    def noninferior(self) -> bool:
        return all(bet.rejects(self.promote_alpha) for bet in self.promotions.values())

    def least_shown(self) -> tuple[Kpi, Bet]:
        """Of what has to be shown before everybody gets the candidate."""
        return min(self.promotions.items(), key=lambda one: one[1].highest_log_e)

    def figures(self, *, shadow: bool = False, curve: bool = True) -> dict[str, Any]:
        """By figure, all that JSON can hold; and of the promotion, where it is not the shadow that is asked for."""
        tests = self.shadow if shadow else self.canary
        said: dict[str, Any] = {test.kpi: test.figures() for test in tests}
        if curve:
            for test in tests:
                newest = (test.bet.n, round(test.bet.log_e, 3))
                points = test.curve.points
                said[test.kpi]["curve"] = [list(point) for point in (points if newest in points[-1:] else [*points, newest])]
        if not shadow:
            said["promotion"] = {
                "alpha": self.promote_alpha,
                "bound": bound(self.promote_alpha),
                "noninferior": self.noninferior(),
                "of": {
                    kpi: {"n": bet.n, "margin": self.margins[kpi], "p": bet.p_value, "log_e": bet.log_e, "highest_log_e": bet.highest_log_e}
                    for kpi, bet in self.promotions.items()
                },
            }
        return said


def new_tests(policy: Policy) -> Tests:
    check_numbers(policy)
    of_shadow = SHADOW_PART if policy.shadow_sessions else 0.0
    margins: dict[Kpi, float] = {kpi: policy.margin if kpi in THE_MORE_THE_BETTER else policy.rate_margin for kpi in PROMOTES}
    return Tests(
        canary=[_new(policy, kpi, 1 - of_shadow) for kpi in KPIS],
        shadow=[_new(policy, kpi, of_shadow) for kpi in KPIS if kpi in IN_SHADOW] if of_shadow else [],
        promotions={kpi: Bet(m=(1 + margin) / 2) for kpi, margin in margins.items()},
        margins=margins,
        promote_alpha=policy.promote_alpha,
    )


def _new(policy: Policy, kpi: Kpi, part: float) -> KpiTest:
    m = 1 - policy.unsafe_cap if kpi == "unsafe" else (1 - policy.tolerance.get(kpi, 0.0)) / 2
    return KpiTest(kpi=kpi, alpha=policy.alpha * policy.spent_on.get(kpi, 0.0) * part, bet=Bet(m=m))
