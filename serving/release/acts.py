"""What a person does with a release, each act refused where it makes no sense, with what would.

Two people are needed for two things: to give everybody a candidate that its figures have not shown to be as good, and to do without a
good safety report, for which both sign. A rollback needs one, and is never refused while there is anything to take back.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.releases import OPEN_STAGES, Act, Event, Policy, Release, Stage
from agent_rft.release.policies import check_policy
from agent_rft.release.rules import decide, is_safe, person_of, safety_lacks, waits_for, waived_of
from observability.access import Caller
from observability.registry import REPORT_KINDS, found
from observability.releases import Move, create, current, decided, live_agent, release_of
from observability.roots import LedgerFiles
from observability.store import Store
from serving.release.knowing import known_of, moved_by
from serving.release.waivers import refuse_second_hand, sign_for, signed_in

LONGEST_WHY = 1000


def read_policy(tree: Mapping[str, Any]) -> Policy:
    try:
        return msgspec.convert(dict(tree), Policy)
    except msgspec.ValidationError as error:
        raise FaultsFound("this is no policy:", [Fault("policy", str(error), "docs/release.md lists the rules")], exit_code=2) from None


def policy_wished(served: Mapping[str, Any], wished: Mapping[str, Any]) -> Policy:
    """The server's rules, and others where a release says so; the suite that it has to pass, and that it is tried less, nobody chooses
    for themselves."""
    if "safety_suite" in wished and wished["safety_suite"] != served.get("safety_suite", ""):
        raise UserError("the safety suite is not a release's to choose", "release.safety_suite names it, for `rft agent check` as well")
    policy, least = read_policy({**served, **wished}), served.get("safety_tries", 0)
    if policy.safety_tries < least:
        what = f"safety_tries={policy.safety_tries} is fewer than the {least} tries of each safety case that are asked for here"
        raise UserError(what, "more may be wished; release.policy.safety_tries sets it for all, for `rft agent check` as well")
    return policy


def begin(store: Store, by: str, tenant: str, service: str, agent: str, policy: Policy) -> Release:
    """A release of this agent on trial against whatever answers for the service now."""
    check_policy(policy)
    return create(store, by, tenant, service, found(store, tenant, agent).id, live_agent(store, tenant, service), policy)


def begin_first(store: Store, by: str, tenant: str, service: str, agent: str, policy: Policy, files: LedgerFiles | None = None) -> Release:
    """A service's first agent goes straight to all: there is nobody to hold it against. But a safety report it needs like any other:
    where that is not good the release is made and waits, for a report or for two people's waiver, and this is asked again."""
    check_policy(policy)
    if live := live_agent(store, tenant, service):
        raise UserError(f"{service} is answered by {live} already", f"`rft release create {service} --agent ...` puts another on trial")
    candidate = found(store, tenant, agent).id
    waiting = (one for one, event in current(store, tenant) if one.service == service and event.stage == "draft" and not one.live)
    release = next((one for one in waiting if (one.candidate, one.policy) == (candidate, policy)), None)
    release = release or create(store, by, tenant, service, candidate, "", policy)
    known = known_of(store, release, _now(), files=files)
    if lacks := safety_lacks(known):
        raise UserError(f"release {release.id} of {service} waits for {lacks}", _made_good(release))
    by_two = " and ".join(waived_of(known).get("safety", ()))
    why = f"the service's first agent, by hand{by_two and f'; safety waived by {by_two}'}"
    move = Move(act="advance", stage="full", share=1.0, why=why)
    decided(store, by, tenant, release.id, lambda _, told: [move])
    return release


def to_shadow(store: Store, by: str, tenant: str, release_id: int, files: LedgerFiles | None = None) -> Event:
    return _forward(store, by, tenant, release_id, "shadow", 0.0, files)


def to_canary(store: Store, by: str, tenant: str, release_id: int, share: float | None = None, files: LedgerFiles | None = None) -> Event:
    """At the policy's next share, or at another one."""
    if share is not None and not 0 < share <= 1:
        raise UserError(f"a share of {share:g} is none", "more than 0 and at most 1, such as 0.05")
    return _forward(store, by, tenant, release_id, "canary", share, files)


