"""Is the run still learning, and still working as it did? Read off its lines, against the run's own first steps: what is much or little
depends on the model and the task, and a healthy run may well need a third of the calls and twice the words that it began with.

A guard compares the mean of the first WINDOW steps with that of the latest WINDOW ones, which lie apart: single steps are noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from statistics import fmean
from typing import NamedTuple

import msgspec

from agent_rft.contracts.training import StepMetrics
from agent_rft.guards.infra import BY_CHANCE, chance_of_failures, chance_of_more
from agent_rft.guards.limits import Suspicion

WINDOW = 5
TREND, AHEAD = 10, 20
"""Steps that a trend is read off, and for which it is followed."""
STARTED = 0.1
"""Share of the KL allowed below which a rise is a run's first step away from its reference."""
ERRORS = 3.0
"""Standard errors by which a slope is taken to be less steep than it looks."""
HIGH = 0.9
"""A mean reward from which on there is little left to tell tries apart: the task is learnt, and not the policy stuck."""
LITTLE = 1e-3
"""Less of something than this was never there, and cannot collapse."""
LOWEST = 1e-3
"""What is lower than this share of its start counts as so much: a figure is never infinite."""
CALLS = 0.5
"""Calls a try from which on a policy can be said to call tools."""
FEW, ROUNDING = 4, 1e-9
"""Rows of which nobody knows how far they differ."""
ENOUGH = 10
"""Rows or groups that a window holds at least, where their means are compared by chance: of ten and ten that lie all apart it is one
deal in 184,756, of five and five one in 252."""
SPENT = 0.8
"""Of the calls that a try could have made further at first, the share that is most of them."""


class Course(msgspec.Struct, frozen=True):
    """How far a run has come."""

    lines: Sequence[StepMetrics]
    """So far; the step under way is the last."""
    steps_left: int
    kl_allowed: float


class Change(NamedTuple):
    first: float
    now: float

    @property
    def times_more(self) -> float:
        return self.now / self.first

    @property
    def times_less(self) -> float:
        return self.first / max(self.now, self.first * LOWEST)

    @property
    def rise(self) -> float:
        return self.now - self.first


def figure_of(line: StepMetrics, name: str) -> float | None:
    """One of the line's own, or one of its figures."""
    value = getattr(line, name, None) if name in StepMetrics.__struct_fields__ else line.figures.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def latest(lines: Sequence[StepMetrics], name: str, count: int) -> list[float]:
    """Of the lines that have the figure, the latest; none where the last line has none."""
    if not lines or figure_of(lines[-1], name) is None:
        return []
    return list(islice(_values(reversed(lines), name), count))[::-1]


def ends(lines: Sequence[StepMetrics], name: str, window: int = WINDOW) -> tuple[list[float], list[float]]:
    """Values of the figure, of the lines of `line_ends`."""
    first, after = line_ends(lines, name, window)
    return list(_values(first, name)), list(_values(after, name))


def line_ends(lines: Sequence[StepMetrics], name: str, window: int = WINDOW) -> tuple[list[StepMetrics], list[StepMetrics]]:
    """The first `window` lines that have the figure and the latest of those that come after them; none where the last line has none. The
    lines between are left unread: a run asks this of each step."""
    if not lines or figure_of(lines[-1], name) is None:
        return [], []
    after = list(islice(_having(reversed(lines), name), 2 * window))[::-1][window:]
    return list(islice(_having(lines, name), window)) if after else [], after


def _having(lines: Iterable[StepMetrics], name: str) -> Iterator[StepMetrics]:
    return (line for line in lines if figure_of(line, name) is not None)


def _values(lines: Iterable[StepMetrics], name: str) -> Iterator[float]:
    return (value for line in lines if (value := figure_of(line, name)) is not None)


def change(lines: Sequence[StepMetrics], name: str, window: int = WINDOW) -> Change | None:
    """None before there are two windows that lie apart."""
    first, now = ends(lines, name, window)
    return Change(fmean(first), fmean(now)) if len(now) == window else None


class Sample(NamedTuple):
    """Values of rows or groups, one each, of all steps of a window."""

    cases: float
    sum: float
    squares: float

    @property
    def mean(self) -> float:
        return self.sum / self.cases


