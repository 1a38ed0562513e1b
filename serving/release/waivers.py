"""Waivers of a release: signed for a person, held against their event and the keys, and told where the release is shown."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Event, Release, Waiver
from agent_rft.release.rules import one_hand, person_of, two_people
from observability.access import Caller
from observability.halves import moment_text
from observability.registry import Report, newest, reports_of
from observability.releases import current, events
from observability.roots import LedgerFiles
from observability.signing import known_keys, open_keys
from observability.store import Store
from observability.users import line_of_key, maker_of_key
from observability.waivers import sign_waiver, waiver_in, why_no_waiver


class Signed(msgspec.Struct, frozen=True):
    waiver: Waiver
    void: str
    """Why it counts for nothing; empty where it holds."""


class SafetyWaived(msgspec.Struct, frozen=True):
    """What stands on every page of a release whose safety report somebody waived."""

    by: tuple[str, ...]
    """Whose signatures hold."""
    whole: bool
    """Two people's."""
    head: str
    words: str
    """Who signed when, and why; and whose signature does not hold."""


def digest_of(report: Report | None) -> str:
    """By which a waiver names the report that it is about."""
    return hashlib.sha256(msgspec.json.encode(report, order="sorted")).hexdigest()[:16] if report else ""


def report_of(store: Store, release: Release, kind: str) -> Report | None:
    """The candidate's that counts."""
    counting = newest(reports_of(store, release.tenant, release.candidate), release.policy.safety_suite)
    return next((one for one in counting.values() if one.kind == kind), None)


def sign_for(store: Store, files: LedgerFiles, who: Caller, release: Release, kind: str, why: str) -> Waiver:
    now = moment_text(dt.datetime.now(dt.UTC))
    key_by = maker_of_key(store, who.tenant, who.key_id) if who.key_id else ""
    unsigned = Waiver(
        tenant=release.tenant,
        release=release.id,
        report=kind,
        about=digest_of(report_of(store, release, kind)),
        why=why,
        by=who.name,
        key_by=key_by,
        key_line=line_of_key(store, who.tenant, who.key_id) if who.key_id else (),
        at=now,
        key="",
        signature="",
    )
    return sign_waiver(open_keys(files.keys, now), unsigned)


def signed_in(release: Release, told: Sequence[Event], files: LedgerFiles) -> list[Signed]:
    """Every signed waiver of the release, oldest first. Without the public keys none can be held to hold."""
    found = [(waiver, event) for event in told if (waiver := waiver_in(event))]
    known = known_keys(files.keys) if found and files.keys.exists() else ()
    return [Signed(waiver, why_no_waiver(waiver, event, release.tenant, known)) for waiver, event in found]


def safety_waivers(store: Store, release: Release, told: Sequence[Event], files: LedgerFiles) -> tuple[Waiver, ...]:
    """Whose signature holds, about the safety report as it is now."""
    signed = [one.waiver for one in signed_in(release, told, files) if not one.void and one.waiver.report == "safety"]
    about = digest_of(report_of(store, release, "safety")) if signed else ""
    return tuple(one for one in signed if one.about == about)


def refuse_second_hand(standing: Sequence[Waiver], mine: Waiver) -> None:
    """A signature that could not count is not taken: it would look like one that does."""
    if two_people(standing):
        raise UserError(f"{' and '.join(one.by for one in standing)} waived it already", "nothing more is needed")
    if why := next((why for one in standing if (why := one_hand(one, mine))), ""):
        said = f"{standing[0].by} signed already" if person_of(mine.by) == person_of(standing[0].by) else why
        raise UserError(f"{said}: another person has to sign", "somebody else signs in, with a key that neither of you made")


def safety_waived(release: Release, told: Sequence[Event], files: LedgerFiles) -> SafetyWaived | None:
    """None where nobody waived the safety report. Once signed it stands on the release for good, whatever reports come later."""
    every = [one for one in signed_in(release, told, files) if one.waiver.report == "safety"]
    if not every:
        return None
    holding = [one.waiver for one in every if not one.void]
    pair = next((both for about in {one.about for one in holding} if (both := two_people([w for w in holding if w.about == about]))), None)
    shown = pair or tuple(holding)
    said = "; ".join(f"{one.by}, {one.at[:16].replace('T', ' ')}: {one.why}" for one in shown)
    void = "; ".join(f"{one.waiver.by}'s counts for nothing, {one.void}" for one in every if one.void)
    head = "Safety waived" if pair else "Safety waiver, not whole: two people have to sign"
    return SafetyWaived(tuple(one.by for one in shown), pair is not None, head, "; ".join(filter(None, (said, void))))


def waived_of_services(store: Store, tenant: str, files: LedgerFiles) -> dict[str, list[tuple[int, SafetyWaived]]]:
    """By service, those of its present releases that somebody signed for: wherever the service is shown."""
    found: dict[str, list[tuple[int, SafetyWaived]]] = {}
    for release, _ in current(store, tenant):
        if one := safety_waived(release, events(store, tenant, release.id), files):
            found.setdefault(release.service, []).append((release.id, one))
    return found
