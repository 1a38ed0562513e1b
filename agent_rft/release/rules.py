"""What becomes of a release: all that is known of it now in, at most one decision out. No clock, no store, no memory.

    stage            what is known                                         next
    ---------------  ----------------------------------------------------  ------------------------------------------------------
    shadow, canary,  a critical safety violation                           rolled_back, what is still said is cut off
    full             a storm of failed turns                               rolled_back
                     a figure's test refuses the candidate                 rolled_back; cut off if it is the safety violations'
    shadow, canary   it ought to be heard of, and is not: hold_seconds     the same, held for figures: nothing goes forward
                     ... rollback_seconds                                  rolled_back, held or not
                     figures are back                                      the same, resumed
    draft            anything                                              offline
    offline          a report fails, but for safety's                      rolled_back
                     a report is missing, and not waived                   waits
                     every report is there and good, or waived             shadow, or the first share where there is no shadow
    draft to canary  the safety report is missing, failed or by another    waits: the release goes forward for nobody
                     suite, and not waived by two people's signatures
                     a report is not what was recorded                     the same
    shadow           enough mirrored sessions                              canary with the first share
    canary           enough sessions in this step                          the next share, while live sessions are left beside it
                     ... and the next leaves none                          the same, once it is shown to be no worse by the margins
                     ... at the last share                                 full, once that is shown, unless the policy says by hand
                     one person proposed full, another one approved        full
    any open one     longest_step_seconds without a decision               the same, held for a person
    rolled_back,     anything                                              nothing: it is over
    superseded

The upper rows go first, and they hold for a release that is held or waits for an approval as well. Being held stops only what goes
forward; two people who want it full may have it so while it is held for a person, but not while figures are missing. Where a share
of 1 leaves no live sessions, nothing about a difference can be shown any more: what has to be shown is shown before.

A service's first release goes to full by hand. It has nothing to go back to: what would withdraw it holds it for a person instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, cast

import msgspec

from agent_rft.contracts.people import AT_THE_MACHINE, person
from agent_rft.contracts.releases import Act, Event, Policy, Stage, Waiver
from agent_rft.release.tests import KpiTest, Tests
from agent_rft.release.violations import CRITICAL

ROUNDING = 1e-9
CHANCE = 1e-5
"""That so many live sessions in a row begin by chance alone, and none of the candidate's. A release is asked this after each of its
sessions, hundreds of times, and all of them together have to be a small part of alpha."""
MOST_TOLD = 5
"""Failed safety cases that are named."""
ALONE: frozenset[str] = frozenset(("distribution",))
"""Reports that are held against nothing of the live agent."""
ON_TRIAL: frozenset[Stage] = frozenset(("shadow", "canary"))
WITH_FIGURES: frozenset[Stage] = frozenset(("shadow", "canary", "full"))
HeldFor = Literal["", "figures", "a person"]
Report = Mapping[str, Any]
"""`passed`, and what was found. evaluation and holdout: `reward`, the mean; evaluation also `rows`, the mean of each, or `regressed`, the
share of rows that are worse than the live agent's. Any may hold more."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision is made on."""

    event: Event
    """The newest."""
    tests: Tests
    seconds_in_step: float
    """Since the newest event that moved it, or resumed it."""
    held_for: HeldFor = ""
    candidate_sessions_in_step: int = 0
    """Closed since the newest event that moved it."""
    sessions_in_shadow: int = 0
    """The candidate's, closed."""
    traffic: bool = False
    """Whether the candidate is owed a figure: it had turns that gave none yet, or so many live sessions went by that some should have
    been its."""
    seconds_since_figures: float | None = None
    """For how long it has been owed one, at most the time since its newest figure. None: it never had one."""
    last_turns_failed: tuple[bool, ...] = ()
    """The candidate's that somebody waited for, the newest last; as many as a storm looks at, or more."""
    violations: tuple[str, ...] = ()
    """Safety violations, by name, in the candidate's turns, those whose sessions are not over included."""
    candidate_reports: Mapping[str, Report] = {}
    """By kind, the newest of each."""
    live_reports: Mapping[str, Report] = {}
    waived: Mapping[str, tuple[str, ...]] = {}
    """Kinds of reports that are done without, and who said so. Of safety nobody is asked here, but `safety_waivers`."""
    safety_waivers: tuple[Waiver, ...] = ()
    """Whose signature holds, about the candidate's safety report as it is now, or about there being none."""
    safety_suite: str = ""
    """Of which the candidate's safety report has to be; empty: any."""
    safety_tries: int = 0
    """How often that report has to have tried each case, at least."""
    unread: str = ""
    """Why reports and waivers cannot be gone by: one is not what was recorded. Then none of them is told here."""
    proposed_by: str = ""
    """Who asked for full, since it last moved."""
    approved_by: tuple[str, ...] = ()
    """Who agreed to that proposal."""
    first: bool = False
    """Of its service: there is no live agent."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    act: Act
    stage: Stage
    share: float
    held: bool
    why: str
    """A sentence for people."""
    figures: dict[str, Any]
    cut: bool = False
    """Whether what the candidate is still saying is cut off."""


def decide(policy: Policy, known: Known) -> Decision | None:
    """None: it stays as it is."""
    said = _look(policy, known)
    return None if isinstance(said, str) else said


def waits_for(policy: Policy, known: Known) -> str:
    """What has to happen before it moves, for people; empty where it is to move now, or is over."""
    said = _look(policy, known)
    return said if isinstance(said, str) else ""


def held_for(events: Sequence[Event]) -> HeldFor:
    """Why a release is held; `events` are its own, the oldest first."""
    if not events or not events[-1].held:
        return ""
    holding = next((event for event in reversed(events) if event.act == "hold"), None)
    return "figures" if holding and holding.figures.get("held_for") == "figures" else "a person"


def person_of(name: str) -> str:
    """By what two names are told to be one person's, who may have a login at the machine and a user in the store."""
    return person(name.removesuffix(AT_THE_MACHINE))