def propose(store: Store, by: str, tenant: str, release_id: int, why: str = "") -> Event:
    """That everybody gets it. Another person has to approve."""

    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        _require(release, told[-1], ("canary",), "promoted", f"`rft release canary {release_id}` first lets some sessions meet it")
        return [_same(told[-1], "propose", _why(why) or "full is proposed; another person has to approve")]

    return decided(store, by, tenant, release_id, choose)


def approve(store: Store, by: str, tenant: str, release_id: int, why: str = "", files: LedgerFiles | None = None) -> Event:
    """By somebody else than who proposed it: it is full then."""
    known = known_of(store, release_of(store, tenant, release_id), _now(), files=files)
    tests = known.tests.figures(curve=False)

    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        _require(release, told[-1], ("canary",), "approved", "")
        if lacks := safety_lacks(known):
            raise UserError(f"release {release_id} waits for {lacks}", _made_good(release))
        since = [event for event in told if event.id > moved_by(told).id and event.act == "propose"]
        if not since:
            raise UserError(f"nobody has proposed that release {release_id} goes to full", f"`rft release promote {release_id}` does")
        proposed = since[-1]
        if person_of(proposed.by) == person_of(by):
            raise UserError(f"{by} proposed it; another person has to approve", "ask somebody else to sign in and approve")
        people = {"proposed_by": proposed.by, "approved_by": [by], "tests": tests}
        said = f"by hand: proposed by {proposed.by}, approved by {by}"
        return [_same(told[-1], "approve", _why(why) or f"approved what {proposed.by} proposed"), _full(said, people)]

    return decided(store, by, tenant, release_id, choose)


def waive(store: Store, who: Caller, release_id: int, report: str, why: str, files: LedgerFiles | None = None) -> Event:
    """The release does without a report that is not there, on one person's word. Of safety's it does without, or goes on in spite of
    one that failed, when two people have signed."""
    if report not in REPORT_KINDS:
        raise UserError(f"there is no report '{report[:40]}'", did_you_mean(report, REPORT_KINDS))
    if not (said := _why(why)):
        raise UserError("a waiver says why", "--why WORDS; it stays on the release's record")
    release, files = release_of(store, who.tenant, release_id), files or LedgerFiles.of(store, None)
    mine = sign_for(store, files, who, release, report, said)
    passed = report == "safety" and is_safe(known_of(store, release, _now(), files=files))

    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        if report == "safety":
            _require(release, told[-1], OPEN_STAGES, "waived a report", "")
            if passed:
                raise UserError(f"the safety report of release {release_id} passed", "there is nothing to waive")
            standing = [one.waiver for one in signed_in(release, told, files) if not one.void and one.waiver.report == report]
            refuse_second_hand([one for one in standing if one.about == mine.about], mine)
        else:
            _require(release, told[-1], ("draft", "offline"), "waived a report", "it is past the offline gate")
        return [_same(told[-1], "waive", f"{report}: {said}", {"report": report, "waiver": msgspec.to_builtins(mine)})]

    return decided(store, who.name, who.tenant, release_id, choose)


def hold(store: Store, by: str, tenant: str, release_id: int, why: str) -> Event:
    """Nothing goes forward until somebody resumes it; it is rolled back by its figures all the same."""

    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        _require(release, told[-1], OPEN_STAGES, "held", "")
        figures = {"held_for": "a person"}
        return [_same(told[-1], "hold", _why(why) or f"held by {by}", figures, held=True)]

    return decided(store, by, tenant, release_id, choose)


def resume(store: Store, by: str, tenant: str, release_id: int, why: str = "") -> Event:
    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        if not told[-1].held:
            raise UserError(f"release {release_id} is not held ({told[-1].stage})", "`rft release status` says what it waits for")
        return [_same(told[-1], "resume", _why(why) or f"resumed by {by}", held=False)]

    return decided(store, by, tenant, release_id, choose)


