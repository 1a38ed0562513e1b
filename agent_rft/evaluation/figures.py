"""What the plots show and what their titles conclude, for every renderer alike: PNG files and the report's drawings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import ROUNDING, Comparison, sign
from agent_rft.evaluation.prior import Bucket, PriorCheck

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


class Panel(msgspec.Struct, frozen=True):
    title: str
    axis: str
    series: tuple[Series, ...]
    top: float
    """The axis goes from 0 at least to here."""
    percent: bool = False


def curve_panels(metrics: Sequence[StepMetrics]) -> tuple[Panel, ...]:
    reward = _series("validation", metrics, lambda one: one.val_reward)
    calls = _series("validation", metrics, lambda one: one.val_tool_calls)
    kl = _series("KL", metrics, lambda one: one.kl_to_ref)
    infra = _series("failed calls", metrics, lambda one: one.infra_failure_rate)
    train_reward = _series("training", metrics, lambda one: one.train_reward, main=False)
    train_calls = _series("training", metrics, lambda one: one.tool_calls, main=False)
    return (
        Panel(_from_to("validation reward", reward, "{:.2f}"), "reward", (train_reward, reward), top=1.0),
        Panel(_from_to("tool calls a try", calls, "{:.1f}"), "tool calls", (train_calls, calls), top=1.0),
        Panel(_kl_title(kl), "KL (k3)", (kl,), top=0.01),
        Panel(_infra_title(metrics), "failed tool calls", (infra,), top=0.01, percent=True),
    )


def _series(name: str, metrics: Sequence[StepMetrics], value: Callable[[StepMetrics], float | None], main: bool = True) -> Series:
    return Series(name, tuple((one.step, number) for one in metrics if (number := value(one)) is not None), main)


def _from_to(what: str, series: Series, form: str) -> str:
    if not series.points:
        return f"{what}: not measured"
    return f"{what} {form.format(series.points[0][1])} → {form.format(series.points[-1][1])}"


def _kl_title(kl: Series) -> str:
    if not kl.points:
        return "KL to the reference: not measured"
    return f"KL to the reference ends at {kl.points[-1][1]:.3f}, never above {max(value for _, value in kl.points):.3f}"


def _infra_title(metrics: Sequence[StepMetrics]) -> str:
    failed, rollouts = sum(one.infra_failures for one in metrics), sum(one.rollouts for one in metrics)
    if not failed:
        return "no rollout lost to infrastructure"
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