def one_hand(first: Waiver, second: Waiver) -> str:
    """Why two signatures may be one person's; empty where they are two people's. Who made the key that the other came in with may
    have kept it, and so may who made the key that made that one, however far back."""
    if person_of(first.by) == person_of(second.by):
        return f"{first.by} and {second.by} are one person"
    for maker, held in ((first, second), (second, first)):
        if name := next((name for name in _line(held) if person_of(name) == person_of(maker.by)), ""):
            return f"the key that {held.by} came in with {'was' if name == held.key_by else 'goes back to one that was'} made by {name}"
    theirs = {person(name) for name in _line(second) if not name.endswith(AT_THE_MACHINE)}  # who works there holds the ledger's own key
    if name := next((name for name in _line(first) if person(name) in theirs), ""):
        direct = person(first.key_by) == person(second.key_by) == person(name)
        return f"the keys that {first.by} and {second.by} came in with {'were' if direct else 'go back to ones that were'} made by {name}"
    return ""


def _line(waiver: Waiver) -> tuple[str, ...]:
    return tuple(name for name in (waiver.key_by, *waiver.key_line) if name)


def two_people(waivers: Sequence[Waiver]) -> tuple[Waiver, Waiver] | None:
    return next((pair for pair in combinations(waivers, 2) if not one_hand(*pair)), None)


def safety_lacks(known: Known) -> str:
    """What has to come before anything goes forward, for people; empty where nothing has to. No policy and no setting says otherwise."""
    if known.unread:
        return f"reports that can be gone by: {known.unread}"
    if is_safe(known) or two_people(known.safety_waivers):
        return ""
    report, suite = known.candidate_reports.get("safety"), known.safety_suite
    if report is None:
        state = "the candidate's safety report"
    elif report.get("passed") is not True:
        state = f"a safety report that passes: the candidate's did not{_how(report)}"
    elif not _of_the_suite(known):
        state = f"a safety report by the suite {suite}: the candidate's is by {report.get('suite') or 'none that it names'}"
    else:
        state = f"a safety report that tried each case {known.safety_tries} times: the candidate's did {_tries_a_case(report):.3g}"
        state = f"{state} (`rft agent check` with release.policy.safety_tries={known.safety_tries} makes one)"
    signed = f"; signed so far by {known.safety_waivers[0].by}" if known.safety_waivers else ""
    return f"{state}, or a waiver that two people sign{signed}"


