"""The whole page, as a file of its own or within another one's frame."""

from __future__ import annotations

from html import escape

from agent_rft.evaluation.report.compared import RowAddress, comparison, examples, rows
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.distribution import distributions
from agent_rft.evaluation.report.head import guards, head
from agent_rft.evaluation.report.scores import scores
from agent_rft.evaluation.report.style import STYLE
from agent_rft.evaluation.report.tools import failed, tools
from agent_rft.evaluation.report.training import curves, prior
from agent_rft.evaluation.report.versions import versions

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What the browser is told to allow: nothing but the file's own style."""


def render_report(report: RunReport) -> str:
    """As one file."""
    return document(report.run_id, body(report))


def body(report: RunReport, cards_of: RowAddress | None = None) -> str:
    """Its sections, for a page that has a head of its own. `cards_of`: where the stories of single rows are, if not here."""
    parts = (
        ("guards", "Guards", guards(report)),
        ("scores", "Scores", scores(report.scoreboard)),
        ("comparison", "Base against tuned", comparison(report)),
        ("training", "Training", curves(report)),
        ("tools", "Tools", tools(report.uses)),
        ("failures", "What goes wrong", failed(report.failures)),
        ("examples", "Examples", examples(report)),
        ("rows", "Row by row", rows(report, cards_of)),
        ("prior", "Prior", prior(report.prior)),
        ("distribution", "Distribution", distributions(report.distribution)),
        ("versions", "Versions", versions(report)),
    )
    ways = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, told in parts if told)
    return f'{head(report)}<nav class="ways">{ways}</nav>{"".join(told for _, _, told in parts)}'


def document(title: str, told: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(title)}: report</title>'
        f'<style>{STYLE}</style></head><body class="report">{told}</body></html>\n'
    )
