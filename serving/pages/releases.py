"""What is on trial and where it stands; one release from its first event to its newest, on which figures, and what a person may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import OPEN_STAGES, Event, Kpi, Policy, Release
from agent_rft.release.rules import waits_for
from observability import levels, registry, releases
from observability.access import Caller
from observability.accesses import note
from observability.registry import Changed, Report
from observability.roots import LedgerFiles
from observability.store import Store
from serving.pages import pictures
from serving.pages.pictures import Curve
from serving.pages.render import Answer, Asked, Desk, Go, Page, address
from serving.release import acts
from serving.release.knowing import known_of, moved_by, waived_by
from serving.release.waivers import SafetyWaived, Signed, safety_waived, signed_in

KPI_NAMES: Mapping[Kpi, str] = {
    "reward": "Reward",
    "holdout": "Holdout reward",
    "errors": "Sessions with an error",
    "tool_failures": "Sessions with a failed tool",
    "slow": "Slow sessions",
    "unsafe": "Unsafe sessions",
}
SCORES: frozenset[Kpi] = frozenset(("reward", "holdout"))
NOTES = {
    "hold": "It is held: nothing goes forward until somebody resumes it. Its figures can still roll it back.",
    "resume": "It goes on.",
    "promote": "You proposed that everybody gets it. Another person has to approve.",
    "approve": "You approved it: everybody gets it now.",
    "rollback": "It is rolled back. Sessions go to the live agent with their next turn.",
    "waive": "You signed. Of every report but safety's one person's word is enough; of safety's two people sign.",
}


class Row(msgspec.Struct, frozen=True):
    """A release in the list."""

    release: Release
    event: Event
    since: Any
    """When it came to where it is."""
    candidate: str
    live: str
    waits_for: str
    waived: SafetyWaived | None


class Figure(msgspec.Struct, frozen=True):
    """One KPI: the arms side by side, and its test."""

    name: str
    values: Mapping[str, Any]
    percent: bool
    curve: Curve | None
    conclusion: str


def listed(desk: Desk, asked: Asked) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    names = _names(store, tenant)
    rows = [_row(desk, release, event, names, asked) for release, event in reversed(releases.current(store, tenant))]
    return Page("releases.html", {"rows": sorted(rows, key=lambda row: row.release.service)})


def shown(desk: Desk, asked: Asked) -> Answer:
    store, tenant = desk.store.of(asked.caller.tenant), asked.caller.tenant
    number = asked.number("release_id") or 0
    release = releases.release_of(store, tenant, number)
    told = releases.events(store, tenant, number)
    known, names = known_of(store, release, asked.now, files=desk.files), _names(store, tenant)
    canary, mirrored = known.tests.figures(), known.tests.figures(shadow=True)
    values: dict[str, Any] = {"release": release, "newest": told[-1], "events": list(reversed(told)), "since": moved_by(told).at}
    values |= {"waits_for": waits_for(release.policy, known), "known": known, "note": NOTES.get(asked.get("note"), "")}
    values |= {"candidate": names.get(release.candidate, release.candidate), "live": names.get(release.live, release.live)}
    values |= {"canary": _figures(canary), "shadow": _figures(mirrored), "promotion": _promotion(canary["promotion"], release.policy)}
    values |= {"arms": levels.arms_of(store, tenant, number), "may": _may(asked.caller, told)}
    reports, changed = _reports(store, release)
    values |= {"reports": reports, "changed": changed, "waived": waived_by(told), "lineage": _lineage(store, release)}
    values |= {"safety_waived": safety_waived(release, told, desk.files), "signed": _signed(release, told, desk.files)}
    return Page("release.html", values)


# --- acts -------------------------------------------------------------------------------------------------------------------

Act = Callable[[Desk, Store, Caller, int, Asked], Event]


def acting(what: str, said: str, act: Act) -> Callable[[Desk, Asked], Answer]:
    def work(desk: Desk, asked: Asked) -> Answer:
        number = asked.number("release_id") or 0
        act(desk, desk.store.of(asked.caller.tenant), asked.caller, number, asked)
        note(desk.store, asked.caller, f"release {said}", str(number))
        return Go(address(f"/releases/{number}", note=what))

    return work


hold = acting("hold", "held", lambda desk, store, who, number, asked: acts.hold(store, who.name, who.tenant, number, asked.get("why")))
resume = acting(
    "resume", "resumed", lambda desk, store, who, number, asked: acts.resume(store, who.name, who.tenant, number, asked.get("why"))
)
promote = acting(
    "promote", "proposed", lambda desk, store, who, number, asked: acts.propose(store, who.name, who.tenant, number, asked.get("why"))
)
approve = acting(
    "approve",
    "approved",
    lambda desk, store, who, number, asked: acts.approve(store, who.name, who.tenant, number, asked.get("why"), desk.files),
)
waive = acting(
    "waive",
    "report waived",
    lambda desk, store, who, number, asked: acts.waive(store, who, number, asked.get("report"), asked.get("why"), desk.files),
)


def _roll_back(desk: Desk, store: Store, who: Caller, number: int, asked: Asked) -> Event:
    if asked.get("sure") != "yes":
        raise UserError("the rollback was not confirmed", "go back, tick the box, and press the button again")
    return acts.roll_back(store, who.name, who.tenant, number, asked.get("why"), cut=asked.get("cut") == "yes")


rollback = acting("rollback", "rolled back", _roll_back)


def _may(who: Caller, told: Sequence[Event]) -> list[str]:
    """What makes sense now, of what they may do."""
    newest = told[-1]
    on_trial, since = newest.stage in OPEN_STAGES, [event for event in told if event.id > moved_by(told).id]
    proposed = any(event.act == "propose" for event in since)
    sense = {
        "hold": on_trial and not newest.held and who.may("operate"),
        "resume": newest.held and newest.stage not in ("rolled_back", "superseded") and who.may("operate"),
        "promote": newest.stage == "canary" and not proposed and who.may("operate"),
        "approve": newest.stage == "canary" and proposed and who.may("approve"),
        "waive": on_trial and who.may("approve"),
        "rollback": (on_trial or newest.stage == "full") and who.may("operate"),
    }
    return [act for act, makes_sense in sense.items() if makes_sense]


# --- figures ----------------------------------------------------------------------------------------------------------------


def _figures(of_tests: Mapping[str, Any]) -> list[Figure]:
    return [_figure(kpi, of_tests[kpi]) for kpi in KPI_NAMES if kpi in of_tests]


def _figure(kpi: Kpi, values: Mapping[str, Any]) -> Figure:
    drawn = pictures.curve(values["curve"] if values["n"] else (), values["bound"])
    return Figure(KPI_NAMES[kpi], values, kpi not in SCORES, drawn, concluded(kpi, values))


def concluded(kpi: Kpi, values: Mapping[str, Any]) -> str:
    """What to make of a test, in words."""
    if values["bound"] is None:
        return "Not tested: the policy spends no alpha on it."
    if not values["n"]:
        return "No pair of sessions yet."
    if values["highest_log_e"] >= values["bound"]:
        return "The candidate is worse than the policy bears: enough to roll it back."
    low, high = values["low"], values["high"]
    if kpi == "unsafe":
        return f"Nothing speaks against it: the rate is at most {high:.1%}."
    worst = -low if kpi in SCORES else high
    if worst <= 0:
        return "The candidate is better."
    by = f"{worst:.2f}" if kpi in SCORES else f"{worst:.0%}"
    return f"Nothing speaks against it so far: at worst it is {by} worse."


def _promotion(values: Mapping[str, Any], policy: Policy) -> str:
    rates = f"errors, failed tools and slow sessions at most {policy.rate_margin:.0%} more"
    margins = f"reward at most {policy.margin:g} below the live agent's, {rates}"
    if values["noninferior"]:
        return f"Shown: {margins} (error at most {policy.promote_alpha:g} each)."
    missing = {kpi: one for kpi, one in values["of"].items() if one["highest_log_e"] < values["bound"]}
    told = ", ".join(
        f"{kpi.replace('_', ' ')} {pictures.e_value(one['highest_log_e'])} over {one['n']} pairs" for kpi, one in missing.items()
    )
    return f"Before everybody gets it: {margins}. Not shown yet, by e-value, of {pictures.e_value(values['bound'])}: {told}."


# --- what is around it --------------------------------------------------------------------------------------------------------


def _row(desk: Desk, release: Release, event: Event, names: Mapping[str, str], asked: Asked) -> Row:
    store = desk.store.of(release.tenant)
    told = releases.events(store, release.tenant, release.id)
    waiting = waits_for(release.policy, known_of(store, release, asked.now, files=desk.files)) if event.stage in OPEN_STAGES else ""
    candidate, live = (names.get(agent, agent) for agent in (release.candidate, release.live))
    return Row(release, event, moved_by(told).at, candidate, live, waiting, safety_waived(release, told, desk.files))


def _signed(release: Release, told: Sequence[Event], files: LedgerFiles) -> dict[int, Signed]:
    """By event, what was signed with it."""
    return {event.id: one for event in told for one in signed_in(release, [event], files)}


def _names(store: Store, tenant: str) -> dict[str, str]:
    return {one.id: one.name for one in registry.agents(store, tenant)}


def _reports(store: Store, release: Release) -> tuple[list[tuple[str, Report, list[str]]], list[tuple[str, Changed]]]:
    """By arm, those that count, with what they say, and those that were changed. Of a kind of which one was changed none counts."""
    reports, changed = list[tuple[str, Report, list[str]]](), list[tuple[str, Changed]]()
    for arm, agent in (("candidate", release.candidate), ("live", release.live)):
        told, spoilt = registry.reports_to_look_at(store, release.tenant, agent) if agent else ([], [])
        counting = registry.newest(told, release.policy.safety_suite)
        reports += [
            (arm, one, _says(store, release.tenant, one)) for kind, one in counting.items() if kind not in {one.kind for one in spoilt}
        ]
        changed += [(arm, one) for one in spoilt]
    return reports, changed


def _says(store: Store, tenant: str, report: Report) -> list[str]:
    """A report that a person wrote may hold anything."""
    told, figures = report.figures.get("says"), report.figures
    tried = f"suite {figures['suite']}, {figures.get('cases')} cases, {figures.get('tries')} tries" if "suite" in figures else ""
    behind = registry.told_by_cards(store, tenant, report) if report.kind == "safety" and report.passed else ""
    return [*([str(line) for line in cast("list[Any]", told)] if isinstance(told, list) else []), *filter(None, (tried, behind))]


def _lineage(store: Store, release: Release) -> Any:
    return registry.came_from(store, release.tenant, registry.agent_of(store, release.tenant, release.candidate))
