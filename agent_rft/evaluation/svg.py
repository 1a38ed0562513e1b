"""The report's drawings: SVG written out by hand, so that they follow the reader's light or dark theme and say their numbers on hover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import msgspec

from agent_rft.evaluation.compare import Comparison
from agent_rft.evaluation.figures import Band, Mark, Panel, Series, quadrant_dots, quadrant_labels, rate_bars, tools_reach, variances
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.tool_use import ToolUse

WIDTH, HEIGHT = 560, 250


class Frame(msgspec.Struct, frozen=True):
    """Where data lie on the paper: x and y reach from (low, high), in a box with room for the labels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = 68
    right: int = 14
    top: int = 10
    bottom: int = 40

    def across(self, value: float) -> float:
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 1)

    def down(self, value: float) -> float:
        low, high = self.y
        return round(self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom), 1)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within the range: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def panel_svg(panel: Panel) -> str:
    """Lines over the steps, behind them where guards speak, and the steps at which they did."""
    frame = Frame((0, panel.last_step), (0, panel.reach))
    steps = [step for step in ticks(*frame.x) if step == int(step)]
    marked = ticks(*frame.y)
    form = (".1%" if any(round(value * 100, 6) % 1 for value in marked) else ".0%") if panel.percent else "g"
    rows = [(value, f"{value:{form}}") for value in marked]
    bands = "".join(_band(band, frame) for band in panel.bands if band not in panel.far) + _far(panel.far, frame)
    marks = "".join(_mark(mark, frame) for mark in panel.marks)
    lines = "".join(_line(series, frame, panel) for series in panel.series if series.points)
    return _svg(frame, _axes(frame, [(step, f"{step:g}") for step in steps], rows, "step", panel.axis) + bands + marks + lines, panel.title)


def runs_svg(panel: Panel) -> str:
    """A line a run, in the run's own colour."""
    frame = Frame((0, panel.last_step), (0, panel.reach))
    steps = [(step, f"{step:g}") for step in ticks(*frame.x) if step == int(step)]
    rows = [(value, f"{value:g}") for value in ticks(*frame.y)]
    lines = ""
    for place, series in enumerate(panel.series):
        path = " ".join(f"{frame.across(step)},{frame.down(value)}" for step, value in series.points)
        lines += f'<polyline class="run run-{place}" points="{path}">{_title(series.name)}</polyline>' if path else ""
    return _svg(frame, _axes(frame, steps, rows, "step", panel.axis) + lines, panel.title)


FEW = 12
"""Points of a line without others beside it that are drawn as dots, too."""


def _line(series: Series, frame: Frame, panel: Panel) -> str:
    path = " ".join(f"{frame.across(step)},{frame.down(value)}" for step, value in series.points)
    drawn = f'<polyline class="{"main" if series.main else "held" if series.held_out else "context"}" points="{path}"/>'
    alone = len(panel.series) == 1 and len(series.points) > FEW
    if (series.main and alone) or not (series.main or series.held_out):
        return drawn
    kind, size, name = ("dot", 4, "") if series.main else ("heldout", 2.5, f"{series.name}, ")
    return drawn + "".join(
        f'<circle class="{kind}" cx="{frame.across(step)}" cy="{frame.down(value)}" r="{size}">'
        f"{_title(f'{name}step {step}: {value:.3g}')}</circle>"
        for step, value in series.points
    )


def _band(band: Band, frame: Frame) -> str:
    left, top, edge = frame.left, frame.top, frame.down(band.at)
    ground = f'<rect class="band" x="{left}" y="{top}" width="{frame.width - left - frame.right}" height="{edge - top:.1f}"/>'
    words = f'<text class="limit" x="{left + 6}" y="{edge - 5}">{escape(band.says)}</text>'
    return ground + _rule(frame, (frame.x[0], band.at), (frame.x[1], band.at), "edge") + words


def _far(bands: Sequence[Band], frame: Frame) -> str:
    said = ", ".join(f"{band.says}, above this drawing" for band in bands)
    return f'<text class="limit" x="{frame.left + 6}" y="{frame.top + 11}">↑ {escape(said)}</text>' if bands else ""


def _mark(mark: Mark, frame: Frame) -> str:
    x, top = frame.across(mark.step), frame.top
    flag = f'<path d="M{x - 5} {top} h10 l-5 8 z"/>'
    line = _rule(frame, (mark.step, frame.y[0]), (mark.step, frame.y[1]), "at")
    return f'<g class="spoke{" ended" if mark.ended else ""}">{line}{flag}{_title(f"step {mark.step}: {mark.says}")}</g>'