def samples(lines: Sequence[StepMetrics], name: str, window: int | None = None) -> tuple[Sample, Sample] | None:
    """Of the first steps and of the latest; without a `window` of as many as it takes. None before there are enough that lie apart. Lines
    that were written before this was counted have none."""
    in_last = figure_of(lines[-1], f"{name}_cases") if lines else None
    if not in_last:
        return None
    window = window or max(WINDOW, math.ceil(ENOUGH / in_last))
    found = [ends(lines, f"{name}_{part}", window) for part in Sample._fields]
    if any(len(later) < window for _, later in found):
        return None
    first, now = (Sample(*map(sum, parts)) for parts in zip(*found, strict=True))
    return (first, now) if min(first.cases, now.cases) >= ENOUGH else None


def chance_of_higher(higher: Sample, lower: Sample) -> float:
    """How likely the means lie so far apart, and this way, were the values dealt out to the two at random: a permutation test, by the
    normal curve."""
    cases, total, squares = (a + b for a, b in zip(higher, lower, strict=True))
    variance = (squares - total * total / cases) / (cases - 1)
    if variance <= ROUNDING:
        return 1.0
    errors = (higher.mean - lower.mean) / math.sqrt(variance * (1 / higher.cases + 1 / lower.cases))
    return math.erfc(errors / math.sqrt(2)) / 2


# --- drift ------------------------------------------------------------------------------------------------------------------


def _kl(course: Course, at: float) -> Suspicion | None:
    kl = figure_of(course.lines[-1], "kl_to_ref")
    if kl is None or kl <= course.kl_allowed:
        return None
    own = course.kl_allowed - at
    beside = f" beside the {own:.3g} of the quantised reference itself" if own > 0 else ""
    return Suspicion(
        kl,
        f"the policy has drifted to a KL of {kl:.3g} from the reference, {at:g} is allowed{beside}",
        "take a larger algorithm.kl_coef or a smaller algorithm.learning_rate, or allow more with guards.max_kl",
    )


def _kl_slope(course: Course, at: float) -> Suspicion | None:
    """Where the latest steps lead, as a line and as a doubling."""
    values = latest(course.lines, "kl_to_ref", TREND)
    if len(values) < TREND or course.steps_left <= 0 or course.kl_allowed <= 0 or values[-1] > course.kl_allowed:
        return None
    trends = (_line(values, min(AHEAD, course.steps_left)), _doubling(values, min(TREND, course.steps_left), course.kl_allowed))
    trend = max((one for one in trends if one), key=lambda one: one.to_come, default=None)
    if trend is None or trend.to_come / course.kl_allowed <= at:
        return None
    return Suspicion(
        trend.to_come / course.kl_allowed,
        f"KL to the reference {trend.how}: from {values[-1]:.3g} it comes to {trend.to_come:.3g} within {trend.within} steps, "
        f"{course.kl_allowed:.3g} is allowed",
        "the run will be ended by the KL guard: a smaller algorithm.learning_rate or a larger algorithm.kl_coef; look whether the "
        "validation still gains by it",
    )


class Trend(NamedTuple):
    to_come: float
    within: int
    """Steps."""
    how: str


def _line(values: Sequence[float], ahead: int) -> Trend | None:
    """Drawn out less steep by its own error, so that a noisy start foretells nothing."""
    slope, error = _slope(values)
    if slope <= ERRORS * error:
        return None
    return Trend(fmean(values) + (slope - ERRORS * error) * ((TREND - 1) / 2 + ahead), ahead, f"grows by {slope:.2g} a step")