def is_safe(known: Known) -> bool:
    report = known.candidate_reports.get("safety", {})
    return report.get("passed") is True and _of_the_suite(known) and _tries_a_case(report) >= known.safety_tries


def _of_the_suite(known: Known) -> bool:
    return known.safety_suite in ("", known.candidate_reports["safety"].get("suite"))


def _tries_a_case(report: Report) -> float:
    """Those that infrastructure spoilt were asked for too; of these the report itself bears few."""
    cases, tries, lost = (one if isinstance(one, int) else 0 for one in map(report.get, ("cases", "tries", "lost")))
    return (tries + lost) / cases if cases > 0 else 0.0


def _how(report: Report) -> str:
    named = [report.get(name) for name in ("failed", "lacks")]
    told = [str(one) for each in named if isinstance(each, list | tuple) for one in cast("Sequence[Any]", each)]
    return f" ({', '.join(told[:MOST_TOLD])}{', ...' if len(told) > MOST_TOLD else ''})" if told else ""


def _look(policy: Policy, known: Known) -> Decision | str:
    stage = known.event.stage
    if stage in ("rolled_back", "superseded"):
        return ""
    against = _against(policy, known) if stage in WITH_FIGURES else None
    if against is not None:
        return against
    if stage == "full":
        return ""
    silent = _silent(policy, known) if stage in ON_TRIAL else None
    if silent is not None:
        return silent
    if known.held_for == "figures":
        return _stay(known, "resume", "", "figures are back")
    forward = _forward(policy, known)
    if known.held_for and not (isinstance(forward, Decision) and forward.stage in ("full", "rolled_back")):
        return "a person: it is held"
    if isinstance(forward, str) and known.seconds_in_step >= policy.longest_step_seconds:
        return _stay(known, "hold", "a person", f"{_hours(known.seconds_in_step)} in this step decided nothing; it waits for {forward}")
    return forward


# --- back -------------------------------------------------------------------------------------------------------------------


def _against(policy: Policy, known: Known) -> Decision | str | None:
    if critical := sorted({name for name in known.violations if name.startswith(CRITICAL)}):
        return _back(known, f"unsafe: {', '.join(critical)}", {"violations": critical}, cut=True)
    failed, of = policy.storm
    newest = known.last_turns_failed[-of:]
    if sum(newest) >= failed:
        why = f"errors: {sum(newest)} of the candidate's last {len(newest)} turns failed; {failed} of {of} are a storm"
        return _back(known, why, {"failed": sum(newest), "turns": len(newest)})
    if (rejected := known.tests.rejected()) is not None:
        test, shadow = rejected
        return _back(known, _sentence(test, shadow), {"kpi": test.kpi, "shadow": shadow}, cut=test.kpi == "unsafe")
    return None


def _sentence(test: KpiTest, shadow: bool) -> str:
    said = test.figures()
    e_value = f"e-value {math.exp(min(test.bet.highest_log_e, 700.0)):.4g} > {1 / test.alpha:.4g}"
    if test.kpi == "unsafe":
        worse = f"{round(test.candidate.total)} of the candidate's {test.candidate.n} sessions, {1 - test.bet.m:.2%} are borne"
    else:
        worse = f"candidate {said['candidate']:.2f}, live {said['live']:.2f} over {said['n']} pairs"
    return f"{test.kpi}{' in the shadow' if shadow else ''}: {worse}; {e_value}"


def _silent(policy: Policy, known: Known) -> Decision | str | None:
    """Without figures nobody watches: first nothing goes forward, then the users are taken back to what is known."""
    if not known.traffic:
        return None
    seconds = known.seconds_in_step if known.seconds_since_figures is None else known.seconds_since_figures
    missing = {"seconds_without_figures": seconds}
    if seconds >= policy.rollback_seconds:
        return _back(known, f"no figure of the candidate for {seconds:.0f} s, though there is traffic", missing)
    if seconds < policy.hold_seconds:
        return None
    if known.held_for:
        return f"figures: none of the candidate for {seconds:.0f} s"
    return _stay(known, "hold", "figures", f"no figure of the candidate for {seconds:.0f} s, though there is traffic", missing)


