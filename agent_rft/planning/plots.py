"""The plan as stacked bars in a PNG file, through matplotlib's Agg canvas: nothing global is set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from agent_rft.planning.plan import Plan
from agent_rft.planning.seed import PART_NAMES, Compared
from agent_rft.planning.setup import Budget, Kind

INK, FAINT, LIMIT = "#222222", "#DDDDDD", "#B3261E"
COLOURS: dict[Kind, str] = {
    "weights": "#3B6FB6",
    "optimizer": "#E0A030",
    "activations": "#5B9E6F",
    "reference": "#8E6BB0",
    "rollouts": "#C96A4A",
    "process": "#9A9A9A",
}
NAMES: dict[Kind, str] = {**PART_NAMES, "process": "processes"}
DOTS_PER_INCH = 130


def plot_plan(plans: dict[str, Plan], pictures: Sequence[Compared], path: Path) -> None:
    """On the left what each GPU must hold, on the right the picture that the project began with beside ours."""
    figure = Figure(figsize=(13, 5.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.02))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_budgets(left, _columns(plans))
    _draw_pictures(right, pictures)
    for kind, colour in COLOURS.items():
        left.bar(0, 0, color=colour, label=NAMES[kind])
    figure.legend(loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=10)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def _columns(plans: dict[str, Plan]) -> list[tuple[str, Budget]]:
    """Every memory of a single plan; of several only the GPUs' two fullest, for the host would dwarf them."""
    if len(plans) == 1:
        (only,) = plans.values()
        return [(budget.place, budget) for budget in only.budgets if budget.place != "host" or len(only.budgets) == 1]
    return [
        (f"{recipe.removeprefix('research_')}\n{budget.place}", budget)
        for recipe, one in plans.items()
        for budget in one.budgets
        if budget.place in ("training", "generation", "reference") and one.setup.model.device == "cuda"
    ]


def _draw_budgets(axes: Axes, columns: Sequence[tuple[str, Budget]]) -> None:
    _tidy(axes, "what one memory must hold, GB (line: what it has)")
    for at, (_, budget) in enumerate(columns):
        _stack(axes, at, {kind: sum(item.gb for item in budget.items if item.kind == kind) for kind in COLOURS})
        axes.hlines(budget.limit, at - 0.45, at + 0.45, color=LIMIT, linewidth=2)
    axes.set_xticks(range(len(columns)), [name for name, _ in columns], rotation=60 if len(columns) > 6 else 0, fontsize=8)


def _draw_pictures(axes: Axes, pictures: Sequence[Compared]) -> None:
    _tidy(axes, "the first picture's total (grey) and ours, all GPUs, GB")
    for at, one in enumerate(pictures):
        drawn = axes.bar(at - 0.2, one.seed.total_gb, 0.36, color=FAINT, edgecolor=INK, linewidth=0.6)
        axes.bar_label(drawn, fmt="%.0f", fontsize=9, color=INK)
        _stack(axes, at + 0.2, one.parts, width=0.36)
    axes.set_xticks(range(len(pictures)), [f"{one.seed.label}\n{one.seed.machine}" for one in pictures], fontsize=8)


def _stack(axes: Axes, at: float, parts: dict[Kind, float], width: float = 0.7) -> None:
    below = 0.0
    for kind, gb in parts.items():
        axes.bar(at, gb, width, bottom=below, color=COLOURS[kind])
        below += gb
    axes.text(at, below, f"{below:.0f}" if below >= 10 else f"{below:.1f}", ha="center", va="bottom", fontsize=9, color=INK)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, weight="bold", pad=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
