"""Whether what the agent was trained on is like what it is judged by and asked."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from agent_rft.evaluation.distribution import DistributionCheck
from agent_rft.evaluation.report.html import figure, section, table

NAMES = ("looked at", "statistic", "gap", "by chance", "borne beyond", "p", "verdict", "where")


def distributions(checks: Sequence[DistributionCheck]) -> str:
    return section("distribution", "Are the rows alike?", "".join(figure(_title(one), _parts(one)) for one in checks))


def _title(check: DistributionCheck) -> str:
    sides = f"{check.name_a} ({check.n_a:,}) and {check.name_b} ({check.n_b:,})"
    if check.verdict == "too few":
        return f"Too few to tell whether {sides} are alike"
    if check.verdict == "alike":
        return f"{sides} are alike: what holds on one should hold on the other"
    return f"{sides} differ in {', '.join(part.what for part in check.differing)}: figures of one say little about the other"


def _parts(check: DistributionCheck) -> str:
    rows = [
        (
            escape(part.what),
            escape(part.statistic),
            f"{part.figure:.3f}",
            f"{part.by_chance:.3f}",
            f"{part.limit:g}",
            f"{part.p:.2g}",
            f'<span class="act {"halt" if part.verdict == "differ" else "ok"}">{part.verdict}</span>',
            escape(part.words),
        )
        for part in check.parts
    ]
    return table(NAMES, rows, "checks") if rows else ""
