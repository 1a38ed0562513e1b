"""One HTML file that tells a run: self-contained, asks nothing of the network, runs no script, escapes whatever came from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.rollouts import Ending
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import Comparison, RowDiff, sign
from agent_rft.evaluation.figures import MEASURED, curve_panels, prior_title, quadrant_title, variance_title
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.report_style import STYLE
from agent_rft.evaluation.slices import DEFAULT_KEYS, Slice, slice_rows
from agent_rft.evaluation.suite import SuiteSummary, summarise
from agent_rft.evaluation.svg import panel_svg, quadrants_svg, rates_svg, variances_svg
from agent_rft.evaluation.trace_html import telling_tries, trace_html
from agent_rft.evaluation.tries import Tries, tries_by_row

TRACED_ROWS = 250
"""Rows whose traces are told, worst first; a larger evaluation would make a file no browser likes. All rows are listed."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the browser is told to allow: nothing but the file's own style."""
SECRET_WORDS = {"token", "key", "secret", "password", "bearer"}
URL_PASSWORD = re.compile(r"(://[^:/@\s]*):\S*@")
"""Up to the last @: a password may hold one, and hiding too much does no harm."""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that the report tells, as plain data."""

    run_id: str
    recipe: str
    finished_at: str
    seconds: float
    versions: Versions
    settings: dict[str, Any]
    prior: PriorCheck | None = None
    metrics: tuple[StepMetrics, ...] = ()
    comparison: Comparison | None = None
    slice_keys: tuple[str, ...] = DEFAULT_KEYS
    base: tuple[GradedRollout, ...] = ()
    """The graded tries behind the comparison."""
    tuned: tuple[GradedRollout, ...] = ()
    halted: str = ""
    next_step: str = ""


def write_report(report: RunReport, path: Path) -> None:
    path.write_text(render_report(report), encoding="utf-8")


def render_report(report: RunReport) -> str:
    sections = (
        _head(report),
        _figures(report),
        _prior(report.prior),
        _curves(report.metrics),
        _comparison(report),
        _endings(report),
        _versions(report),
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(report.run_id)}: report</title>'
        f"<style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


# --- head -------------------------------------------------------------------------------------------------------------


def headline(report: RunReport) -> str:
    """The run in a sentence."""
    comparison = report.comparison
    if report.halted:
        return f"Halted at step {report.metrics[-1].step if report.metrics else 0}: {report.halted}"
    if comparison is None:
        return f"Prior check: {report.prior.verdict}" if report.prior and not report.metrics else "Trained, not yet compared with the base"
    word = "No clear change"
    if comparison.clear:
        word = "Better" if comparison.mean_d_reward > 0 else "Worse"
    reward = f"reward {comparison.base_reward:.2f} → {comparison.tuned_reward:.2f}"
    calls = f"tool calls {comparison.base_calls:.1f} → {comparison.tuned_calls:.1f}"
    return f"{word}: {reward}, {calls}; {comparison.improved} of {comparison.compared} rows improved, {comparison.regressed} regressed"


def _head(report: RunReport) -> str:
    said = f'<p class="next{" halted" if report.halted else ""}">{escape(report.next_step)}</p>' if report.next_step else ""
    where = f"{report.recipe} · {report.run_id} · {report.finished_at} · {report.seconds / 60:.1f} minutes"
    return f'<header><p class="soft">{escape(where)}</p><h1>{escape(headline(report))}</h1>{said}</header>'


def _figures(report: RunReport) -> str:
    comparison, metrics = report.comparison, report.metrics
    tiles: list[tuple[str, str]] = []
    if comparison:
        tiles += [
            (f"{comparison.mean_d_reward:+.3f}", f"mean change in reward, ± {comparison.d_reward_error:.3f} standard error"),
            (f"{comparison.mean_d_tools:+.2f}", "mean change in tool calls"),
            (f"{comparison.improved} / {comparison.regressed}", "rows improved / regressed"),
            (f"{comparison.unchanged_solved} / {comparison.unchanged_unsolved}", "unchanged rows: solved / unsolved"),
        ]
    if kl := [one.kl_to_ref for one in metrics if one.kl_to_ref is not None]:
        tiles.append((f"{kl[-1]:.3f}", "KL to the reference at the end"))
    lost = sum(one.infra_failures for one in metrics) + sum(summarise(side).infra_failures for side in (report.base, report.tuned))
    tiles.append((str(lost), "rollouts lost to infrastructure, never scored"))
    drawn = "".join(f"<div><b>{escape(value)}</b><small>{escape(words)}</small></div>" for value, words in tiles)
    return f'<div class="figures">{drawn}</div>'


# --- prior and curves -------------------------------------------------------------------------------------------------


def _prior(check: PriorCheck | None) -> str:
    if check is None:
        return ""
    keys = "".join(f'<span><i class="{bucket}"></i>{bucket} {getattr(check, bucket)}</span>' for bucket in MEASURED)
    left_out = f"{check.infra_failures} tries lost to infrastructure, {check.unmeasured} rows unmeasured." if check.infra_failures else ""
    cure = f" To do: {check.cure}." if check.cure else ""
    words = f"<p><b>{escape(check.verdict.capitalize())}</b>: {escape(check.why)}.{escape(cure)} {escape(left_out)}</p>"
    drawings = _figure(prior_title(check), rates_svg(check)) + _figure(variance_title(check), variances_svg(check))
    return f'<h2>Prior: what the base model solves</h2>{words}<div class="key">{keys}</div><div class="pair">{drawings}</div>'


def _curves(metrics: Sequence[StepMetrics]) -> str:
    if not metrics:
        return ""
    key = '<div class="key"><span><i class="better"></i>validation</span><span><i class="same"></i>training</span></div>'
    drawings = "".join(_figure(panel.title, panel_svg(panel)) for panel in curve_panels(metrics))
    return f'<h2>Training</h2>{key}<div class="pair">{drawings}</div>'


def _figure(title: str, drawing: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{drawing}</figure>"


# --- base against tuned -----------------------------------------------------------------------------------------------


def _comparison(report: RunReport) -> str:
    comparison = report.comparison
    if comparison is None:
        return ""
    kept = f'<p class="soft">{comparison.quadrants.on_axis} rows kept their reward or their number of calls and lie on an axis.</p>'
    slices = "".join(_slice(part) for part in slice_rows(comparison.rows, report.slice_keys))
    names = ("slice", "rows", "base", "tuned", "Δ reward", "calls base", "calls tuned")
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<h2>Base against tuned</h2><div class="pair">{_figure(quadrant_title(comparison), quadrants_svg(comparison) + kept)}'
        f"<div><h3>By kind of row</h3><table><tr>{head}</tr>{slices}</table></div></div>{_rows(report, comparison)}"
    )


def _slice(part: Slice) -> str:
    name = f"<td>{escape(part.key)}: {escape(part.value)}</td><td>{part.rows}</td>"
    rewards = f"<td>{part.base_reward:.2f}</td><td>{part.tuned_reward:.2f}</td><td>{_coloured(part.d_reward, '+.3f')}</td>"
    return f"<tr>{name}{rewards}<td>{part.base_calls:.1f}</td><td>{part.tuned_calls:.1f}</td></tr>"


def _rows(report: RunReport, comparison: Comparison) -> str:
    base, tuned = tries_by_row(report.base), tries_by_row(report.tuned)
    listed = "".join(
        _row(diff, base.get(diff.row_id), tuned.get(diff.row_id), traced=place < TRACED_ROWS) for place, diff in enumerate(comparison.rows)
    )
    names = ("reward base", "reward tuned", "Δ reward", "calls base", "calls tuned", "Δ calls")
    head = (
        '<div class="head"><span></span><span>row</span><span>prompt</span>'
        + "".join(f'<span class="n">{name}</span>' for name in names)
        + "</div>"
    )
    out = (
        f'<p class="soft">Left out, no scored try on one side: {escape(", ".join(comparison.excluded))}</p>' if comparison.excluded else ""
    )
    note = '<p class="soft">Worst first. Open a row for the try of each side that shows the change best.</p>'
    return f'<h2>Row by row</h2>{note}<div class="rows">{head}{listed}</div>{out}'


def _row(diff: RowDiff, base: Tries | None, tuned: Tries | None, traced: bool) -> str:
    prompt = base.scored[0].row.prompt if base and base.scored else ""
    cells = f"<span>{escape(diff.row_id)}</span><span class='cut'>{escape(prompt)}</span>"
    for value, form, coloured in (
        (diff.base_reward, ".2f", False),
        (diff.tuned_reward, ".2f", False),
        (diff.d_reward, "+.2f", True),
        (diff.base_calls, ".1f", False),
        (diff.tuned_calls, ".1f", False),
        (diff.d_tools, "+.1f", False),
    ):
        cells += f'<span class="n">{_coloured(value, form) if coloured else format(value, form)}</span>'
    told = _told(diff, base, tuned) if traced and base and tuned else "<p>Its traces are in the job cards.</p>"
    return f'<details><summary>{cells}</summary><div class="told">{told}</div></details>'


def _told(diff: RowDiff, base: Tries, tuned: Tries) -> str:
    row = base.scored[0].row
    before, after = telling_tries(base.scored, tuned.scored, diff.d_reward)
    asked = f"<p><b>Prompt</b> {escape(row.prompt)}</p><p><b>Reference</b> {escape(str(row.reference_answer))}</p>"
    sides = trace_html("Base", before, len(base.scored) + base.failed) + trace_html("Tuned", after, len(tuned.scored) + tuned.failed)
    return f'{asked}<div class="sides">{sides}</div>'


def _coloured(value: float, form: str) -> str:
    kind = {1: "up", -1: "down", 0: "soft"}[sign(value)]
    return f'<span class="{kind}">{value:{form}}</span>'


# --- endings, versions, settings --------------------------------------------------------------------------------------


def _endings(report: RunReport) -> str:
    if not (report.base or report.tuned):
        return ""
    sides = (summarise(report.base), summarise(report.tuned))
    counts = "".join(
        f"<tr><td>{ending.value.replace('_', ' ')}</td>{''.join(f'<td>{side.endings[ending.value]}</td>' for side in sides)}</tr>"
        for ending in Ending
    )
    parts = "".join(
        f"<p>{name}: {escape(_failed_words(side))}</p>" for name, side in zip(("Base", "Tuned"), sides, strict=True) if side.failed_parts
    )
    head = "<tr><th>ending</th><th>base</th><th>tuned</th></tr>"
    return f"<h2>How the evaluation's tries ended</h2><table>{head}{counts}</table>{parts}"


def _failed_words(side: SuiteSummary) -> str:
    return "infrastructure failed at " + ", ".join(f"{part or 'an unnamed part'} ({times})" for part, times in side.failed_parts.items())


def _versions(report: RunReport) -> str:
    named = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in msgspec.to_builtins(report.versions).items()
    )
    settings = msgspec.json.format(msgspec.json.encode(masked(report.settings), enc_hook=str), indent=2).decode()
    opened = f"<details><summary>Settings</summary><pre>{escape(settings)}</pre></details>"
    return f'<h2>What made this</h2><table class="versions">{named}</table>{opened}'


def masked(value: Any, name: str = "") -> Any:
    """Settings as they may be shown: reports travel further than secrets should. A secret is text under a name that ends in
    such a word, or the password within a URL."""
    if isinstance(value, dict):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    return "(hidden)" if value and name.lower().split("_")[-1] in SECRET_WORDS else URL_PASSWORD.sub(r"\1:(hidden)@", value)
