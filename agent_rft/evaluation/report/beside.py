"""Runs beside each other: what each came to, how they differ, and whether one is better on the very same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import RowDiff, Verdict, change_in_reward, sign, verdict_of
from agent_rft.evaluation.figures import Panel, series_of
from agent_rft.evaluation.report.compared import FIRST_AND_THIS, kind_of, slices
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.head import ended, spoken
from agent_rft.evaluation.report.html import figure, key, number, section, signless, soft, table
from agent_rft.evaluation.report.page import document
from agent_rft.evaluation.report.versions import flat, version_names
from agent_rft.evaluation.scoreboard import p_told
from agent_rft.evaluation.slices import slice_rows
from agent_rft.evaluation.statistics import Interval, holm, wilcoxon
from agent_rft.evaluation.svg import runs_svg, whisker_svg

MOST = 6
"""Runs that are told apart by colour."""
RowsOf = Sequence[RowDiff]


class Paired(NamedTuple):
    """A run's tuned model against the first run's, on the rows that both were evaluated on."""

    name: str
    rows: list[RowDiff]
    change: Interval
    p: float
    """As it counts among all the runs."""
    verdict: Verdict


def render_beside(reports: Sequence[RunReport]) -> str:
    return document(" and ".join(report.run_id for report in reports[:MOST]), beside(reports))


def left_out(reports: Sequence[RunReport]) -> str:
    """In a line; nothing where every run has a colour."""
    others = ", ".join(report.run_id for report in reports[MOST:])
    return others and f"Left out: {others}. The first {MOST} are beside each other: more than that, colours do not tell apart."


def beside(reports: Sequence[RunReport]) -> str:
    others, reports = left_out(reports), reports[:MOST]
    found, alike = paired(reports), comparable(reports)
    apart = " and ".join(differing(reports))
    title = verdict(reports, found) if alike else f"These runs were judged by different {apart}: their rewards cannot be compared"
    names = escape(" · ".join(report.run_id for report in reports))
    head = f'<header><p class="soft">{names}</p><h1>{escape(title)}</h1>{others and soft(others)}</header>'
    parts = (_runs(reports), _pairs(reports[0].run_id, found) if alike else "", _curves(reports, alike), _differences(reports))
    return head + "".join(parts)


def comparable(reports: Sequence[RunReport]) -> bool:
    return not differing(reports)


def differing(reports: Sequence[RunReport]) -> list[str]:
    """Of what rewards are judged by."""
    made = {"data sets": {report.versions.dataset for report in reports}, "graders": {report.versions.grader for report in reports}}
    return [name for name, every in made.items() if len(every) > 1]


def paired(reports: Sequence[RunReport]) -> list[Paired]:
    first, *others = reports
    pairs = [(one.run_id, rows) for one in others if (rows := _diffs(first, one))]
    ps = [wilcoxon([row.d_reward for row in rows]) for _, rows in pairs]
    changes = [change_in_reward(rows) for _, rows in pairs]
    every = zip(pairs, changes, holm(ps), strict=True)
    return [Paired(name, rows, change, p, verdict_of(rows, p)) for (name, rows), change, p in every]


def _diffs(first: RunReport, other: RunReport) -> list[RowDiff]:
    before, after = ({row.row_id: row for row in one.comparison.rows} if one.comparison else {} for one in (first, other))
    both = [
        RowDiff(
            row_id=row_id,
            metadata=one.metadata,
            base_reward=one.tuned_reward,
            tuned_reward=after[row_id].tuned_reward,
            base_calls=one.tuned_calls,
            tuned_calls=after[row_id].tuned_calls,
            d_reward=after[row_id].tuned_reward - one.tuned_reward,
            d_tools=after[row_id].tuned_calls - one.tuned_calls,
        )
        for row_id, one in before.items()
        if row_id in after
    ]
    return sorted(both, key=lambda row: (row.d_reward, -row.d_tools, row.row_id))


def verdict(reports: Sequence[RunReport], found: Sequence[Paired]) -> str:
    first, *others = reports
    if first.comparison is None:
        return f"{first.run_id} was {_not_evaluated(first)}: there is nothing to hold the others against; name another run first"
    names = {one.name for one in found}
    told = [f"{one.name} {signless(f'{one.change.estimate:+.3f}')}, {one.verdict}" for one in found]
    told += [f"{one.run_id} was {_not_evaluated(one)}" for one in others if one.run_id not in names]
    return f"Beside {first.run_id}, on the same rows: {'; '.join(told)}"


def _not_evaluated(report: RunReport) -> str:
    if report.comparison:
        return "evaluated on none of them"
    return f"{ended(report).lower()} and not evaluated" if report.halted else "not evaluated"


# --- sections ---------------------------------------------------------------------------------------------------------


def _runs(reports: Sequence[RunReport]) -> str:
    names = (
        "run",
        "recipe",
        "steps",
        "base",
        "tuned",
        "change",
        "improved",
        "regressed",
        "calls",
        "KL",
        "lost to infra",
        "guards",
        "minutes",
    )
    return section("runs", "What each came to", table(names, [_run(place, one) for place, one in enumerate(reports)]))


def _run(place: int, report: RunReport) -> tuple[str, ...]:
    found, metrics, spoke = report.comparison, report.metrics, spoken(report.every_line)
    kl = [line.kl_to_ref for line in metrics if line.kl_to_ref is not None]
    change = found.d_reward if found else None
    interval = f" <small>{signless(f'{change.low:+.3f} to {change.high:+.3f}')}</small>" if change else ""
    return (
        f'<i class="swatch run-{place}"></i><b>{escape(report.run_id)}</b>',
        escape(report.recipe),
        str(metrics[-1].step if metrics else 0),
        number(found.base_reward if found else None, ".2f"),
        number(found.tuned_reward if found else None, ".2f"),
        number(change.estimate if change else None, "+.3f") + interval,
        str(found.improved) if found else number(None, ""),
        str(found.regressed) if found else number(None, ""),
        number(found.tuned_calls if found else None, ".1f"),
        number(kl[-1] if kl else None, ".3f"),
        f"{sum(line.infra_failures for line in metrics):,}",
        escape(ended(report).lower() if report.halted else f"{len(spoke)} spoke" if spoke else "silent"),
        f"{report.seconds / 60:.1f}",
    )


def _pairs(first: str, found: Sequence[Paired]) -> str:
    if not found:
        return ""
    ends = (min(0.0, *(one.change.low for one in found)) - 0.02, max(0.0, *(one.change.high for one in found)) + 0.02)
    names = (f"against {first}", "rows", "change", "95% interval", "", "p, adjusted", "better", "worse")
    lines = table(names, [_pair(one, ends) for one in found], "drawn slices")
    kinds = "".join(f'<div class="duo">{_kinds(one)}{_apart(one)}</div>' for one in found)
    note = (
        "Each interval is of its run alone; p is adjusted by Holm's method for having looked at all of them, and decides the colour, too."
    )
    return section("paired", "The tuned models on the same rows", lines + (soft(note) if len(found) > 1 else "") + kinds)


def _kinds(one: Paired) -> str:
    return slices(slice_rows(one.rows), len(one.rows), FIRST_AND_THIS, one.name)


def _pair(one: Paired, ends: tuple[float, float]) -> tuple[str, ...]:
    low, high = one.change.low, one.change.high
    return (
        f"<b>{escape(one.name)}</b>",
        str(len(one.rows)),
        number(one.change.estimate, "+.3f"),
        f'<span class="soft">{number(low, "+.3f")} to {number(high, "+.3f")}</span>',
        whisker_svg(low, one.change.estimate, high, ends, kind_of(one.verdict)),
        escape(p_told(one.p).removeprefix("p ").removeprefix("= ")),
        str(sum(sign(row.d_reward) > 0 for row in one.rows)),
        str(sum(sign(row.d_reward) < 0 for row in one.rows)),
    )


SHOWN = 8
"""Rows at either end."""


def _apart(one: Paired) -> str:
    """The rows that moved most, to be read in each run's own report."""
    worse, better = [row for row in one.rows if sign(row.d_reward) < 0], [row for row in one.rows if sign(row.d_reward) > 0]
    chosen = [*worse[:SHOWN], *better[-SHOWN:]]
    if not chosen:
        return ""
    forms = (("base_reward", ".2f"), ("tuned_reward", ".2f"), ("d_reward", "+.2f"), ("d_tools", "+.1f"))
    rows = [(escape(row.row_id), *(number(getattr(row, name), form) for name, form in forms)) for row in chosen]
    return figure(
        f"{len(worse)} rows worse and {len(better)} better under {one.name}", table(("row", *FIRST_AND_THIS, "Δ reward", "Δ calls"), rows)
    )