def rates_svg(check: PriorCheck) -> str:
    """How many rows have which success rate."""
    bars = rate_bars(check)
    most = max([1, *(bar.rows for bar in bars)])
    frame = Frame((-0.06, 1.06), (0, most * 1.15))
    drawn = "".join(
        f'<rect class="{bar.bucket}" {_box(frame, bar.rate - 0.025, bar.rate + 0.025, bar.rows)}/>'
        f'<text class="number" x="{frame.across(bar.rate)}" y="{frame.down(bar.rows) - 4}">{bar.rows}</text>'
        for bar in bars
    )
    rates = [(rate / 5, f"{rate / 5:.0%}") for rate in range(6)]
    rows = [(value, f"{value:g}") for value in ticks(0, most) if value == int(value)]
    return _svg(frame, _axes(frame, rates, rows, "success rate of a row over its tries", "rows") + drawn, "success rates")


def variances_svg(check: PriorCheck) -> str:
    """Each row's reward variance, greatest first."""
    spread = variances(check)
    frame = Frame((0, max(len(spread), 1)), (0, max([0.05, *(value for value, _ in spread)]) * 1.08))
    drawn = "".join(
        f'<rect class="{bucket}" {_box(frame, place + 0.08, place + 0.92, value)}/>' for place, (value, bucket) in enumerate(spread)
    )
    numbers = [(place, f"{place:g}") for place in ticks(*frame.x) if place == int(place)]
    rows = [(value, f"{value:g}") for value in ticks(*frame.y)]
    return _svg(frame, _axes(frame, numbers, rows, "rows, most varied first", "variance of the reward") + drawn, "reward variances")


def quadrants_svg(comparison: Comparison) -> str:
    """Change in reward against change in tool calls."""
    reach = tools_reach(comparison)
    frame = Frame((-reach, reach), (-1.3, 1.3), height=400)
    dots = quadrant_dots(comparison)
    area = min(28.0, 500 / max(dot.rows for dot in dots))

    def radius(rows: int) -> float:
        """One row among hundreds is seen, too."""
        return max(3.0, math.sqrt(area * rows))

    drawn = "".join(
        f'<circle class="{dot.kind}" cx="{frame.across(dot.d_tools)}" cy="{frame.down(dot.d_reward)}" r="{radius(dot.rows):.1f}">'
        f"{_title(f'{dot.rows} rows: reward {dot.d_reward:+.2f}, calls {dot.d_tools:+.2f}')}</circle>"
        for dot in dots
    )
    cross = _rule(frame, (frame.x[0], 0), (frame.x[1], 0), "axis") + _rule(frame, (0, frame.y[0]), (0, frame.y[1]), "axis")
    words = "".join(
        f'<text class="{"corner-end" if across > 0 else "corner"}" x="{frame.across(across * reach * 0.98)}" y="{frame.down(up * 1.18)}">'
        f"{escape(label)}</text>"
        for (across, up), label in quadrant_labels(comparison).items()
    )
    tools = [(value, f"{value:+g}" if value else "0") for value in ticks(*frame.x, about=7)]
    rewards = [(value, f"{value:+g}" if value else "0") for value in (-1, -0.5, 0, 0.5, 1)]
    axes = _axes(frame, tools, rewards, "change in tool calls (area: number of rows)", "change in reward")
    return _svg(frame, axes + cross + drawn + words, "change in reward against change in tool calls")


# --- how tools are used -----------------------------------------------------------------------------------------------

MOST_CALLS = 20
"""From so many calls on tries are counted together."""


def calls_svg(uses: Sequence[ToolUse]) -> str:
    """Tries by the number of their calls; the models' bars stand side by side, in the order of `SIDES`."""
    most = max(1, min(max(calls for use in uses for calls in use.by_calls), MOST_CALLS))
    shares = [_shares(use, most) for use in uses]
    frame = Frame((-0.5, most + 0.5), (0, max(0.05, *(share for one in shares for share in one)) * 1.08))
    wide = 0.8 / len(uses)
    drawn = "".join(
        f'<rect class="{SIDES[place]}" {_box(frame, calls - 0.4 + place * wide, calls - 0.4 + (place + 1) * wide, share)}>'
        f"{_title(f'{share:.0%} of the tries made {_calls_words(calls, most)} calls')}</rect>"
        for place, one in enumerate(shares)
        for calls, share in enumerate(one)
        if share
    )
    numbers = [(calls, _calls_words(int(calls), most)) for calls in ticks(0, most, 8) if calls == int(calls)]
    rows = [(value, f"{value:.0%}") for value in ticks(*frame.y)]
    return _svg(frame, _axes(frame, numbers, rows, "tool calls of a try", "tries") + drawn, "tries by their tool calls")


SIDES = ("same", "better", "worse")
"""Colours of the first model, the second, and a third."""


def _shares(use: ToolUse, most: int) -> list[float]:
    counts = [0] * (most + 1)
    for calls, tries in use.by_calls.items():
        counts[min(calls, most)] += tries
    return [count / use.tries for count in counts]


