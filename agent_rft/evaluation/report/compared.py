"""Base against tuned: on the whole, by kind of row, and row by row with the stories behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from agent_rft.evaluation.compare import Comparison, RowDiff, Verdict
from agent_rft.evaluation.figures import quadrant_title
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.html import coloured, figure, number, section, signless, soft, table
from agent_rft.evaluation.slices import Slice, slice_rows
from agent_rft.evaluation.svg import quadrants_svg, whisker_svg
from agent_rft.evaluation.trace_html import telling_tries, trace_html
from agent_rft.evaluation.tries import Tries, tries_by_row

TRACED_ROWS = 250
"""Rows whose traces are told, worst first; a larger evaluation would make a file no browser likes. All rows are listed."""
IN_SIGHT = 20
"""Rows that are listed at once, the worst ones."""
FEW_SLICES = 12
"""Slices that are listed at once; of more, the surest ones."""
NAMED, LONGEST_NAME = 5, 60
"""Slices that a title names, and characters of a name: whoever made the rows may have put a sentence there."""
SIDES, FIRST_AND_THIS = ("base", "tuned"), ("first", "this")
"""What two columns of rewards are of: a run's own two sides, or any other and the first that it is held against."""
MOVES = {"better": "up", "worse": "down", "same": "soft"}


def kind_of(verdict: Verdict) -> str:
    """How it is drawn: what may be luck has no colour."""
    return verdict if verdict in ("better", "worse") else "same"


RowAddress = Callable[[str], str]
"""Where the cards of a row are, by the row's id."""


def comparison(report: RunReport) -> str:
    found = report.comparison
    if found is None:
        return ""
    kept = soft(f"{found.quadrants.on_axis} rows kept their reward or their number of calls and lie on an axis.")
    worst = soft(f"The worst quadrant, less reward for more calls, holds {found.quadrants.worse_more}.")
    across = figure(quadrant_title(found), quadrants_svg(found) + kept + worst)
    by_kind = slices(slice_rows(found.rows, report.slice_keys), len(found.rows))
    return section("comparison", "Base against tuned", f'<div class="duo">{by_kind}{across}</div>')


# --- by kind of row ---------------------------------------------------------------------------------------------------


def slices(parts: Sequence[Slice], rows: int, sides: tuple[str, str] = SIDES, under: str = "") -> str:
    """All slices on one axis; what is called better or worse is so among all that were looked at. `under`: whose they are, where
    the page shows those of several."""
    parts = [part for part in parts if part.rows < rows] or list(parts)  # a slice that is all the rows tells nothing of its own
    if not parts:
        return ""
    if len(parts) > FEW_SLICES:
        parts = sorted(parts, key=lambda part: (part.p_adjusted, part.p, part.d_reward))
    ends = (min(0.0, *(part.d.low for part in parts)), max(0.0, *(part.d.high for part in parts)))
    drawn = [_slice(part, (ends[0] - 0.02, ends[1] + 0.02)) for part in parts]
    names = ("slice", "rows", *sides, "change", "95% interval", "", "p, adjusted")
    first, rest = (table(names, some, "drawn slices") if some else "" for some in (drawn[:FEW_SLICES], drawn[FEW_SLICES:]))
    more = f"<details><summary>{len(drawn) - FEW_SLICES} more, less sure</summary>{rest}</details>" if rest else ""
    note = soft(
        "Each interval is of its slice alone; p is adjusted by Holm's method for having looked at all of them; what both show is coloured."
    )
    return figure(slices_title(parts, under), first + more + note)


def _slice(part: Slice, ends: tuple[float, float]) -> Sequence[str]:
    kind = kind_of(part.verdict)
    return (
        f'<span title="{escape(part.value)}">{escape(_short(part.value))}</span><br><small>{escape(part.key.replace("_", " "))}</small>',
        str(part.rows),
        f"{part.base_reward:.2f}",
        f"{part.tuned_reward:.2f}",
        f'<span class="{MOVES[kind]}">{number(part.d.estimate, "+.2f")}</span>',
        f"<small>{number(part.d.low, '+.2f')} to<br>{number(part.d.high, '+.2f')}</small>",
        whisker_svg(part.d.low, part.d.estimate, part.d.high, ends, kind),
        _p(part.p_adjusted),
    )


