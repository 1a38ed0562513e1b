"""What runs of training came to: the reports that runs leave in the store, with their single rows' stories on the cards.

No run's folder is read here: the server may stand elsewhere, and a folder knows no tenants.
"""

from __future__ import annotations

from typing import Any

import msgspec
from markupsafe import Markup

from agent_rft.contracts.errors import UserError
from agent_rft.evaluation.report.beside import beside
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.page import body
from observability import run_reports
from observability.dossier import NotThere
from observability.store import Store
from serving.pages.render import Answer, Asked, Desk, Page, address


def listed(desk: Desk, asked: Asked) -> Answer:
    tenant = asked.caller.tenant
    found = run_reports.runs(desk.store.of(tenant), tenant)
    return Page("runs.html", {"runs": found, "most": run_reports.NEWEST})


def shown(desk: Desk, asked: Asked) -> Answer:
    """One run; with `beside`, two of them."""
    tenant, run_id, other = asked.caller.tenant, asked.get("run_id"), asked.get("beside")
    store = desk.store.of(tenant)
    run = run_reports.run_of(store, tenant, run_id)
    if run is None:
        raise NotThere(f"there is no run {run_id[:80]!r}", "/runs lists those that there are")
    told = _report(store, tenant, run_id)
    others = [line.run_id for line in run_reports.runs(store, tenant) if line.headline and line.run_id != run_id]
    values: dict[str, Any] = {"run": run, "others": others, "beside": other, "report": "", "recipe": run.recipe}
    if told and other:
        values["report"] = Markup(beside([told, _wanted(store, tenant, other)]))
    elif told:
        values["report"] = Markup(body(told, lambda row: address("/cards", q=f"run:{_quoted(run_id)} kind:eval row:{_quoted(row)}")))
    return Page("run.html", values)


def _wanted(store: Store, tenant: str, run_id: str) -> RunReport:
    told = _report(store, tenant, run_id)
    if told is None:
        raise NotThere(f"there is no report of a run {run_id[:80]!r}", "/runs lists those that there are")
    return told


def _report(store: Store, tenant: str, run_id: str) -> RunReport | None:
    kept = run_reports.newest(store, tenant, run_id)
    if kept is None:
        return None
    try:
        return msgspec.convert(kept, RunReport, str_keys=True)
    except msgspec.ValidationError:
        cure = f"`rft report {run_id}` on the machine that has its folder makes it again"
        raise UserError(f"the report of run {run_id} was made by another version of this program", cure) from None


def _quoted(word: str) -> str:
    """As the search's language takes any name."""
    return '"' + word.replace('"', "") + '"'