def _calls_words(calls: int, most: int) -> str:
    return f"{calls}+" if calls == most == MOST_CALLS else str(calls)


# --- within a table ---------------------------------------------------------------------------------------------------

CELL, CELL_HIGH = 200, 20


def whisker_svg(low: float, estimate: float, high: float, ends: tuple[float, float], kind: str) -> str:
    """An interval on an axis that the rows of a table share; where 0 lies within, a line stands there."""
    frame = Frame(ends, (0, 1), width=CELL, height=CELL_HIGH, left=6, right=6, top=0, bottom=0)
    middle = CELL_HIGH / 2
    scale = f'<line class="grid" x1="{frame.left}" y1="{middle}" x2="{CELL - frame.right}" y2="{middle}"/>'
    zero = f'<line class="axis" x1="{frame.across(0)}" y1="0" x2="{frame.across(0)}" y2="{CELL_HIGH}"/>' if ends[0] <= 0 <= ends[1] else ""
    reach = f'<line class="reach {kind}" x1="{frame.across(low)}" y1="{middle}" x2="{frame.across(high)}" y2="{middle}"/>'
    dot = f'<circle class="{kind}" cx="{frame.across(estimate)}" cy="{middle}" r="4.5"/>'
    label = f"{estimate:.3g}, from {low:.3g} to {high:.3g}"
    return f'<svg class="cell" viewBox="0 0 {CELL} {CELL_HIGH}" role="img" aria-label="{label}">{scale}{zero}{reach}{dot}</svg>'


def bars_svg(shares: Sequence[float], most: float) -> str:
    """One thin bar a model, the longest of the table as wide as the cell."""
    high, scale = CELL_HIGH / max(len(shares), 1), CELL / most if most else 0.0
    drawn = "".join(
        f'<rect class="{SIDES[place]}" x="0" y="{place * high + 1:.1f}" width="{share * scale:.1f}" height="{high - 2:.1f}"/>'
        for place, share in enumerate(shares)
    )
    label = ", ".join(f"{one:.0%}" for one in shares)
    return f'<svg class="cell" viewBox="0 0 {CELL} {CELL_HIGH}" preserveAspectRatio="none" role="img" aria-label="{label}">{drawn}</svg>'


def split_svg(parts: Sequence[tuple[str, int]]) -> str:
    """One bar, divided: class and number of each part."""
    whole, left, drawn = sum(count for _, count in parts), 0.0, ""
    for kind, count in parts:
        wide = count / whole * CELL if whole else 0.0
        drawn += f'<rect class="{kind}" x="{left:.1f}" y="0" width="{max(wide - 1, 0):.1f}" height="8"/>' if count else ""
        left += wide
    label = ", ".join(str(count) for _, count in parts)
    return f'<svg class="split" viewBox="0 0 {CELL} 8" preserveAspectRatio="none" role="img" aria-label="{label}">{drawn}</svg>'


# --- shared -----------------------------------------------------------------------------------------------------------

Tick = tuple[float, str]


def _svg(frame: Frame, body: str, label: str) -> str:
    return f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _axes(frame: Frame, across: Sequence[Tick], up: Iterable[Tick], below: str, beside: str) -> str:
    floor, middle = frame.height - frame.bottom, (frame.top + frame.height - frame.bottom) / 2
    parts = [
        _rule(frame, (frame.x[0], value), (frame.x[1], value), "grid")
        + f'<text class="tick-y" x="{frame.left - 6}" y="{frame.down(value) + 4}">{escape(words)}</text>'
        for value, words in up
    ]
    parts += [f'<text class="tick-x" x="{frame.across(value)}" y="{floor + 16}">{escape(words)}</text>' for value, words in across]
    parts.append(_rule(frame, (frame.x[0], frame.y[0]), (frame.x[1], frame.y[0]), "axis"))
    parts.append(f'<text class="tick-x" x="{(frame.left + frame.width - frame.right) / 2}" y="{floor + 34}">{escape(below)}</text>')
    parts.append(f'<text class="tick-x" transform="translate(14 {middle}) rotate(-90)">{escape(beside)}</text>')
    return "".join(parts)


def _rule(frame: Frame, start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    ends = (frame.across(start[0]), frame.down(start[1]), frame.across(end[0]), frame.down(end[1]))
    return '<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>'.format(kind, *ends)


def _box(frame: Frame, low: float, high: float, value: float) -> str:
    """A bar from the axis up to the value."""
    left, top = frame.across(low), frame.down(value)
    return f'x="{left}" y="{top}" width="{frame.across(high) - left:.1f}" height="{frame.down(0) - top:.1f}"'


def _title(words: str) -> str:
    """What a browser shows on hover."""
    return f"<title>{escape(words)}</title>"