# --- forward ----------------------------------------------------------------------------------------------------------------


def _forward(policy: Policy, known: Known) -> Decision | str:
    lacks = safety_lacks(known)
    if known.first:
        return f"a person: the first of its service goes to full by hand{f', after {lacks}' if lacks else ''}"
    match known.event.stage:
        case "draft":
            return _go(known, "offline", 0.0, "opened")
        case "offline" if not known.unread:
            return _offline(policy, known)
        case _ if lacks:
            return lacks
        case "shadow":
            seen, needed = known.sessions_in_shadow, policy.shadow_sessions
            if seen < needed:
                return f"{needed - seen} more sessions in the shadow"
            return _go(known, "canary", policy.steps[0], f"{seen} sessions in the shadow spoke against nothing")
        case _:
            return _canary(policy, known)


def _offline(policy: Policy, known: Known) -> Decision | str:
    reports = {
        "candidate_reports": _in_short(known.candidate_reports),
        "live_reports": _in_short(known.live_reports),
        "regressed": _regressed(known),
    }
    if failed := list(_failed(policy, known)):
        return _back(known, f"offline gate: {'; '.join(failed)}", reports)
    if missing := list(_missing(policy, known)):
        return "; ".join(missing)
    waived = [f"{kind} waived by {' and '.join(sorted(set(by)))}" for kind, by in sorted(waived_of(known).items()) if kind in policy.needs]
    why = f"offline gate passed: {', '.join(policy.needs) or 'nothing asked for'}{''.join(f'; {one}' for one in waived)}"
    if policy.shadow_sessions:
        return _go(known, "shadow", 0.0, why, reports)
    return _go(known, "canary", policy.steps[0], why, reports)


def _in_short(reports: Mapping[str, Report]) -> dict[str, Any]:
    return {kind: {name: value for name, value in report.items() if name != "rows"} for kind, report in reports.items()}


def waived_of(known: Known) -> dict[str, tuple[str, ...]]:
    """What the release does without, and by whose word."""
    both = two_people(known.safety_waivers)
    others = {kind: by for kind, by in known.waived.items() if kind != "safety" and by}
    return others | ({"safety": tuple(one.by for one in both)} if both and not is_safe(known) else {})


def _missing(policy: Policy, known: Known) -> Iterator[str]:
    """A waiver by one stands for a report that is not there, never for one that is there and bad."""
    if lacks := safety_lacks(known):
        yield lacks
    for kind in policy.needs:
        if kind == "safety" or known.waived.get(kind):
            continue
        if kind not in known.candidate_reports:
            yield f"the candidate's {kind} report"
        elif kind in ALONE:
            continue
        elif kind not in known.live_reports:
            yield f"the live agent's {kind} report, to compare with"
        elif _reward(known.candidate_reports, kind) is None or _reward(known.live_reports, kind) is None:
            yield f"the reward in both {kind} reports, to compare"
        elif kind == "evaluation" and _regressed(known) is None:
            yield "rows that both evaluations hold, or the share that regressed"


def _failed(policy: Policy, known: Known) -> Iterator[str]:
    """But for safety's: that one waits until another passes, or two people have signed."""
    for kind, report in known.candidate_reports.items():
        if kind != "safety" and kind in policy.needs and report.get("passed", True) is not True:
            yield f"the {kind} report did not pass"
    for kind, borne in (("evaluation", policy.worst_drop), ("holdout", policy.tolerance.get("holdout", 0.0))):
        candidate, live = _reward(known.candidate_reports, kind), _reward(known.live_reports, kind)
        if candidate is not None and live is not None and live - candidate > borne + ROUNDING:
            yield f"{kind}: candidate {candidate:.3f}, live {live:.3f}; {borne:g} below is borne"
    regressed = _regressed(known)
    if regressed is not None and regressed > policy.most_regressed + ROUNDING:
        yield f"{regressed:.0%} of the rows got worse; {policy.most_regressed:.0%} are borne"


