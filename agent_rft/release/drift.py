"""Whether what comes in and what goes out of a service is still like its reference: its training's runs, or last week's.

Each monitor looks at one number of a run, or at the tools that it called, and deals what the reference had out to bins, about a tenth
of the runs each. Live runs then fall into the same bins. For each bin, and for all up to each and all from each on, the bettors of
`betting` hold that no more of them do than of the reference, by a tolerance. Their capitals are pooled: the monitor's is large where any
span is too full, and the chance that it ever raises a false alarm is bounded, however often one looks. The reference is a sample
itself, so half of a monitor's alpha goes into bounds of what its bins may really hold. PSI and Kolmogorov-Smirnov stand beside, for
people who know them; they raise no alarm, since looked at every minute they would raise many.

Runs of one session are alike, so the first of each counts and the others do not.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal, NamedTuple, get_args
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import JobCard
from agent_rft.release.betting import FRACTIONS, bound
from agent_rft.release.tests import Curve

Monitor = Literal["prompt_length", "unknown_words", "tools", "calls", "tool_errors", "answer_length", "turns", "tokens", "grade"]
MONITORS: tuple[Monitor, ...] = get_args(Monitor)
ALPHA = 0.05
"""The chance of a false alarm of a service against one reference: of all its monitors together, and for as long as it stands."""
TOLERANCE = 0.03
"""By how much more of the live runs may fall into a bin before anybody needs to know."""
LEAST = 50
"""Runs, without which a reference is none."""
TENTHS = 10
MOST_REFERENCE = 1_000
RECENT = 500
"""Runs that PSI and KS look at."""
CALM, CALM_RUNS = 0.1, 200
"""An alarm is over when the PSI of so many runs after it is no more than this above what chance alone makes of it."""
JOIN_EACH = 50
"""Runs, after which new bettors join. Those who are there have lost the more the longer all went well, and would need long to notice."""
MODERATE, LARGE = 0.1, 0.25
"""What is usually made of a PSI."""
MOST_WORDS = 20_000
MOST_TOOLS = 12
NO_TOOL, OTHER_TOOL = "(none)", "(another)"
WORD = re.compile(r"[^\W\d_]{2,}")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitors see of a run."""

    values: dict[Monitor, float]
    """Of all but `unknown_words`, `tools` and `grade`, as far as the run has them."""
    tools: dict[str, float]
    """The share of its calls that went to each."""
    words: tuple[int, ...]
    """Of its prompt, as numbers that spell nothing: what is kept here outlives the card."""
    grades: dict[str, float] = {}
    """By grader, the newest of each."""


def measured(card: JobCard, grades: Sequence[Grade]) -> Measured:
    """The prompt is what the user said last: before it the conversation stands, which grows with the session."""
    rollout = card.rollout
    prompt = next((message.content for message in reversed(rollout.opening) if message.role == "user"), "")
    called = Counter(call.name for turn in rollout.turns for call in turn.calls)
    calls, results = called.total(), [result for turn in rollout.turns for result in turn.results.values()]
    values: dict[Monitor, float] = {
        "prompt_length": len(prompt),
        "calls": calls,
        "answer_length": len(rollout.answer),
        "turns": len(rollout.turns),
        "tokens": card.cost.sampled_tokens,
    }
    if results:
        values["tool_errors"] = sum(result.error is not None for result in results) / len(results)
    tools = {name: count / calls for name, count in called.items()} if calls else {NO_TOOL: 1.0}
    words = tuple(crc32(word.encode("utf-8", "replace")) for word in WORD.findall(prompt.casefold()))
    return Measured(values=values, tools=tools, words=words, grades=rewards(grades))


def graded(grades: Sequence[Grade]) -> Measured:
    """Of a run whose grades came after all else of it was measured."""
    return Measured(values={}, tools={}, words=(), grades=rewards(grades))


def rewards(grades: Sequence[Grade]) -> dict[str, float]:
    return {grade.grader.name: grade.reward for grade in grades if grade.reward is not None}


# --- figures that stand beside -----------------------------------------------------------------------------------------------


