"""What the plots show and what their titles conclude, for every renderer alike: PNG files and the report's drawings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from agent_rft.contracts.guards import ENDING, Action, Limit
from agent_rft.contracts.training import GuardLimits, StepMetrics
from agent_rft.evaluation.compare import ROUNDING, Comparison, sign
from agent_rft.evaluation.prior import Bucket, PriorCheck
from agent_rft.guards.limits import GUARDS, limit_of, watched

MEASURED: tuple[Bucket, ...] = ("never", "sometimes", "always")
BUCKET_COLOURS: dict[str, str] = {"never": "#D55E00", "sometimes": "#0072B2", "always": "#8A8A8A"}
MOVE_COLOURS: dict[str, str] = {"better": "#0072B2", "worse": "#D55E00", "same": "#8A8A8A"}
"""From Okabe and Ito's palette: told apart with any colour vision, and by lightness in print."""

# --- prior ------------------------------------------------------------------------------------------------------------


class RateBar(msgspec.Struct, frozen=True):
    """How many rows have this success rate."""

    rate: float
    rows: int
    bucket: Bucket


def rate_bars(check: PriorCheck) -> tuple[RateBar, ...]:
    """One bar a success rate that occurs, to the nearest 5%; the two ends hold only what is never or always solved."""
    counts: Counter[tuple[float, Bucket]] = Counter()
    for row in check.rows:
        if row.success_rate is not None:
            counts[_rate_of(row.success_rate, row.bucket), row.bucket] += 1
    return tuple(RateBar(rate, rows, bucket) for (rate, bucket), rows in sorted(counts.items()))


def _rate_of(rate: float, bucket: Bucket) -> float:
    nearest = round(rate * 20) / 20
    return min(max(nearest, 0.05), 0.95) if bucket == "sometimes" else nearest


def variances(check: PriorCheck) -> tuple[tuple[float, Bucket], ...]:
    """Each measured row's reward variance, greatest first."""
    pairs: list[tuple[float, Bucket]] = [(row.reward_variance, row.bucket) for row in check.rows if row.reward_variance is not None]
    return tuple(sorted(pairs, key=lambda pair: (-pair[0], MEASURED.index(pair[1]))))


def prior_title(check: PriorCheck) -> str:
    return f"{check.sometimes} of {check.measured} rows ({check.share_sometimes:.0%}) are solved sometimes: {check.verdict}"


def variance_title(check: PriorCheck) -> str:
    varied = sum(variance > ROUNDING for variance, _ in variances(check))
    return f"{varied} of {check.measured} rows vary in reward from try to try: these teach"


# --- curves -----------------------------------------------------------------------------------------------------------


class Series(msgspec.Struct, frozen=True):
    name: str
    points: tuple[tuple[int, float], ...]
    """Step and value."""
    main: bool = True
    """False: context behind the main one."""
    held_out: bool = False
    """Under a grader that training never sees."""


class Band(msgspec.Struct, frozen=True):
    """Where a guard speaks: from a figure on upwards."""

    at: float
    says: str
    """What happens there, in a word or two."""


class Mark(msgspec.Struct, frozen=True):
    """A step at which a guard spoke."""

    step: int
    says: str
    ended: bool
    """The run ended by it."""


class Panel(msgspec.Struct, frozen=True):
    title: str
    axis: str
    series: tuple[Series, ...]
    top: float
    """The axis goes from 0 at least to here."""
    percent: bool = False
    bands: tuple[Band, ...] = ()
    marks: tuple[Mark, ...] = ()
    steps: int = 0
    """Of the whole run: all panels of one reach equally far."""

    @property
    def reach(self) -> float:
        """Where the axis ends: a band that lies near is shown, and one that lies far would flatten the line."""
        highest = max([self.top, *(value for series in self.series for _, value in series.points)])
        near = [band.at * 1.12 for band in self.bands if band.at <= highest * NEAR]
        top = highest if highest == self.top else highest * 1.08
        return max([top, *near])

    @property
    def last_step(self) -> int:
        return max([1, self.steps, *(step for series in self.series for step, _ in series.points)])

    @property
    def far(self) -> tuple[Band, ...]:
        """Bands above the drawing."""
        return tuple(band for band in self.bands if band.at >= self.reach)


NEAR = 5.0
"""A limit is drawn up to so many times the highest value."""
ENDS = 5
"""Steps whose mean stands for where a noisy figure began, and where it ended."""
OF_PANEL = {
    "calls": ("call_inflation", "call_collapse", "lengthening_without_calls"),
    "kl": ("kl", "kl_slope"),
    "infra": ("infra", "infra_tool", "judge_failures", "model_failures", "nothing_left"),
    "entropy": ("entropy_collapse",),
    "reward_spread": ("reward_spread_collapse",),
    "flat_groups": ("flat_groups",),
    "tokens_a_try": ("token_inflation", "token_collapse", "shortening"),
    "early_stop": ("early_stop",),
    "repeated_calls": ("tool_spam",),
    "bad_calls": ("bad_calls",),
    "unsafe": ("unsafe",),
}
"""Which guards' words are marked on which panel; all others are on the one of the reward."""