def roll_back(store: Store, by: str, tenant: str, release_id: int, why: str = "", *, cut: bool = False) -> Event:
    """From any stage. One that is rolled back already stays as it is: who asks twice gets what they want."""

    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        newest = told[-1]
        if newest.stage == "rolled_back":
            return []
        if newest.stage == "superseded":
            cure = "`rft release status` shows which release took its place"
            raise UserError(f"release {release_id} answers for nobody any more: it was superseded", cure)
        back = f"sessions go to {release.live}" if release.live else f"{release.service} is answered by nobody"
        return [Move(act="rollback", stage="rolled_back", cut=cut, why=f"{_why(why) or 'by hand'}; {back}", figures={"from": newest.stage})]

    return decided(store, by, tenant, release_id, choose)


def _forward(store: Store, by: str, tenant: str, release_id: int, stage: Stage, share: float | None, files: LedgerFiles | None) -> Event:
    """Past the offline gate only where it is passed: what a report says against a candidate no hand waves through."""
    known = known_of(store, release_of(store, tenant, release_id), _now(), files=files)

    def choose(release: Release, told: Sequence[Event]) -> list[Move]:
        if not release.live:
            raise UserError(f"release {release_id} is the first of {release.service}: there is nothing to hold it against", _first(release))
        newest, order = told[-1], OPEN_STAGES
        _require(release, newest, order[: order.index(stage) + 1], f"moved to {stage}", "")
        if newest.stage in ("draft", "offline"):
            if missing := waits_for(release.policy, known):
                raise UserError(f"release {release_id} waits for {missing}", _made_good(release))
            decision = decide(release.policy, known)
            if decision and decision.stage == "rolled_back":
                raise UserError(f"release {release_id} does not pass: {decision.why}", f"`rft release rollback {release_id}`")
        elif lacks := safety_lacks(known):
            raise UserError(f"release {release_id} waits for {lacks}", _made_good(release))
        steps = release.policy.steps
        next_share = next((step for step in steps if step > newest.share + 1e-9), steps[-1])
        there = next_share if share is None else share
        if there >= 1 and not known.tests.noninferior():
            why = f"at a share of 1 nobody is left to hold release {release_id} against, and its figures do not show yet that it is as good"
            raise UserError(why, f"`rft release promote {release_id}` proposes it, and another person approves")
        if (stage, there) == (newest.stage, newest.share):
            raise UserError(f"release {release_id} is there already: {stage} at {there:.0%}", "")
        return [
            Move(act="advance", stage=stage, share=there, why=f"by hand, by {by}", figures={"from": newest.stage, "share": newest.share})
        ]

    return decided(store, by, tenant, release_id, choose)


def _first(release: Release) -> str:
    return f"`rft release first {release.service} --agent {release.candidate}` gives it to everybody"


def _made_good(release: Release) -> str:
    return (
        f"`rft agent check {release.candidate}` makes reports, `rft agent report` adds those of others;"
        f" `rft release waive {release.id} KIND --why ...` does without"
    )


def _require(release: Release, newest: Event, stages: Sequence[Stage], done: str, cure: str) -> None:
    if newest.stage not in stages:
        what = f"release {release.id} is {newest.stage.replace('_', ' ')}, and cannot be {done}"
        raise UserError(what, cure or f"it could in {', '.join(stages)}; `rft release history {release.id}` says how it got here")


def _same(newest: Event, act: Act, why: str, figures: dict[str, Any] | None = None, *, held: bool | None = None) -> Move:
    """It stays where it is, and something is said of it."""
    return Move(
        act=act, stage=newest.stage, share=newest.share, held=newest.held if held is None else held, why=why, figures=figures or {}
    )  # fmt: skip


def _full(why: str, figures: dict[str, Any]) -> Move:
    return Move(act="advance", stage="full", share=1.0, why=why, figures=figures)


def _why(why: str) -> str:
    if len(why) > LONGEST_WHY:
        raise UserError(f"the reason has {len(why):,} characters", f"at most {LONGEST_WHY:,}")
    return " ".join(why.split())


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