class KolmogorovSmirnov(NamedTuple):
    statistic: float
    """The greatest distance between the two samples' shares of values up to any value."""
    p: float


def psi(reference: Sequence[float], live: Sequence[float], n_reference: int, n_live: int) -> float:
    """The population stability index of two lists of shares. An empty bin counts as half a run."""
    total = 0.0
    for before, now in zip(reference, live, strict=True):
        if before or now:
            expected, seen = max(before, 0.5 / n_reference), max(now, 0.5 / n_live)
            total += (seen - expected) * math.log(seen / expected)
    return total


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> KolmogorovSmirnov:
    """Two samples; p by the asymptotic series, with Stephens's correction for small ones."""
    one, other, farthest = sorted(first), sorted(second), 0.0
    for value in {*one, *other}:
        farthest = max(farthest, abs(bisect_right(one, value) / len(one) - bisect_right(other, value) / len(other)))
    root = math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    return KolmogorovSmirnov(farthest, _kolmogorov_tail((root + 0.12 + 0.11 / root) * farthest))


def _kolmogorov_tail(x: float) -> float:
    if x < 0.2:  # where the series below has not converged, and p is 1 to twelve places
        return 1.0
    return min(1.0, max(0.0, 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))))


# --- bins --------------------------------------------------------------------------------------------------------------------


