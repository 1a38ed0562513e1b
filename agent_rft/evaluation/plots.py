"""PNG files through matplotlib's Agg canvas. No pyplot: nothing global is set, nothing stays open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import Comparison
from agent_rft.evaluation.figures import (
    BUCKET_COLOURS,
    MEASURED,
    MOVE_COLOURS,
    Panel,
    Series,
    Watched,
    curve_panels,
    prior_title,
    quadrant_dots,
    quadrant_labels,
    quadrant_title,
    rate_bars,
    tools_reach,
    variance_title,
    variances,
)
from agent_rft.evaluation.prior import PriorCheck

INK, FAINT = "#222222", "#DDDDDD"
DOTS_PER_INCH = 130
TITLE_WIDE = 62
"""Characters that fit over half a picture: a longer title would run into the one beside it."""


def plot_prior(check: PriorCheck, path: Path) -> None:
    """Success rates of the rows, and how much each row's reward varies."""
    figure = _figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    _tidy(left, prior_title(check))
    bars = rate_bars(check)
    drawn = left.bar([bar.rate for bar in bars], [bar.rows for bar in bars], 0.045, color=[BUCKET_COLOURS[bar.bucket] for bar in bars])
    left.bar_label(drawn, color=INK, fontsize=9, padding=2)
    left.set(xlabel="success rate of a row over its tries", ylabel="rows", xlim=(-0.06, 1.06))
    left.xaxis.set_major_formatter(PercentFormatter(1.0))
    left.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _tidy(right, variance_title(check))
    spread = variances(check)
    right.bar(range(1, len(spread) + 1), [value for value, _ in spread], 0.85, color=[BUCKET_COLOURS[bucket] for _, bucket in spread])
    right.set(xlabel="rows, most varied first", ylabel="variance of the reward", ylim=(0, max(0.05, *(v for v, _ in spread), 0) * 1.08))
    for bucket in MEASURED:
        left.bar(0, 0, color=BUCKET_COLOURS[bucket], label=f"{bucket} ({getattr(check, bucket)})")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    _save(figure, path)


def plot_curves(metrics: Sequence[StepMetrics], path: Path, watched: Watched | None = None) -> None:
    """Reward, tool calls, KL and infrastructure failures over the steps."""
    figure = _figure(11, 7)
    for axes, panel in zip(figure.subplots(2, 2).flat, curve_panels(metrics, watched), strict=True):
        _draw_panel(axes, panel)
    _save(figure, path)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    _tidy(axes, panel.title)
    for series in panel.series:
        if series.points:
            _draw_series(axes, series, dots=len(panel.series) > 1)
    for band in panel.bands:
        if band not in panel.far:
            axes.axhspan(band.at, panel.reach, color=MOVE_COLOURS["worse"], alpha=0.1, linewidth=0)
            axes.text(0.01, band.at, f" {band.says}", transform=axes.get_yaxis_transform(), va="bottom", color=INK, fontsize=9)
    for mark in panel.marks:
        axes.axvline(mark.step, color=MOVE_COLOURS["worse"], linewidth=1.4 if mark.ended else 0.7)
    axes.set(xlabel="step", ylabel=panel.axis, xlim=(0, panel.last_step), ylim=(0, panel.reach))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    if sum(bool(series.points) for series in panel.series) > 1:
        axes.legend(frameon=False, fontsize=9, reverse=True)


def _draw_series(axes: Axes, series: Series, dots: bool) -> None:
    steps, values = [step for step, _ in series.points], [value for _, value in series.points]
    if series.main:
        (line,) = axes.plot(steps, values, color=MOVE_COLOURS["better"], linewidth=2, label=series.name, clip_on=False, zorder=3)
        line.set(marker="o" if dots else "", markersize=5)
    else:
        style = "--" if series.held_out else "-"
        axes.plot(steps, values, color=MOVE_COLOURS["same"], linewidth=1.2, linestyle=style, alpha=0.8, label=series.name)


def plot_quadrants(comparison: Comparison, path: Path) -> None:
    """Each row's change in reward against its change in tool calls."""
    figure = _figure(7.5, 6)
    axes = figure.subplots()
    _tidy(axes, quadrant_title(comparison))
    dots = quadrant_dots(comparison)
    area = min(36.0, 700 / max(dot.rows for dot in dots))
    axes.scatter(
        [dot.d_tools for dot in dots],
        [dot.d_reward for dot in dots],
        s=[area * dot.rows for dot in dots],
        c=[MOVE_COLOURS[dot.kind] for dot in dots],
        alpha=0.65,
        edgecolors="white",
        linewidths=0.8,
        zorder=3,
    )
    reach = tools_reach(comparison)
    axes.set(xlim=(-reach, reach), ylim=(-1.3, 1.3), xlabel="change in tool calls (area: number of rows)", ylabel="change in reward")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8)
    for (across, up), words in quadrant_labels(comparison).items():
        side, level = "right" if across > 0 else "left", "top" if up > 0 else "bottom"
        axes.text(0.5 + 0.48 * across, 0.5 + 0.47 * up, words, ha=side, va=level, transform=axes.transAxes, color=INK, weight="bold")
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.02))


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(fill(title, TITLE_WIDE), loc="left", fontsize=10.5, color=INK, weight="bold", pad=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