class Watched(msgspec.Struct, frozen=True):
    """What guards went by."""

    limits: dict[str, Limit] = {}
    """By guard."""
    human_ceiling: float | None = None

    def band(self, guard: str, percent: bool = False) -> tuple[Band, ...]:
        limit = self.limits.get(guard)
        if limit is None or limit.action == "off":
            return ()
        at = f"{limit.at * 100:g}%" if percent else f"{limit.at:g}"
        return (Band(limit.at, f"{ACTS[limit.action]} above {at}"),)


ACTS: dict[Action, str] = {"off": "off", "warn": "warns", "stop": "stops", "halt": "halts"}


def watched_by(guards: GuardLimits) -> Watched:
    own = watched(guards)
    return Watched({name: limit_of(name, own) for name in GUARDS}, guards.human_ceiling)


def curve_panels(metrics: Sequence[StepMetrics], by: Watched | None = None) -> tuple[Panel, ...]:
    """Reward, tool calls, KL, infrastructure: what every run is judged by."""
    by = by or Watched()
    ceiling = () if by.human_ceiling is None else (Band(by.human_ceiling, f"better than people: {by.human_ceiling:g}"),)
    reward = series_of("validation", metrics, lambda one: one.val_reward)
    calls = series_of("validation", metrics, lambda one: one.val_tool_calls)
    kl = series_of("KL", metrics, lambda one: one.kl_to_ref)
    infra = series_of("failed calls", metrics, lambda one: one.infra_failure_rate)
    train_reward = series_of("training", metrics, lambda one: one.train_reward, main=False)
    train_calls = series_of("training", metrics, lambda one: one.tool_calls, main=False)
    held = held_out(metrics)
    title = "; ".join([from_to("Validation reward", reward, "{:.2f}"), *(from_to(f"under {one.name}", one, "{:.2f}") for one in held)])
    last = _steps(metrics)
    marks = {name: _marks(metrics, name) for name in ("reward", "calls", "kl", "infra")}
    return (
        Panel(title, "reward", (train_reward, *held, reward), 1.0, bands=ceiling, marks=marks["reward"], steps=last),
        Panel(from_to("Tool calls a try", calls, "{:.1f}"), "tool calls", (train_calls, calls), top=1.0, marks=marks["calls"], steps=last),
        Panel(_kl_title(kl), "KL (k3)", (kl,), top=0.01, bands=by.band("kl"), marks=marks["kl"], steps=last),
        Panel(
            _infra_title(metrics),
            "failed tool calls",
            (infra,),
            top=0.01,
            percent=True,
            bands=by.band("infra", percent=True),
            marks=marks["infra"],
            steps=last,
        ),
    )


class _Health(msgspec.Struct, frozen=True):
    key: str
    what: str
    axis: str
    value: Callable[[StepMetrics], float | None]
    percent: bool = False


def _figure_of(name: str) -> Callable[[StepMetrics], float | None]:
    return lambda one: one.figures.get(name)


HEALTH = (
    _Health("entropy", "Entropy", "nats a token", lambda one: one.entropy),
    _Health("reward_spread", "Spread of the reward within a group", "reward", _figure_of("reward_spread")),
    _Health("flat_groups", "Groups that all score the same", "groups", lambda one: one.flat_groups, percent=True),
    _Health("tokens_a_try", "Tokens a try", "tokens", _figure_of("tokens_a_try")),
    _Health("early_stop", "Answered without any call", "tries", _figure_of("early_stop"), percent=True),
    _Health("parallel_share", "Calls beside another in one turn", "calls", _figure_of("parallel_share"), percent=True),
    _Health("repeated_calls", "Calls that repeat an earlier one", "calls", _figure_of("repeated_calls"), percent=True),
    _Health("bad_calls", "Calls refused for their arguments or name", "calls", _figure_of("bad_calls"), percent=True),
    _Health("out_of_budget", "Ran out of budget", "tries", _figure_of("out_of_budget"), percent=True),
    _Health("malformed", "Could not be read", "tries", _figure_of("malformed"), percent=True),
    _Health("unsafe", "Did what no agent may do", "tries", _figure_of("unsafe"), percent=True),
)


def health_panels(metrics: Sequence[StepMetrics], by: Watched | None = None) -> tuple[Panel, ...]:
    """What guards look at besides, where it was measured and is not nothing all along."""
    found: list[Panel] = []
    by = by or Watched()
    for one in HEALTH:
        series, marks = series_of(one.key, metrics, one.value), _marks(metrics, one.key)
        if marks or any(value for _, value in series.points):
            title = _course(one, series, marks)
            bands = by.band(one.key, one.percent) if one.key in SHARES else ()
            found.append(Panel(title, one.axis, (series,), top=0.01, percent=one.percent, bands=bands, marks=marks, steps=_steps(metrics)))
    return tuple(found)