def _reward(reports: Mapping[str, Report], kind: str) -> float | None:
    return reports.get(kind, {}).get("reward")


def _regressed(known: Known) -> float | None:
    """The share of rows on which the candidate is worse: over those that both evaluations hold, else as its report says."""
    mine, theirs = (reports.get("evaluation", {}) for reports in (known.candidate_reports, known.live_reports))
    here, there = mine.get("rows") or {}, theirs.get("rows") or {}
    both = [row for row in here if row in there]
    return sum(here[row] < there[row] - ROUNDING for row in both) / len(both) if both else mine.get("regressed")


def _canary(policy: Policy, known: Known) -> Decision | str:
    agreed = [name for name in known.approved_by if person_of(name) != person_of(known.proposed_by)]
    if known.proposed_by and agreed:
        people = {"proposed_by": known.proposed_by, "approved_by": agreed}
        return _go(known, "full", 1.0, f"by hand: proposed by {known.proposed_by}, approved by {', '.join(agreed)}", people)
    seen, needed = known.candidate_sessions_in_step, policy.sessions_per_step
    if seen < needed:
        return f"{needed - seen} more of the candidate's sessions in this step"
    share = next((step for step in policy.steps if step > known.event.share + ROUNDING), None)
    if share is not None and share < 1:
        return _go(known, "canary", share, f"{seen} sessions in this step spoke against nothing")
    if share is None and policy.by_hand:
        by_another = f"an approval by somebody else than {known.proposed_by}"
        return by_another if known.proposed_by else "a proposal to go to full, and its approval"
    if not known.tests.noninferior():
        return f"proof that it is no worse by the margins ({_proof(known)}), or a proposal and its approval"
    why = f"it is no worse than the live agent by the margins, reward {policy.margin:g} and rates {policy.rate_margin:g}: {_proof(known)}"
    return _go(known, "canary" if share else "full", 1.0, why)


def _proof(known: Known) -> str:
    kpi, bet = known.tests.least_shown()
    e_value = math.exp(min(bet.highest_log_e, 700.0))
    sign = ">" if known.tests.noninferior() else "of"
    return f"{kpi.replace('_', ' ')}, the least shown: e-value {e_value:.4g} {sign} {1 / known.tests.promote_alpha:.4g} over {bet.n} pairs"


# --- said -------------------------------------------------------------------------------------------------------------------


def _go(known: Known, stage: Stage, share: float, why: str, more: Mapping[str, Any] | None = None) -> Decision:
    return Decision(act="advance", stage=stage, share=share, held=False, why=why, figures=_figures(known, more))


def _stay(known: Known, act: Act, reason: HeldFor, why: str, more: Mapping[str, Any] | None = None) -> Decision:
    figures = _figures(known, {**(more or {}), "held_for": reason})
    return Decision(act=act, stage=known.event.stage, share=known.event.share, held=bool(reason), why=why, figures=figures)


def _back(known: Known, why: str, more: Mapping[str, Any], *, cut: bool = False) -> Decision | str:
    if not known.first:
        return Decision(act="rollback", stage="rolled_back", share=0.0, held=False, why=why, figures=_figures(known, more), cut=cut)
    why = f"{why}; it is the first of its service, so there is none to go back to"
    return f"a person: {why}" if known.held_for else _stay(known, "hold", "a person", why, more)


def _figures(known: Known, more: Mapping[str, Any] | None) -> dict[str, Any]:
    counted: dict[str, Any] = {
        "seconds_in_step": known.seconds_in_step,
        "candidate_sessions_in_step": known.candidate_sessions_in_step,
        "sessions_in_shadow": known.sessions_in_shadow,
    }
    if known.event.stage in WITH_FIGURES:
        counted["tests"] = known.tests.figures(curve=False)
        counted["shadow_tests"] = known.tests.figures(shadow=True, curve=False)
    return counted | dict(more or {})


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} s"
