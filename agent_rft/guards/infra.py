"""Which share of what was asked of tools, graders and the model server infrastructure failed, and whether that is still chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from agent_rft.contracts.errors import Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.guards import ENDING, Limit
from agent_rft.guards.limits import Suspicion, limit_of

BY_CHANCE = 1e-4
SHOWN = 400
"""Characters of a failure's reason that a halt shows."""
GUARD_OF = {"tool": "infra", "grader": "judge_failures", "model": "model_failures"}
"""Who watches each kind of part."""


class Tally(msgspec.Struct):
    """Calls made and calls that infrastructure failed, by part: tool:search, grader:numeric, model."""

    calls: dict[str, int] = msgspec.field(default_factory=dict)
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    reasons: dict[str, str] = msgspec.field(default_factory=dict)
    """What the last failure of each part was."""

    def parts(self, kind: str) -> list[str]:
        return [part for part in self.calls if kind_of(part) == kind]

    def calls_to(self, kind: str) -> int:
        return sum(self.calls[part] for part in self.parts(kind))

    def failures_of(self, kind: str) -> int:
        return sum(n for part, n in self.failed.items() if kind_of(part) == kind)

    def rate_of(self, kind: str) -> float:
        return self.failures_of(kind) / (self.calls_to(kind) or 1)

    def worst(self, kind: str) -> str:
        """The part of that kind which failed the largest share of its calls."""
        return max((part for part in self.failed if kind_of(part) == kind), key=lambda part: self.failed[part] / self.calls[part])


def kind_of(part: str) -> str:
    return part.partition(":")[0]


def tally_of(rollouts: Iterable[GradedRollout]) -> Tally:
    """What the rollouts asked of the infrastructure. A failure ends its rollout, so each holds one at most."""
    calls, failed, reasons = Counter[str](), Counter[str](), dict[str, str]()
    for graded in rollouts:
        rollout = graded.rollout
        calls.update(f"tool:{call.name}" for turn in rollout.turns for call in turn.calls)
        calls["model"] += len(rollout.turns)
        if graded.infra_failed:
            failed[rollout.failed_part] += 1
            reasons[rollout.failed_part] = rollout.reason[:SHOWN]
        if graded.infra_failed and kind_of(rollout.failed_part) != "tool":
            calls[rollout.failed_part] += 1
        elif graded.grade:
            calls[f"grader:{graded.grade.grader.name}"] += 1
    return Tally(dict(calls), dict(failed), reasons)


def merged(tallies: Iterable[Tally]) -> Tally:
    calls, failed, reasons = Counter[str](), Counter[str](), dict[str, str]()
    for tally in tallies:
        calls.update(tally.calls)
        failed.update(tally.failed)
        reasons.update(tally.reasons)
    return Tally(dict(calls), dict(failed), reasons)


class InfraGuard:
    """Watches which share of calls fails from infrastructure, each kind of part by itself, and each tool by itself.

    The window is as many of the latest steps as hold `window_calls` calls of the kind, and no more. It speaks when so many
    failures would be all but impossible (one look in BY_CHANCE) at the rate allowed: a run takes hundreds of looks, and
    comparing the bare rate would halt most runs at half the rate allowed.
    """

    def __init__(self, max_rate: float, window_calls: int, steps: Iterable[Tally] = ()) -> None:
        self._max_rate = max_rate
        self._window_calls = max(1, window_calls)
        self.steps = list(steps)
        """What a checkpoint keeps of this guard: the steps that some kind's window still needs."""

    def note(self, tally: Tally) -> None:
        self.steps.append(tally)
        kinds = {kind_of(part) for tally in self.steps for part in tally.calls}
        needed = max((len(self._latest(kind)) for kind in kinds), default=0)
        self.steps = self.steps[len(self.steps) - needed :]

    def failure_rate(self, kind: str) -> float:
        """Of the kind's calls in its window."""
        return merged(self._latest(kind)).rate_of(kind)

    def check(self, watch: Mapping[str, Limit]) -> None:
        """Halt where too many calls failed, and `watch` does not let it pass: for rollouts that no step of training made."""
        for guard, found in self.suspicions({name: limit.at for name, limit in watch.items()}):
            if limit_of(guard, watch).action in ENDING:
                raise Halted(found.what, found.cure)

    def suspicions(self, rates: Mapping[str, float]) -> Iterator[tuple[str, Suspicion]]:
        """By guard, each at the rate allowed to it (`rates`, else to all), of kinds of parts."""
        for kind, guard in GUARD_OF.items():
            window, most = merged(self._latest(kind)), rates.get(guard, self._max_rate)
            if chance_of_failures(window.failures_of(kind), window.calls_to(kind), most) < BY_CHANCE:
                what = f"{window.rate_of(kind):.1%} of all {kind} calls failed from infrastructure, {most:.1%} is allowed"
                yield guard, Suspicion(window.rate_of(kind), *_words(window, window.worst(kind), what))

    def suspicious_tools(self, most: float) -> Iterator[Suspicion]:
        """Tools that fail too often by themselves, whatever the others do."""
        window = merged(self._latest("tool"))
        for tool in window.parts("tool"):
            failed, calls = window.failed.get(tool, 0), window.calls[tool]
            if chance_of_failures(failed, calls, most) < BY_CHANCE:
                yield Suspicion(failed / calls, *_words(window, tool, f"{most:.1%} is allowed"))

    def _latest(self, kind: str) -> list[Tally]:
        calls = 0
        for back, tally in enumerate(reversed(self.steps), 1):
            calls += tally.calls_to(kind)
            if calls >= self._window_calls:
                return self.steps[-back:]
        return self.steps