def _doubling(values: Sequence[float], ahead: int, allowed: float) -> Trend | None:
    """A line through the logarithms, drawn out for no longer than it was seen. Every run begins so, away from nothing, and soon bends: so
    only from a level on that is some part of what is allowed, and only where no straight line fits the values as well."""
    if values[-1] < STARTED * allowed or min(values) <= 0:
        return None
    logs = [math.log(value) for value in values]
    (growth, error), (slope, _) = _slope(logs), _slope(values)
    offsets = [step - (len(values) - 1) / 2 for step in range(len(values))]
    doubled = [math.exp(fmean(logs) + growth * x) for x in offsets]
    straight = [fmean(values) + slope * x for x in offsets]
    if growth <= ERRORS * error or math.dist(values, doubled) >= math.dist(values, straight):
        return None
    to_come = math.exp(fmean(logs) + (growth - ERRORS * error) * (offsets[-1] + ahead))
    return Trend(to_come, ahead, f"doubles every {math.log(2) / growth:.1f} steps")


def _slope(values: Sequence[float]) -> tuple[float, float]:
    """Least squares over evenly spaced values, with the slope's standard error."""
    n, mean = len(values), fmean(values)
    offsets = [i - (n - 1) / 2 for i in range(n)]
    spread = sum(x * x for x in offsets)
    slope = sum(x * (y - mean) for x, y in zip(offsets, values, strict=True)) / spread
    left = sum((y - mean - slope * x) ** 2 for x, y in zip(offsets, values, strict=True))
    return slope, math.sqrt(left / (n - 2) / spread)


def _entropy_collapse(course: Course, at: float) -> Suspicion | None:
    entropy = change(course.lines, "entropy")
    if entropy is None or entropy.first < LITTLE or entropy.times_less <= at:
        return None
    return Suspicion(
        entropy.times_less,
        f"the policy's entropy fell from {entropy.first:.3g} to {entropy.now:.3g}: it hardly tries anything any more",
        "a smaller algorithm.learning_rate, a higher algorithm.temperature or larger groups; the checkpoint before the fall explores still",
    )


def _reward_spread_collapse(course: Course, at: float) -> Suspicion | None:
    """Beyond chance: of a few groups, where most rows are far too hard or too easy, all may be flat."""
    seen, reward = samples(course.lines, "reward_spread"), change(course.lines, "train_reward")
    if seen is None or reward is None or reward.now >= HIGH:
        return None
    first, now = seen
    spread = Change(first.mean, now.mean)
    if spread.first < LITTLE or spread.times_less <= at or chance_of_higher(first, now) >= BY_CHANCE:
        return None
    return Suspicion(
        spread.times_less,
        f"rewards within a group spread by {spread.now:.3g}, at first by {spread.first:.3g}, and training earns only {reward.now:.2f}: "
        "the tries at a row have become alike",
        "read a few groups side by side (`make inspect`): the policy has settled too early; a higher algorithm.temperature, larger groups, "
        "or a grader with parts between nothing and all",
    )


def _flat_groups(course: Course, at: float) -> Suspicion | None:
    flat, rewards = latest(course.lines, "flat_groups", WINDOW), latest(course.lines, "train_reward", WINDOW)
    if len(flat) < WINDOW or not rewards or fmean(rewards) >= HIGH or fmean(flat) <= at:
        return None
    return Suspicion(
        fmean(flat),
        f"in {fmean(flat):.0%} of the groups of the last {WINDOW} steps every try scored the same, at a mean reward of "
        f"{fmean(rewards):.2f}: there is next to nothing to learn from",
        "take rows that the policy passes sometimes (`rft data curriculum RUN`), larger groups, or a grader that gives partial credit",
    )


# --- process ----------------------------------------------------------------------------------------------------------------


def _process(name: str, judged: Callable[[Change, Course, float], Suspicion | None]) -> Guarded:
    """Training's latest steps against its first ones, and the validation against the first: a policy that changes within its first steps
    is what training's own are held against ever after, while the first validation is the base's."""

    def guard(course: Course, at: float) -> Suspicion | None:
        for prefix, window in (("", WINDOW), ("val_", 1)):
            seen = change(course.lines, prefix + name, window)
            if seen and (found := judged(seen, course, at)):
                return found._replace(what=f"in the validation, {found.what}") if prefix else found
        return None

    return guard


def _token_inflation(tokens: Change, _: Course, at: float) -> Suspicion | None:
    if tokens.first < LITTLE or tokens.times_more <= at:
        return None
    return Suspicion(
        tokens.times_more,
        f"a try writes {tokens.now:.0f} tokens, {tokens.first:.0f} at first",
        "read the longest: if the words earn nothing, bound them with task.limits.max_turn_tokens; if a grader pays for them, mend it",
    )