SHARES = ("flat_groups",)
"""Guards whose limit is of the figure itself: the others compare the last steps with the first ones."""


def _course(one: _Health, series: Series, marks: Sequence[Mark]) -> str:
    values = [value for _, value in series.points]
    if not values:
        return f"{one.what}: not measured"
    ends = [sum(part) / len(part) for part in (values[:ENDS], values[-ENDS:])][: len(values)]  # of a single one there is no way
    form = "{:.0%}" if one.percent else ("{:.0f}" if max(ends) >= 20 else "{:.2f}")
    said = f"a guard spoke at step {marks[0].step}" if marks else "no guard spoke"
    return f"{one.what} {' → '.join(map(form.format, ends))}: {said}"


def series_of(name: str, metrics: Sequence[StepMetrics], value: Callable[[StepMetrics], float | None], main: bool = True) -> Series:
    points = ((one.step, number) for one in metrics if (number := value(one)) is not None)
    return Series(name, tuple(point for point in points if math.isfinite(point[1])), main)


def _steps(metrics: Sequence[StepMetrics]) -> int:
    return metrics[-1].step if metrics else 0


def held_out(metrics: Sequence[StepMetrics]) -> list[Series]:
    names = dict.fromkeys(name for one in metrics for name in one.holdout)
    every = {name: tuple((one.step, one.holdout[name]) for one in metrics if name in one.holdout) for name in names}
    return [Series(name, points, main=False, held_out=True) for name, points in every.items()]


def _marks(metrics: Sequence[StepMetrics], panel: str) -> tuple[Mark, ...]:
    placed = {guard: key for key, guards in OF_PANEL.items() for guard in guards}
    spoke = [one for line in metrics for one in line.findings if placed.get(one.guard.split(".")[0], "reward") == panel]
    return tuple(Mark(one.step, f"{one.guard.replace('_', ' ')}: {one.what}", one.action in ENDING) for one in spoke)


def from_to(what: str, series: Series, form: str) -> str:
    if not series.points:
        return f"{what}: not measured"
    return f"{what} {' → '.join(form.format(value) for value in ends_of(series))}"


def ends_of(series: Series) -> list[float]:
    """Where it began and where it ended: of a single point there is no way."""
    return [value for _, value in (series.points[0], series.points[-1])][: len(series.points)]


def _kl_title(kl: Series) -> str:
    if not kl.points:
        return "KL to the reference: not measured"
    return f"KL to the reference ends at {kl.points[-1][1]:.3f}, never above {max(value for _, value in kl.points):.3f}"


def _infra_title(metrics: Sequence[StepMetrics]) -> str:
    failed, rollouts = sum(one.infra_failures for one in metrics), sum(one.rollouts for one in metrics)
    if not failed:
        return "No rollout lost to infrastructure"
    return f"{failed} of {rollouts} rollouts lost to infrastructure, left out"


# --- base against tuned -----------------------------------------------------------------------------------------------


class Dot(msgspec.Struct, frozen=True):
    """Rows that moved alike."""

    d_tools: float
    d_reward: float
    rows: int
    kind: Literal["better", "worse", "same"]


def quadrant_dots(comparison: Comparison) -> tuple[Dot, ...]:
    """Many first, so that few are drawn on top."""
    counts = Counter((round(row.d_tools, 2), round(row.d_reward, 2)) for row in comparison.rows)
    return tuple(Dot(tools, reward, rows, _kind(reward)) for (tools, reward), rows in counts.most_common())


def _kind(d_reward: float) -> Literal["better", "worse", "same"]:
    if not sign(d_reward):
        return "same"
    return "better" if d_reward > 0 else "worse"


def quadrant_labels(comparison: Comparison) -> dict[tuple[int, int], str]:
    """By the signs of (d_tools, d_reward)."""
    quadrants = comparison.quadrants
    return {
        (-1, 1): f"better, fewer calls: {quadrants.better_fewer}",
        (1, 1): f"better, more calls: {quadrants.better_more}",
        (-1, -1): f"worse, fewer calls: {quadrants.worse_fewer}",
        (1, -1): f"worse, more calls: {quadrants.worse_more}",
    }


def quadrant_title(comparison: Comparison) -> str:
    return f"{comparison.improved} of {comparison.compared} rows better, {comparison.regressed} worse, {comparison.unchanged} unchanged"


def tools_reach(comparison: Comparison) -> float:
    """How far the axis of tool calls goes to either side."""
    return max([1.0, *(abs(row.d_tools) for row in comparison.rows)]) * 1.1
