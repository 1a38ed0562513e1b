"""What the base could do before, and how training went."""

from __future__ import annotations

from html import escape

from agent_rft.evaluation.figures import MEASURED, curve_panels, health_panels, prior_title, variance_title
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.html import figure, key, section, soft
from agent_rft.evaluation.svg import panel_svg, rates_svg, variances_svg


def prior(check: PriorCheck | None) -> str:
    if check is None:
        return ""
    left_out = f"{check.infra_failures} tries lost to infrastructure, {check.unmeasured} rows unmeasured." if check.infra_failures else ""
    cure = f" To do: {check.cure}." if check.cure else ""
    words = f"<p><b>{escape(check.verdict.capitalize())}</b>: {escape(check.why)}.{escape(cure)} {escape(left_out)}</p>"
    drawings = figure(prior_title(check), rates_svg(check)) + figure(variance_title(check), variances_svg(check))
    legend = key((bucket, f"{bucket} {getattr(check, bucket)}") for bucket in MEASURED)
    return section("prior", "Prior: what the base model solves", f'{words}{legend}<div class="duo">{drawings}</div>')


def curves(report: RunReport) -> str:
    metrics = report.metrics
    if not metrics:
        return ""
    held = dict.fromkeys(name for line in metrics for name in line.holdout)
    spoke = any(line.findings for line in metrics)
    legend = key(
        [
            ("better", "validation"),
            ("same", "training"),
            *([("held", f"under {', '.join(held)}, which training never sees")] if held else []),
            ("band", "where a guard speaks"),
            *([("spoke", "a guard spoke")] if spoke else []),
        ]
    )
    main = "".join(figure(panel.title, panel_svg(panel)) for panel in curve_panels(metrics, report.watched))
    other = soft("The scoreboard is of other tries than the last validation: by luck the two may differ.") if report.comparison else ""
    return section("training", "Training", f'{legend}{other}<div class="duo">{main}</div>{_health(report)}')


def _health(report: RunReport) -> str:
    """The smaller figures, for whoever looks into why."""
    panels = health_panels(report.metrics, report.watched)
    if not panels:
        return ""
    drawings = "".join(figure(panel.title, panel_svg(panel)) for panel in panels)
    note = soft("From and to are means of the first five steps and of the last.")
    return f'<h3 class="over">What else guards look at</h3>{note}<div class="trio">{drawings}</div>'