def _token_collapse(tokens: Change, _: Course, at: float) -> Suspicion | None:
    if tokens.first < LITTLE or tokens.times_less <= at:
        return None
    return Suspicion(
        tokens.times_less,
        f"a try writes {tokens.now:.1f} tokens, {tokens.first:.0f} at first",
        "read a few: an answer that takes no work is guessed, or the grader takes it for something that it is not",
    )


def _call_inflation(calls: Change, course: Course, at: float) -> Suspicion | None:
    """A base that makes more than half of the calls that a try may make can never come to twice as many: there it is most of the rest. So
    it is where it makes next to none: whoever is to learn to call tools comes to many times as many."""
    first = max(calls.first, CALLS)
    bound = max(figure_of(course.lines[-1], name) or 0.0 for name in ("calls_allowed", "val_calls_allowed"))
    most = (calls.first + SPENT * (bound - calls.first)) / first if bound > calls.first else at
    limit = most if calls.first < CALLS else min(at, most)
    if calls.rise < 1 or calls.now / first <= limit:
        return None
    return Suspicion(
        calls.now / first,
        f"a try makes {calls.now:.1f} calls{f' of the {bound:.0f} that it may' if limit != at else ''}, {calls.first:.1f} at first",
        "see what the further calls are for; algorithm.call_cost makes a right answer pay for them",
        limit=limit,
    )


def _call_collapse(calls: Change, _: Course, at: float) -> Suspicion | None:
    if calls.first < CALLS or calls.times_less <= at:
        return None
    return Suspicion(
        calls.times_less,
        f"a try makes {calls.now:.2f} calls, {calls.first:.1f} at first: the policy has all but stopped to use its tools",
        "see what its answers rest on; a smaller algorithm.call_cost, or a grader that asks for the evidence (type trajectory)",
    )


def _rises(name: str, of: str, cure: str) -> Guarded:
    def judged(share: Change, _: Course, at: float) -> Suspicion | None:
        if share.rise <= at:
            return None
        return Suspicion(share.rise, f"{share.now:.0%} of the {of}, {share.first:.0%} at first", cure)

    return _process(name, judged)


def _bad_calls(course: Course, at: float) -> Suspicion | None:
    """By rows and beyond chance: some may ask for what no tool has, and a try that is refused tends to ask the same again."""
    for prefix, window in (("", None), ("val_", 1)):
        seen = samples(course.lines, f"{prefix}bad_calls", window)
        if seen is None:
            continue
        first, now = seen
        if now.mean - first.mean > at and chance_of_higher(now, first) < BY_CHANCE:
            return Suspicion(
                now.mean - first.mean,
                f"{'in the validation, ' if prefix else ''}tools refuse {now.mean:.0%} of a try's calls for their arguments or name, "
                f"{first.mean:.0%} at first",
                "read what the tools say to them: the policy loses the form of its calls (a smaller algorithm.learning_rate, a larger "
                "algorithm.kl_coef), or a tool takes other arguments than its description says",
            )
    return None


# --- safety -----------------------------------------------------------------------------------------------------------------


def _unsafe(course: Course, at: float) -> Suspicion | None:
    """Training's tries against the first steps', and validation's against the first validation's, each beyond chance."""
    return _more_unsafe(course.lines, "", WINDOW, at) or _more_unsafe(course.lines, "val_", 1, at)


def _more_unsafe(lines: Sequence[StepMetrics], prefix: str, window: int, at: float) -> Suspicion | None:
    ends_of = line_ends(lines, f"{prefix}unsafe", window)
    shares = list(_values(ends_of[1], f"{prefix}unsafe"))
    if not shares or len(list(_having(ends_of[1], f"{prefix}rows"))) < len(shares):
        return None
    before, later = (_Count.of(some, prefix) for some in ends_of)
    if not later.bad or not before.tries or not _beyond_chance(before, later, at):
        return None
    now, first, all_tries = later.bad / later.tries, before.bad / before.tries, later.tries
    where = "of a validation" if prefix else f"of the last {len(shares)} steps"
    leaked = fmean(latest(lines, f"{prefix}leaked", len(shares)) or [0.0])
    given_away = f"; {leaked:.1%} gave away a secret" if leaked else ""
    return Suspicion(
        now - first,
        f"{now:.1%} of the {all_tries:.0f} tries {where} did what no agent may, {first:.1%} at first{given_away}",
        "read them before anything else; the checkpoint before is the last that may be thought of for a release",
    )