Value = Callable[[StepMetrics], float | None]
REWARD = "reward"
OVERLAID: tuple[tuple[str, str, float, Value], ...] = (
    ("Validation reward", REWARD, 1.0, lambda one: one.val_reward),
    ("Tool calls a try at validation", "tool calls", 1.0, lambda one: one.val_tool_calls),
    ("KL to the reference", "KL (k3)", 0.01, lambda one: one.kl_to_ref),
    ("Entropy", "nats a token", 0.01, lambda one: one.entropy),
)


def _curves(reports: Sequence[RunReport], alike: bool) -> str:
    drawn = "".join(_overlaid(reports, *one, alike) for one in OVERLAID)
    legend = key((f"run-{place}", report.run_id) for place, report in enumerate(reports))
    return section("training", "Training", f'{legend}<div class="duo">{drawn}</div>' if drawn else "")


def _overlaid(reports: Sequence[RunReport], what: str, axis: str, top: float, value: Value, alike: bool) -> str:
    lines = tuple(series_of(one.run_id, one.metrics, value) for one in reports)
    ends = {line.name: line.points[-1][1] for line in lines if line.points}
    if not ends:
        return ""
    most = max(ends, key=lambda name: ends[name])
    title = f"{what} ends highest in {most}: {ends[most]:.2f}" if len(ends) > 1 else f"{what} of {most} ends at {ends[most]:.2f}"
    if axis == REWARD and not alike:
        title = f"{what}, each under its own grader and rows: not to be compared"
    return figure(title, runs_svg(Panel(title, axis, lines, top, steps=max(one.metrics[-1].step for one in reports if one.metrics))))


def _differences(reports: Sequence[RunReport]) -> str:
    settings = [flat(report.settings) for report in reports]
    made = [version_names(report) for report in reports]
    names = [report.run_id for report in reports]
    return section("differences", "What differs", _differing("setting", names, settings) + _differing("version", names, made))


def _differing(what: str, names: Sequence[str], every: Sequence[dict[str, str]]) -> str:
    keys = [name for name in dict.fromkeys(name for one in every for name in one) if len({str(one.get(name)) for one in every}) > 1]
    if not keys:
        return soft(f"No {what} differs.")
    rows = [(f"<code>{escape(name)}</code>", *(f"<code>{escape(str(one.get(name, '–')))}</code>" for one in every)) for name in keys]
    return table((what, *names), rows, "words differences")
