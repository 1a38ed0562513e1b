"""The report's drawings: SVG written out by hand, so that they follow the reader's light or dark theme and say their numbers on hover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

import msgspec

from agent_rft.evaluation.compare import Comparison
from agent_rft.evaluation.figures import Panel, Series, quadrant_dots, quadrant_labels, rate_bars, tools_reach, variances
from agent_rft.evaluation.prior import PriorCheck

WIDTH, HEIGHT = 480, 230


class Frame(msgspec.Struct, frozen=True):
    """Where data lie on the paper: x and y reach from (low, high), in a box with room for the labels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = 54
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
    """Lines over the steps."""
    points = [point for series in panel.series for point in series.points]
    highest = max([panel.top, *(value for _, value in points)])
    frame = Frame((0, max([1, *(step for step, _ in points)])), (0, highest if highest == panel.top else highest * 1.08))
    steps = [step for step in ticks(*frame.x) if step == int(step)]
    rows = [(value, f"{value:.1%}" if panel.percent else f"{value:g}") for value in ticks(*frame.y)]
    lines = "".join(_line(series, frame, dots=len(panel.series) > 1) for series in panel.series if series.points)
    return _svg(frame, _axes(frame, [(step, f"{step:g}") for step in steps], rows, "step", panel.axis) + lines, panel.title)


def _line(series: Series, frame: Frame, dots: bool) -> str:
    path = " ".join(f"{frame.across(step)},{frame.down(value)}" for step, value in series.points)
    drawn = f'<polyline class="{"main" if series.main else "context"}" points="{path}"/>'
    if not (series.main and dots):
        return drawn
    return drawn + "".join(
        f'<circle class="better" cx="{frame.across(step)}" cy="{frame.down(value)}" r="4">{_title(f"step {step}: {value:.3g}")}</circle>'
        for step, value in series.points
    )


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
    frame = Frame((-reach, reach), (-1.3, 1.3), width=520, height=400)
    dots = quadrant_dots(comparison)
    area = min(28.0, 500 / max(dot.rows for dot in dots))
    drawn = "".join(
        f'<circle class="{dot.kind}" cx="{frame.across(dot.d_tools)}" cy="{frame.down(dot.d_reward)}" r="{math.sqrt(area * dot.rows):.1f}">'
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
    parts.append(f'<text class="tick-x" transform="translate(12 {middle}) rotate(-90)">{escape(beside)}</text>')
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