def _words(window: Tally, part: str, what: str) -> tuple[str, str]:
    failed, calls, reason = window.failed[part], window.calls[part], window.reasons.get(part)
    said = f"; the last one said: {reason}" if reason else ""
    return (
        f"{part} failed {failed} of its last {calls} calls ({failed / calls:.1%}) after retries; {what}{said}",
        f"mend {part} (the log of its server says why it failed), or allow more with guards.max_infra_rate=RATE:"
        " failed rollouts touch neither gradient nor baseline",
    )


def silent_graders(grades: Mapping[str, Sequence[Grade | None]], most: float) -> Iterator[Suspicion]:
    """Of graders that training never sees, by name, those that give no score more often than chance explains."""
    for name, given in grades.items():
        asked = [grade for grade in given if grade]
        silent = [grade for grade in asked if grade.reward is None]
        if silent and chance_of_failures(len(silent), len(asked), most) < BY_CHANCE:
            said = str(next(iter(silent[-1].errors.values()), "nothing"))[:SHOWN]
            yield Suspicion(
                len(silent) / len(asked),
                f"{name}, which training never sees, gave no score to {len(silent)} of {len(asked)} tries; the last one said: {said}",
                f"mend {name}: while it is silent, nothing that it would notice is noticed",
            )


def nothing_left(rollouts: Sequence[GradedRollout]) -> Suspicion | None:
    """A step in which nothing came through has nothing to learn from, however few calls it made."""
    if not rollouts or not all(graded.infra_failed for graded in rollouts):
        return None
    parts = Counter(graded.rollout.failed_part for graded in rollouts)
    shown = ", ".join(f"{part} ({times} times)" for part, times in parts.most_common())
    said = rollouts[-1].rollout.reason[:SHOWN]
    what = f"every rollout of the step failed from infrastructure: {shown}; the last one said: {said}"
    return Suspicion(1.0, what, f"mend {' and '.join(parts)}")


def chance_of_failures(failed: int, calls: int, rate: float) -> float:
    """How likely `failed` or more of `calls` fail where each does at `rate`: the binomial's upper tail, exactly."""
    if failed <= rate * calls:
        return 1.0
    if rate == 0.0:
        return 0.0
    each = (_log_ways(calls, k) + k * math.log(rate) + (calls - k) * math.log1p(-rate) for k in range(failed, calls + 1))
    return math.fsum(math.exp(log) for log in each)


def chance_of_more(hits: int, tries: int, hits_before: int, tries_before: int) -> float:
    """How likely `hits` or more of all hits fall to `tries`, were they as likely before: Fisher's test, the hypergeometric's upper tail."""
    hits_ever, tries_ever = hits + hits_before, tries + tries_before
    whole = _log_ways(tries_ever, hits_ever)
    most = min(hits_ever, tries)
    return math.fsum(
        math.exp(_log_ways(tries, k) + _log_ways(tries_before, hits_ever - k) - whole)
        for k in range(hits, most + 1)
        if hits_ever - k <= tries_before
    )


def _log_ways(of: int, chosen: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(chosen + 1) - math.lgamma(of - chosen + 1)