def _p(p: float) -> str:
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def slices_title(parts: Sequence[Slice], under: str = "") -> str:
    names = {kind: [part.value for part in parts if part.verdict == kind] for kind in ("worse", "better")}
    by = f" under {under}" if under else ""
    if names["worse"]:
        return f"Worse on {_listed(names['worse'])}{by}; look there first"
    if len(names["better"]) == len(parts):
        return f"Better on every kind of row{by}"
    if names["better"]:
        return f"Clearly better on {_listed(names['better'])}{by}; no kind of row clearly worse"
    return f"No kind of row moved more than luck explains{by}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(_short, names[:NAMED])) + more


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]} …"


# --- stories ----------------------------------------------------------------------------------------------------------


def examples(report: RunReport) -> str:
    """The worst, the best, and one that nothing helped: read these before any average."""
    found = report.comparison
    if found is None or not report.base:
        return ""
    base, tuned = tries_by_row(report.base), tries_by_row(report.tuned)
    told = "".join(
        f'<details class="example"{" open" if place == 0 else ""}><summary><b>{escape(why)}</b> {escape(diff.row_id)}</summary>'
        f'<div class="told">{_told(diff, base[diff.row_id], tuned[diff.row_id])}</div></details>'
        for place, (why, diff) in enumerate(picked(found))
    )
    return section("examples", "Read these first", told)


def picked(found: Comparison) -> list[tuple[str, RowDiff]]:
    """Rows are worst first."""
    chosen: list[tuple[str, RowDiff]] = []
    if found.regressed:
        chosen.append(("Lost most:", found.rows[0]))
    if found.improved:
        chosen.append(("Gained most:", found.rows[-1]))
    never = set(found.unsolvable_rows)
    chosen += [("Earned nothing on any try, before or after:", row) for row in found.rows if row.row_id in never][:1]
    return chosen


def rows(report: RunReport, cards_of: RowAddress | None = None) -> str:
    """`cards_of`: where their stories are, when they are not on this page."""
    found = report.comparison
    if found is None:
        return ""
    base, tuned = tries_by_row(report.base), tries_by_row(report.tuned)
    listed = [
        _row(diff, base.get(diff.row_id), tuned.get(diff.row_id), place < TRACED_ROWS, cards_of) for place, diff in enumerate(found.rows)
    ]
    names = ("reward base", "reward tuned", "Δ reward", "calls base", "calls tuned", "Δ calls")
    head = '<div class="head"><span></span><span>row</span>' + ("" if cards_of else "<span>prompt</span>")
    head += "".join(f'<span class="n">{name}</span>' for name in names) + "</div>"
    rest = listed[IN_SIGHT:]
    more = f'<details class="rest"><summary>{len(rest)} more rows</summary>{"".join(rest)}</details>' if rest else ""
    out = soft(f"Left out, no scored try on one side: {', '.join(found.excluded)}") if found.excluded else ""
    note = soft("Worst first. Open a row for the try of each side that shows the change best." if report.base else "Worst first.")
    return section(
        "rows", "Row by row", f'{note}<div class="rows{" bare" if cards_of else ""}">{head}{"".join(listed[:IN_SIGHT])}{more}</div>{out}'
    )


def _row(diff: RowDiff, base: Tries | None, tuned: Tries | None, traced: bool, cards_of: RowAddress | None) -> str:
    prompt = base.scored[0].row.prompt if base and base.scored else ""
    name = escape(diff.row_id)
    if cards_of:
        name = f'<a href="{escape(cards_of(diff.row_id))}">{name}</a>'
    figures = (
        number(diff.base_reward, ".2f"),
        number(diff.tuned_reward, ".2f"),
        coloured(diff.d_reward, "+.2f"),
        number(diff.base_calls, ".1f"),
        number(diff.tuned_calls, ".1f"),
        signless(format(diff.d_tools, "+.1f")),
    )
    numbers = "".join(f'<span class="n">{one}</span>' for one in figures)
    if cards_of:
        return f'<div class="line"><span></span><span>{name}</span>{numbers}</div>'
    cells = f'<span>{name}</span><span class="cut">{escape(prompt)}</span>{numbers}'
    told = _told(diff, base, tuned) if traced and base and tuned else "<p>Its traces are in the job cards.</p>"
    return f'<details><summary>{cells}</summary><div class="told">{told}</div></details>'


def _told(diff: RowDiff, base: Tries, tuned: Tries) -> str:
    row = base.scored[0].row
    before, after = telling_tries(base.scored, tuned.scored, diff.d_reward)
    asked = f"<p><b>Prompt</b> {escape(row.prompt)}</p><p><b>Reference</b> {escape(str(row.reference_answer))}</p>"
    sides = trace_html("Base", before, len(base.scored) + base.failed) + trace_html("Tuned", after, len(tuned.scored) + tuned.failed)
    return f'{asked}<div class="sides">{sides}</div>'