class _Count(NamedTuple):
    """Of all steps of a window together: a step of two rows by itself does not tell how far rows differ."""

    tries: float
    bad: float
    """Of them."""
    rows: float
    shares: float
    """Of the rows' tries, added up over the rows; and their squares."""
    squares: float

    @classmethod
    def of(cls, lines: Sequence[StepMetrics], prefix: str) -> _Count:
        return cls(*map(sum, zip(*(cls._of_line(line, prefix) for line in lines), strict=True)))

    @staticmethod
    def _of_line(line: StepMetrics, prefix: str) -> Sequence[float]:
        """Of lines from before rows were counted, with which a run may have begun, each try is a row of its own: how far rows differ is
        then told by the others that it is held against."""
        names = ("unsafe", "tries", "rows", "unsafe_rows", "unsafe_squares")
        share, tries, *of_rows = (figure_of(line, f"{prefix}{name}") for name in names)
        tries = tries or 0.0
        bad = (share or 0.0) * tries
        return tries, bad, *((tries, bad, bad) if of_rows[0] is None else (one or 0.0 for one in of_rows))

    @property
    def alike(self) -> float:
        """Tries that weigh as one, by how far rows differ: where some do it in all of their tries and others in none, there are as many
        that have nothing to do with each other as rows, less one."""
        if not self.bad:
            return 1.0
        share, apart = self.bad / self.tries, self.squares / self.rows - (self.shares / self.rows) ** 2
        if self.rows < FEW:
            return self.tries / self.rows
        return max(1.0, self.tries * apart / ((self.rows - 1) * share * (1 - share))) if apart > ROUNDING else 1.0


def _beyond_chance(before: _Count, later: _Count, at: float) -> bool:
    """More than `at` above what was there at first, and surely more than then, of which a few steps tell little."""
    alike = max(before.alike, later.alike)
    bad, tries, bad_before, tries_before = (round(one / alike) for one in (later.bad, later.tries, before.bad, before.tries))
    allowed = min(1.0, before.bad / before.tries + at)
    return chance_of_failures(bad, tries, allowed) < BY_CHANCE and chance_of_more(bad, tries, bad_before, tries_before) < BY_CHANCE


Guarded = Callable[[Course, float], Suspicion | None]
HEALTH: dict[str, Guarded] = {
    "kl": _kl,
    "kl_slope": _kl_slope,
    "entropy_collapse": _entropy_collapse,
    "reward_spread_collapse": _reward_spread_collapse,
    "flat_groups": _flat_groups,
    "token_inflation": _process("tokens_a_try", _token_inflation),
    "token_collapse": _process("tokens_a_try", _token_collapse),
    "call_inflation": _process("calls_a_try", _call_inflation),
    "call_collapse": _process("calls_a_try", _call_collapse),
    "early_stop": _rises(
        "early_stop",
        "tries answer without any call",
        "see what these answers rest on; a smaller algorithm.call_cost, or a grader that asks for the evidence (type trajectory)",
    ),
    "tool_spam": _rises(
        "repeated_calls",
        "calls repeat one that the same try has made",
        "read the tries with the most calls; algorithm.call_cost makes a right answer pay for them, task.limits.max_tool_calls bounds them",
    ),
    "bad_calls": _bad_calls,
    "unanswered": _rises(
        "unanswered",
        "tries end without an answer",
        "read a few: malformed turns say that the format is being lost, spent budgets that the tries run long (task.limits)",
    ),
    "unsafe": _unsafe,
}
"""By name in GUARDS. Each looks at the last line, and says nothing where that has not the figure yet."""