def cuts_of(sample: Sequence[float]) -> list[float]:
    """Between tenths of the sample, and round a value that many share; below all of it, and above. A live value at or above a cut
    falls beyond it."""
    values, counts = sorted(set(sample)), Counter(sample)
    between = {right: (left + right) / 2 for left, right in pairwise(values)}
    after = dict(zip(values, between.values(), strict=False))
    ordered, found = sorted(sample), {values[0], math.nextafter(values[-1], math.inf)}
    for tenth in range(1, TENTHS):
        value = ordered[len(ordered) * tenth // TENTHS]
        found |= {between[value]} if value in between else set()
        found |= {after[value]} if value in after and counts[value] >= len(sample) / TENTHS else set()
    return sorted(found)


def highest_share(share: float, n: int, alpha: float) -> float:
    """A bin's share of all runs is at most this, where a sample of n has `share` of its runs in it: with a chance of error of alpha.
    By Chernoff's bound."""
    low, high = share, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if n * _divergence(share, middle) >= -math.log(alpha) else (middle, high)
    return high


def _divergence(p: float, q: float) -> float:
    rest = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 and q < 1 else math.inf if p < 1 else 0.0
    return (p * math.log(p / q) if p > 0 else 0.0) + rest


# --- one monitor -------------------------------------------------------------------------------------------------------------


class Watch(msgspec.Struct, kw_only=True):
    """The state of one monitor against one reference. It goes through JSON unchanged."""

    alpha: float
    cuts: list[float] = []
    """Of a number's bins; or ..."""
    tools: list[str] = []
    """... the bins are tools."""
    sample: list[float] = []
    """The reference's numbers."""
    shares: list[float]
    """Of the reference, by bin."""
    n_reference: int
    most: list[float]
    """Of live runs that each span of bins may hold."""
    logs: list[list[float]]
    """The logarithms of the bettors' capitals, of each span."""
    n: int = 0
    """Live runs since the test began."""
    log_e: float = 0.0
    recent: list[list[float]] = []
    """Of the newest runs: the number, or the share of each tool."""
    curve: Curve = msgspec.field(default_factory=Curve)
    alarmed_after: int | None = None
    """Runs of this test, where there is an alarm."""

    def take(self, values: Sequence[float | Mapping[str, float]]) -> bool | None:
        """Of runs, in their order. Whether there is an alarm now, where that has just changed; after one the test begins anew."""
        runs = [self._by_tool(value) if isinstance(value, Mapping) else [float(value)] for value in values]
        if not runs:
            return None
        self.recent = [*self.recent, *runs][-RECENT:]
        course = self._course(runs)
        for number, log_e in enumerate(course, self.n + 1):
            self.curve.add(number, log_e)
        self.n, self.log_e = self.n + len(runs), course[-1]
        return self._turned(max(course))

    def _course(self, runs: Sequence[Sequence[float]]) -> list[float]:
        """The pooled capital after each run. As Bet has it for outcomes that are 0 where a run falls into the span: all spans at once,
        since there are hundreds. New bettors join at regular times."""
        dealt = self._dealt(runs)
        held = np.stack([np.minimum(dealt[:, span].sum(axis=1), 1) for span in self._spans()], axis=1)[:, :, None]
        most = np.array(self.most)[None, :, None]
        won = np.log1p(np.array(FRACTIONS) / most * (held - most))
        course: list[float] = []
        for first in range(0, len(runs), JOIN_EACH):  # pieces of the list that begin where bettors join
            for piece in np.split(won[first : first + JOIN_EACH], [-(self.n + first) % JOIN_EACH]):
                if len(piece):
                    course += self._take_piece(piece, self.n + len(course))
        return course

    def _take_piece(self, won: NDArray[np.float64], n: int) -> list[float]:
        start = np.array(self.logs)
        if n % JOIN_EACH == 0:
            start = np.logaddexp(start, _joining(n // JOIN_EACH)) if n else start + _joining(0)
        logs = start + np.cumsum(won, axis=0)
        self.logs = logs[-1].tolist()
        return _pooled(logs.reshape(len(won), -1)).tolist()

    def _turned(self, highest: float) -> bool | None:
        if self.alarmed_after is None:
            if highest < bound(self.alpha / 2):
                return None
            self.alarmed_after = self.n
            return True
        newest = self.recent[-CALM_RUNS:]
        if self.n - self.alarmed_after < CALM_RUNS or self._psi(newest) >= CALM + self._psi_by_chance(len(newest)):
            return None
        self.logs = _even(len(self.most))
        self.n, self.log_e, self.curve, self.alarmed_after = 0, 0.0, Curve(), None
        return False

    def figures(self) -> dict[str, Any]:
        live = self._shares(self.recent) if self.recent else None
        numbers = [one[0] for one in self.recent] if self.sample else []
        test = kolmogorov_smirnov(self.sample, numbers) if numbers else None
        return {
            "n": self.n,
            "n_reference": self.n_reference,
            "n_recent": len(self.recent),
            "bins": self.labels(),
            "reference": self.shares,
            "live": live,
            "reference_mean": fmean(self.sample) if self.sample else None,
            "live_mean": fmean(numbers) if numbers else None,
            "psi": self._psi(self.recent) if self.recent else None,
            "psi_by_chance": self._psi_by_chance(len(self.recent)) if self.recent else None,
            "ks": test and test.statistic,
            "ks_p": test and test.p,
            "log_e": self.log_e,
            "bound": bound(self.alpha / 2),
            "alarmed": self.alarmed_after is not None,
            "curve": [list(point) for point in self.curve.points],
        }

    def labels(self) -> list[str]:
        """Of the bins, in their order."""
        return self.tools or [self.label(slice(place, place + 1)) for place in range(len(self.shares))]

    def label(self, span: slice) -> str:
        if self.tools:
            return ", ".join(self.tools[span])
        most = math.nextafter(self.cuts[-1], -math.inf)  # of the reference: the last cut is just above it
        edges = [f"{cut:.4g}" for cut in (*self.cuts[:-1], most)]
        if span.stop == len(self.shares):
            return f"more than {edges[-1]}" if span.start == len(edges) else f"{edges[span.start - 1]} or more"
        if span.start == 0:
            return f"below {edges[span.stop - 1]}"
        low, high = edges[span.start - 1], edges[span.stop - 1]
        return low if low == high else f"{low} to {high}"

    def fullest(self) -> slice:
        """The span of bins that the most was won on."""
        return max(zip(self.logs, self._spans(), strict=True), key=lambda one: max(one[0]))[1]

    def _spans(self) -> list[slice]:
        return spans(len(self.shares), in_order=not self.tools)

    def _by_tool(self, shares: Mapping[str, float]) -> list[float]:
        known = [shares.get(name, 0.0) for name in self.tools[:-1]]
        return [*known, max(0.0, 1 - sum(known))]

    def _dealt(self, runs: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """How much of each run falls into each bin."""
        values = np.array(runs)
        if self.tools:
            return values
        return np.eye(len(self.shares))[np.searchsorted(self.cuts, values[:, 0], side="right")]

    def _shares(self, runs: Sequence[Sequence[float]]) -> list[float]:
        return self._dealt(runs).mean(axis=0).tolist()

    def _psi(self, runs: Sequence[Sequence[float]]) -> float:
        return psi(self.shares, self._shares(runs), self.n_reference, len(runs))

    def _psi_by_chance(self, n: int) -> float:
        """Its mean where nothing differs: that of a chi-squared, over the bins that the reference fills."""
        return (sum(share > 0 for share in self.shares) - 1) * (1 / n + 1 / self.n_reference)


def _pooled(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    top = logs.max(axis=1)
    return top + np.log(np.exp(logs - top[:, None]).mean(axis=1))


def _joining(time: int) -> float:
    """The logarithm of what bettors bring who join then: 1/2, 1/6, 1/12 and so on are 1 in all."""
    return -math.log((time + 1) * (time + 2))


def _even(spans: int) -> list[list[float]]:
    return [[0.0] * len(FRACTIONS) for _ in range(spans)]


def watch_numbers(sample: Sequence[float], alpha: float) -> Watch:
    cuts, n = cuts_of(sample), len(sample)
    counts = Counter(bisect_right(cuts, value) for value in sample)
    shares = [counts[place] / n for place in range(len(cuts) + 1)]
    most = _most(shares, spans(len(shares), in_order=True), n, alpha)
    return Watch(alpha=alpha, cuts=cuts, sample=list(sample), shares=shares, n_reference=n, most=most, logs=_even(len(most)))


def watch_tools(sample: Sequence[Mapping[str, float]], alpha: float) -> Watch:
    n, totals = len(sample), defaultdict[str, float](float)
    for one in sample:
        for name, share in one.items():
            totals[name] += share
    names = sorted(totals, key=lambda name: (-totals[name], name))[:MOST_TOOLS]
    shares = [totals[name] / n for name in names]
    shares.append(max(0.0, 1 - sum(shares)))
    most = _most(shares, spans(len(shares), in_order=False), n, alpha)
    return Watch(alpha=alpha, tools=[*names, OTHER_TOOL], shares=shares, n_reference=n, most=most, logs=_even(len(most)))


def _most(shares: Sequence[float], over: Sequence[slice], n: int, alpha: float) -> list[float]:
    """Half of alpha for the bounds of all spans."""
    held = [min(1.0, sum(shares[span])) for span in over]
    return [min(1.0, max(share + TOLERANCE, highest_share(share, n, alpha / 2 / len(over)))) for share in held]


def spans(bins: int, *, in_order: bool) -> list[slice]:
    """Each bin by itself; where they have an order, also all up to each, and all from each on."""
    single = [slice(place, place + 1) for place in range(bins)]
    if not in_order:
        return single
    return [*single, *(slice(0, place) for place in range(2, bins - 1)), *(slice(place, bins) for place in range(2, bins - 1))]


# --- all of them -------------------------------------------------------------------------------------------------------------


class Turned(NamedTuple):
    """An alarm that began or ended."""

    monitor: Monitor
    alarmed: bool
    why: str


class Comparison(msgspec.Struct, kw_only=True):
    """A service against one reference."""

    watches: dict[Monitor, Watch]
    vocabulary: list[int]
    """Sorted."""
    grader: str = ""
    """Whose grades are compared."""

    def take(self, runs: Sequence[Measured]) -> list[Turned]:
        """In their order."""
        found: list[Turned] = []
        for monitor, watch in self.watches.items():
            values = [value for run in runs if (value := self._value(monitor, run)) is not None]
            if (now := watch.take(values)) is not None:
                found.append(Turned(monitor, now, told(monitor, watch) if now else calmed(monitor)))
        return found

    def _value(self, monitor: Monitor, run: Measured) -> float | Mapping[str, float] | None:
        if monitor == "tools":
            return run.tools or None
        if monitor == "unknown_words":
            return unknown_share(run.words, self.vocabulary)
        return run.grades.get(self.grader) if monitor == "grade" else run.values.get(monitor)


def unknown_share(words: Sequence[int], vocabulary: Sequence[int]) -> float | None:
    """Of a prompt without words it says nothing."""
    if not words:
        return None

    def known(word: int) -> bool:
        place = bisect_right(vocabulary, word)
        return place > 0 and vocabulary[place - 1] == word

    return sum(not known(word) for word in words) / len(words)


def compare_with(sample: Sequence[Measured], alpha: float = ALPHA) -> Comparison | None:
    """None where the sample is too small to say anything. The words of one half of it are the vocabulary, which the other half is
    measured by, as live prompts are."""
    grader = max(Counter(name for run in sample for name in run.grades).most_common(1), default=("", 0))[0]
    vocabulary = sorted(_common(sample[::2]))
    each = alpha / len(MONITORS)
    watches: dict[Monitor, Watch] = {}
    for monitor in MONITORS:
        if monitor == "tools":
            if len(sample) >= LEAST:
                watches[monitor] = watch_tools([run.tools for run in sample], each)
            continue
        numbers = _numbers(monitor, sample, vocabulary, grader)
        if len(numbers) >= LEAST:
            watches[monitor] = watch_numbers(numbers[:MOST_REFERENCE], each)
    return Comparison(watches=watches, vocabulary=vocabulary, grader=grader) if watches else None


def _numbers(monitor: Monitor, sample: Sequence[Measured], vocabulary: Sequence[int], grader: str) -> list[float]:
    if monitor == "unknown_words":
        return [share for run in sample[1::2] if (share := unknown_share(run.words, vocabulary)) is not None]
    told = [run.grades.get(grader) if monitor == "grade" else run.values.get(monitor) for run in sample]
    return [value for value in told if value is not None]


def _common(sample: Sequence[Measured]) -> list[int]:
    return [word for word, _ in Counter(word for run in sample for word in run.words).most_common(MOST_WORDS)]


# --- words -------------------------------------------------------------------------------------------------------------------

NAMES: Mapping[Monitor, str] = {
    "prompt_length": "length of prompts",
    "unknown_words": "words of prompts that the reference does not have",
    "tools": "choice of tools",
    "calls": "tool calls per run",
    "tool_errors": "share of tool calls that failed",
    "answer_length": "length of answers",
    "turns": "turns per run",
    "tokens": "tokens written per run",
    "grade": "grades",
}


def told(monitor: Monitor, watch: Watch) -> str:
    """Where it is too full, for people."""
    figures, span = watch.figures(), watch.fullest()
    before, now = (min(1.0, sum(figures[whose][span])) for whose in ("reference", "live"))
    return (
        f"{NAMES[monitor]}: {now:.0%} of the newest {figures['n_recent']} runs are {watch.label(span)}, {before:.0%} of the reference's;"
        f" e-value {e_value(watch.log_e)} > {e_value(figures['bound'])} after {watch.n} runs"
    )


def e_value(log_e: float) -> str:
    return f"{math.exp(log_e):,.0f}" if log_e < 14 else f"10^{log_e / math.log(10):.0f}"


def calmed(monitor: Monitor) -> str:
    return f"{NAMES[monitor]}: the newest {CALM_RUNS} runs are like the reference again (their PSI is that of chance)"


class Seen(msgspec.Struct):
    """Which sessions, and which graded runs, were counted lately; as numbers that spell nothing."""

    newest: list[int] = []

    def before(self, name: str, most: int = 5_000) -> bool:
        """Whether it was, and from now on it is."""
        number = crc32(name.encode("utf-8", "replace"))
        if number in self.newest:
            return True
        self.newest = list(deque([*self.newest, number], maxlen=most))
        return False
