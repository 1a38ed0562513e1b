"""What is drawn, as numbers: the templates only put them into SVG. Pure."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import NamedTuple

from observability.counting import Bin
from serving.pages.cardview import TurnView

WIDTH = 1000
HIGH = 76
"""Of the histogram's highest bar."""
ENDINGS = ("answered", "out_of_budget", "malformed", "infra_failed", "none")
"""From the ground up."""


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    style: str
    """A class of the style sheet."""


class Bar(NamedTuple):
    boxes: tuple[Box, ...]
    touch: Box
    """The whole column, so that a low bar can be hit, too."""
    start: dt.datetime
    end: dt.datetime
    told: str


class Stretch(NamedTuple):
    """A turn in the strip: the time the model took, then the time its tools did."""

    number: int
    model: Box
    tools: Box
    told: str


def bars(bins: Sequence[Bin]) -> list[Bar]:
    most = max((sum(one.endings.values()) for one in bins), default=0)
    step = WIDTH / max(len(bins), 1)
    return [_bar(one, place * step, step, most) for place, one in enumerate(bins)]


def _bar(one: Bin, x: float, step: float, most: int) -> Bar:
    gap = min(2.0, step / 8)
    boxes: list[Box] = []
    ground = float(HIGH)
    for ending in ENDINGS:
        if cards := one.endings.get(ending, 0):
            height = cards / most * HIGH
            ground -= height
            boxes.append(Box(round(x + gap, 2), round(ground, 2), round(step - 2 * gap, 2), round(height, 2), f"e-{ending}"))
    told = ", ".join(f"{one.endings[ending]:,} {words(ending)}" for ending in ENDINGS if one.endings.get(ending))
    touch = Box(round(x, 2), 0, round(step, 2), HIGH, "touch")
    return Bar(tuple(boxes), touch, one.start, one.end, f"{one.start:%Y-%m-%d %H:%M} to {one.end:%Y-%m-%d %H:%M}: {told or 'none'}")


def words(ending: str) -> str:
    return ending.replace("_", " ")


def strip(turns: Sequence[TurnView], seconds: float) -> list[Stretch]:
    """The turns in the time that they took. How long the model took is known of the whole only: it is shared among the turns by
    the tokens they wrote."""
    in_tools = sum(turn.tool_seconds for turn in turns)
    in_model, written = max(0.0, seconds - in_tools), sum(turn.sampled_tokens for turn in turns)
    whole = max(in_model + in_tools, 1e-9)
    x, found = 0.0, list[Stretch]()
    for turn in turns:
        own = in_model * (turn.sampled_tokens / written if written else 1 / len(turns))
        model = Box(round(x, 2), 0, round(own / whole * WIDTH, 2), 22, "model")
        tools = Box(round(x + model.width, 2), 0, round(turn.tool_seconds / whole * WIDTH, 2), 22, "tools")
        x += model.width + tools.width
        told = f"turn {turn.number}: about {took(own)} in the model, {took(turn.tool_seconds)} in {count(len(turn.calls), 'call')}"
        found.append(Stretch(turn.number, model, tools, told))
    return found


def token_bars(turns: Sequence[TurnView]) -> list[tuple[int, Box, Box, str]]:
    """Each turn: what it read and what it wrote, on one scale."""
    most = max((turn.context_tokens + turn.sampled_tokens for turn in turns), default=0) or 1
    step = min(WIDTH / max(len(turns), 1), 90)
    found: list[tuple[int, Box, Box, str]] = []
    for place, turn in enumerate(turns):
        read, wrote = turn.context_tokens / most * 54, turn.sampled_tokens / most * 54
        x, width = place * step + 2, step - 4
        told = f"turn {turn.number}: {turn.context_tokens:,} tokens read, {turn.sampled_tokens:,} written"
        lower = Box(round(x, 2), round(54 - read, 2), round(width, 2), round(read, 2), "read")
        upper = Box(round(x, 2), round(54 - read - wrote, 2), round(width, 2), round(wrote, 2), "wrote")
        found.append((turn.number, lower, upper, told))
    return found


def took(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# --- tests, and what they compare ---------------------------------------------------------------------------------------------

CURVE_WIDTH, CURVE_HIGH = 320, 110
LOWEST_LOG = -4.0
"""Of the logarithm of a capital that is drawn: what was lost beyond it tells nobody anything."""
PAIRS_HIGH = 70


class Curve(NamedTuple):
    """The course of a test, its capital on a logarithmic scale."""

    points: str
    """Of a polyline."""
    bound: float | None
    """How far down the capital stands that is enough."""
    one: float
    """And the capital that it began with."""
    crossed: bool
    n: int


def curve(points: Sequence[Sequence[float]], bound: float | None) -> Curve | None:
    """None where there is no course yet."""
    if not points:
        return None
    low = max(LOWEST_LOG, min(0.0, *(log for _, log in points)))
    high = max(1.0, bound or 0.0, *(log for _, log in points)) * 1.08
    last = points[-1][0]

    def y(log: float) -> float:
        return round(CURVE_HIGH * (high - max(log, low)) / (high - low), 1)

    drawn = " ".join(f"{round(CURVE_WIDTH * n / max(last, 1), 1):g},{y(log):g}" for n, log in [(0, 0.0), *points])
    crossed = bound is not None and any(log >= bound for _, log in points)
    return Curve(drawn, None if bound is None else y(bound), y(0.0), crossed, int(last))


class Pair(NamedTuple):
    """One bin: the reference's bar and the live one beside it."""

    reference: Box
    live: Box
    told: str


def pairs(labels: Sequence[str], reference: Sequence[float], live: Sequence[float] | None) -> list[Pair]:
    most = max(*reference, *(live or (0.0,)), 1e-9)
    step = CURVE_WIDTH / len(labels)
    width = round(step * 0.4, 2)

    def bar(x: float, share: float, style: str) -> Box:
        height = round(share / most * PAIRS_HIGH, 2)
        return Box(round(x, 2), round(PAIRS_HIGH - height, 2), width, height, style)

    seen = live or [0.0] * len(labels)
    return [
        Pair(
            bar(place * step + step * 0.08, before, "reference"),
            bar(place * step + step * 0.52, now, "live"),
            f"{label}: {before:.1%} of the reference, {now:.1%} live",
        )
        for place, (label, before, now) in enumerate(zip(labels, reference, seen, strict=True))
    ]


def percent(share: float) -> str:
    """With as many digits as tell small ones apart."""
    value = 100 * share
    return f"{value:.0f}%" if abs(value) >= 10 or value == round(value) else f"{value:.1f}%" if abs(value) >= 1 else f"{value:.2g}%"


def e_value(log_e: float | None) -> str:
    """A capital, as people read it."""
    if log_e is None:
        return "\N{EN DASH}"
    if log_e < 9:
        return f"{math.exp(log_e):.3g}"
    power = log_e / math.log(10)
    return f"10^{power:.1f}"
