"""How tools are used and what goes wrong, model beside model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape

from agent_rft.evaluation.failures import Failures
from agent_rft.evaluation.report.html import figure, key, number, section, soft, table
from agent_rft.evaluation.svg import SIDES, bars_svg, calls_svg
from agent_rft.evaluation.tool_use import ToolUse

AT_MOST = len(SIDES)
"""Models that are drawn beside each other."""


def tools(uses: Mapping[str, ToolUse]) -> str:
    shown = dict(list(uses.items())[:AT_MOST])
    if not shown:
        return ""
    legend = key((SIDES[place], name) for place, name in enumerate(shown))
    habits = figure(_habits_title(shown), _habits(shown))
    called = figure(_calls_title(shown), calls_svg(list(shown.values())))
    chosen = figure(_choice_title(shown), _choice(shown)) if _tools(shown) else ""
    drawn = f'{legend}{_not_drawn(uses)}<div class="duo">{called}<div>{chosen}{habits}</div></div>'
    return section("tools", "How tools are used", drawn)


def _not_drawn(models: Collection[str]) -> str:
    """There are as many colours, and no more."""
    others = [*models][AT_MOST:]
    return soft(f"Drawn are the first {AT_MOST} models; not {', '.join(others)}.") if others else ""


HABITS = (
    ("tool calls a try", "calls_a_try", ".2f"),
    ("turns a try", "turns_a_try", ".2f"),
    ("tokens written a try", "tokens_a_try", ".0f"),
    ("calls beside another in one turn", "parallel_share", ".0%"),
    ("calls that repeat an earlier one", "repeated_calls", ".1%"),
    ("answered without any call", "early_stop", ".1%"),
    ("ran out of budget", "out_of_budget", ".1%"),
    ("could not be read", "malformed", ".1%"),
    ("did what no agent may do", "unsafe", ".1%"),
)


def _habits(uses: Mapping[str, ToolUse]) -> str:
    rows = [(escape(words), *(number(use.figures.get(name), form) for use in uses.values())) for words, name, form in HABITS]
    refused = ("calls that the tool refused", *(number(use.refused, ".1%") for use in uses.values()))
    return table(("", *uses), [*rows, refused], "models")


def _choice(uses: Mapping[str, ToolUse]) -> str:
    """Which tools the calls go to."""
    shares = {tool: [use.share(tool) for use in uses.values()] for tool in _tools(uses)}
    most = max(max(one) for one in shares.values())
    rows = [(escape(name), bars_svg(one, most), *(f"{share:.0%}" for share in one)) for name, one in shares.items()]
    return table(("tool", "share of the calls", *uses), rows, "bars models")


def _tools(uses: Mapping[str, ToolUse]) -> list[str]:
    return list(dict.fromkeys(tool for use in uses.values() for tool in use.tools))


def _ends(uses: Mapping[str, ToolUse]) -> tuple[ToolUse, ToolUse]:
    """The first model and the last."""
    every = list(uses.values())
    return every[0], every[-1]


def _calls_title(uses: Mapping[str, ToolUse]) -> str:
    if len(uses) == 1:
        ((name, use),) = uses.items()
        return f"{name} makes {use.calls:.1f} tool calls a try"
    if len(uses) > 2:
        fewest, most = (choose(uses, key=lambda name: uses[name].calls) for choose in (min, max))
        return f"{uses[fewest].calls:.1f} tool calls a try by {fewest}, {uses[most].calls:.1f} by {most}"
    first, last = _ends(uses)
    if abs(first.calls - last.calls) < 0.05:
        return f"{last.calls:.1f} tool calls a try, as before"
    return f"{'Fewer' if last.calls < first.calls else 'More'} tool calls a try: {first.calls:.1f} → {last.calls:.1f}"


def _choice_title(uses: Mapping[str, ToolUse]) -> str:
    """The tool whose share moved most."""
    tools = _tools(uses)
    if len(uses) != 2:
        return f"{max(tools, key=lambda tool: sum(use.share(tool) for use in uses.values()))} is called most"
    first, last = _ends(uses)
    moved = max(tools, key=lambda tool: abs(last.share(tool) - first.share(tool)))
    before, after = first.share(moved), last.share(moved)
    if abs(after - before) < 0.02:
        return "The calls go to the same tools as before"
    return f"{moved} takes {'more' if after > before else 'less'} of the calls: {before:.0%} → {after:.0%}"


def _habits_title(uses: Mapping[str, ToolUse]) -> str:
    """Of two models the last one's; of several whoever does it most."""
    named = max(uses, key=lambda name: uses[name].figures["early_stop"]) if len(uses) > 2 else list(uses)[-1]
    early, by = uses[named].figures["early_stop"], f" by {named}" if len(uses) > 1 else ""
    if not early:
        return f"No try{by if len(uses) == 2 else ''} answers without looking something up"
    return f"{early:.1%} of the tries{by} answer without looking anything up"


# --- failures ---------------------------------------------------------------------------------------------------------


def failed(found: Mapping[str, Failures]) -> str:
    if not found:
        return ""
    kinds = list(dict.fromkeys(kind for side in reversed(list(found.values())) for kind in side.kinds))
    shares = {kind: [side.kinds.get(kind, 0) / side.tries for side in found.values()] for kind in kinds}
    if not kinds:
        return section("failures", "What goes wrong", soft("Every try solved its row."))
    most = max(max(one) for one in shares.values())
    rows = [
        (escape(kind), bars_svg(one[:AT_MOST], most), *(str(side.kinds.get(kind, 0)) for side in found.values()))
        for kind, one in shares.items()
    ]
    whole = (
        "all tries that did not solve their row",
        "",
        *(f"<b>{side.tries - side.solved}</b> of {side.tries}" for side in found.values()),
    )
    legend = key((SIDES[place], name) for place, name in enumerate(list(found)[:AT_MOST]))
    told = table(("kind", "share of the tries", *found), [*rows, whole], "bars models")
    body = legend + _not_drawn(found) + figure(_failed_title(found), told)
    return section("failures", "What goes wrong", body)


def _failed_title(found: Mapping[str, Failures]) -> str:
    name, last = list(found.items())[-1]
    if not last.kinds:
        return f"Every try of {name} solved its row"
    kind, count = next(iter(last.kinds.items()))
    quoted = f"\N{LEFT DOUBLE QUOTATION MARK}{kind}\N{RIGHT DOUBLE QUOTATION MARK}"
    return f"What {name} does not solve is most often {quoted}: {count} of {last.tries - last.solved}"
