"""What stops a run before it does harm. Each guard names its figure and the cure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from agent_rft.contracts.errors import Halted
from agent_rft.contracts.graded import GradedRollout

SMALLEST_GROUP = 4
BY_CHANCE = 1e-4
SHOWN = 400
"""Characters of a failure's reason that a halt shows."""


class Diverged(Halted):
    """The weights are no longer worth keeping."""


class Tally(msgspec.Struct):
    """Calls made and calls that infrastructure failed, by part: tool:search, grader:numeric, model."""

    calls: dict[str, int] = msgspec.field(default_factory=dict)
    failed: dict[str, int] = msgspec.field(default_factory=dict)
    reasons: dict[str, str] = msgspec.field(default_factory=dict)
    """What the last failure of each part was."""

    def calls_to(self, kind: str) -> int:
        return sum(n for part, n in self.calls.items() if kind_of(part) == kind)

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
    """Watches which share of calls fails from infrastructure, each kind of part by itself.

    The window is as many of the latest steps as hold `window_calls` calls of the kind, and no more. It halts when so many
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

    def check(self) -> None:
        """Halt where too many calls failed."""
        for kind in ("tool", "grader", "model"):
            window = merged(self._latest(kind))
            if chance_of_failures(window.failures_of(kind), window.calls_to(kind), self._max_rate) < BY_CHANCE:
                part = window.worst(kind)
                failed, calls, reason = window.failed[part], window.calls[part], window.reasons.get(part)
                raise Halted(
                    f"{part} failed {failed} of its last {calls} calls ({failed / calls:.1%}) after retries; "
                    f"{window.rate_of(kind):.1%} of all {kind} calls failed from infrastructure, {self._max_rate:.1%} is allowed"
                    + (f"; the last one said: {reason}" if reason else ""),
                    f"mend {part} (the log of its server says why it failed), or allow more with guards.max_infra_rate=RATE:"
                    " failed rollouts touch neither gradient nor baseline",
                )

    def _latest(self, kind: str) -> list[Tally]:
        calls = 0
        for back, tally in enumerate(reversed(self.steps), 1):
            calls += tally.calls_to(kind)
            if calls >= self._window_calls:
                return self.steps[-back:]
        return self.steps


def check_some_left(rollouts: Sequence[GradedRollout]) -> None:
    """A step in which nothing came through has nothing to learn from, however few calls it made."""
    if all(graded.infra_failed for graded in rollouts):
        parts = Counter(graded.rollout.failed_part for graded in rollouts)
        shown = ", ".join(f"{part} ({times} times)" for part, times in parts.most_common())
        raise Halted(
            f"every rollout of the step failed from infrastructure: {shown}; the last one said: {rollouts[-1].rollout.reason}",
            f"mend {' and '.join(parts)}",
        )


def chance_of_failures(failed: int, calls: int, rate: float) -> float:
    """How likely `failed` or more of `calls` fail where each does at `rate`: the binomial's upper tail, exactly."""
    if failed <= rate * calls:
        return 1.0
    if rate == 0.0:
        return 0.0
    each = (
        math.lgamma(calls + 1) - math.lgamma(k + 1) - math.lgamma(calls - k + 1) + k * math.log(rate) + (calls - k) * math.log1p(-rate)
        for k in range(failed, calls + 1)
    )
    return math.fsum(math.exp(log) for log in each)


def check_kl(kl: float, max_kl: float) -> None:
    if kl > max_kl:
        raise Diverged(
            f"the policy has drifted to a KL of {kl:.3g} from the reference, {max_kl:g} is allowed; its weights are not kept",
            "take a larger algorithm.kl_coef or a smaller algorithm.learning_rate",
        )


def check_finite(loss: float, grad_norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise Diverged(
            f"the update is not a number (loss {loss}, gradient norm {grad_norm}); its weights are not kept",
            "take a smaller algorithm.learning_rate",
        )


def group_size_warning(group_size: int) -> str | None:
    """Below four rollouts a prompt the group's mean is mostly noise."""
    if group_size >= SMALLEST_GROUP:
        return None
    return f"algorithm.group_size is {group_size}: below {SMALLEST_GROUP} the baseline of a group is mostly noise; use 8"
