"""Gathers all that is known of a release at one moment, which its rules decide on.

Releases are looked at each second, and have thousands of sessions: who looks again and again keeps a Memory, and reads what came since.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import OPEN_STAGES, Event, Release, Session, Waiver
from agent_rft.release.rules import CHANCE, ON_TRIAL, Known, held_for
from agent_rft.release.tests import Tests, new_tests
from observability import turns
from observability.registry import newest, reports_of
from observability.releases import events
from observability.roots import LedgerFiles
from observability.store import Store
from serving.release.waivers import safety_waivers

LATE = dt.timedelta(minutes=10)
"""By which a gateway may be late with a turn."""
LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
Reports = Mapping[str, Mapping[str, Any]]


class Memory:
    """What was read of a release before. It is never wrong, only behind: a fresh one knows the same after it has read everything once."""

    def __init__(self) -> None:
        self._told: list[Event] = []
        self._tally = turns.Tally()
        self._violations = set[str]()
        self._read_until = LONG_AGO
        self._tests: tuple[int, Tests] | None = None

    def events(self, store: Store, release: Release, newest: int | None = None) -> list[Event]:
        """`newest`: the number of the newest, where the caller knows it."""
        if not self._told or self._told[-1].id != newest:
            self._told = events(store, release.tenant, release.id)
        return self._told

    def counted(self, store: Store, release: Release, step: int) -> turns.Counted:
        self._tally = turns.tally(store, release.id, self._tally)
        return self._tally.since(step)

    def violations(self, store: Store, release: Release, now: dt.datetime) -> set[str]:
        found = turns.violations(store, release.id, self._read_until)
        self._violations = self._violations | found  # another set: a look that hung may still read the old one
        self._read_until = now - LATE
        return self._violations

    def tests(self, store: Store, release: Release) -> Tests:
        known = self._tests[0] if self._tests else -1
        if (fresh := turns.tests_after(store, release.tenant, release.id, known)) is not None:
            self._tests = (fresh[0], tests_in(fresh[1], release))
        return self._tests[1] if self._tests else new_tests(release.policy)


def known_of(
    store: Store,
    release: Release,
    now: dt.datetime,
    memory: Memory | None = None,
    *,
    newest_event: int | None = None,
    files: LedgerFiles | None = None,
) -> Known:
    """`newest_event`: of the release, where the caller knows it. `files`: whose keys sign waivers; the store's own where nothing else
    was set."""
    memory = memory or Memory()
    told = memory.events(store, release, newest_event)
    stage, moved, resumed = told[-1].stage, moved_by(told), resumed_by(told)
    counted = memory.counted(store, release, moved.id)
    owed = turns.owed_since(store, release, _due_after(told[-1]), moved.at, now) if stage in ON_TRIAL else None
    # nobody waits for an answer in the shadow
    failed = turns.newest_failed(store, release.id, release.policy.storm[1], moved.at) if stage in ("canary", "full") else []
    proposed, approved = _wanted_by(told, moved)
    offline = _offline(store, release, told, files or LedgerFiles.of(store, None)) if stage in OPEN_STAGES else _Offline()
    return Known(
        event=told[-1],
        tests=memory.tests(store, release),
        seconds_in_step=(now - resumed.at).total_seconds(),
        held_for=held_for(told),
        candidate_sessions_in_step=counted.candidate_in_step,
        sessions_in_shadow=counted.shadow,
        traffic=owed is not None,
        seconds_since_figures=(now - owed).total_seconds() if owed else None,
        last_turns_failed=tuple(reversed(failed)),
        violations=tuple(sorted(memory.violations(store, release, now))),
        candidate_reports=offline.candidate,
        live_reports=offline.live,
        waived=waived_by(told),
        safety_waivers=offline.waivers,
        safety_suite=release.policy.safety_suite,
        safety_tries=release.policy.safety_tries,
        unread=offline.unread,
        proposed_by=proposed,
        approved_by=approved,
        first=not release.live,
    )


def take_sessions(release: Release, state: dict[str, Any] | None, sessions: Sequence[Session]) -> dict[str, Any]:
    """The tests' state, as it is stored, after these sessions."""
    tests = tests_in(state, release)
    for session in sessions:
        tests.take(session)
    return msgspec.to_builtins(tests)


def tests_in(state: dict[str, Any] | None, release: Release) -> Tests:
    return new_tests(release.policy) if state is None else msgspec.convert(state, Tests)


def moved_by(told: Sequence[Event]) -> Event:
    """The event with which it came to where it is."""
    step = told[-1]
    for event in reversed(told):
        if (event.stage, event.share) != (step.stage, step.share):
            break
        step = event
    return step


def resumed_by(told: Sequence[Event]) -> Event:
    """The newest that moved it, or let it go on."""
    moved = moved_by(told)
    return next((event for event in reversed(told) if event.act == "resume" and event.id > moved.id), moved)


def waived_by(told: Sequence[Event]) -> Mapping[str, tuple[str, ...]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for event in told:
        if event.act == "waive":
            found[str(event.figures.get("report"))].append(event.by)
    return {kind: tuple(dict.fromkeys(names)) for kind, names in found.items()}


def _wanted_by(told: Sequence[Event], moved: Event) -> tuple[str, tuple[str, ...]]:
    """Who proposed full since it last moved, and who approved that."""
    since = [event for event in told if event.id > moved.id]
    proposed = next((event for event in reversed(since) if event.act == "propose"), None)
    if proposed is None:
        return "", ()
    return proposed.by, tuple(event.by for event in since if event.act == "approve" and event.id > proposed.id)


class _Offline(msgspec.Struct, frozen=True):
    """What is known of the agents from before anybody met the candidate, or why it is not."""

    candidate: Reports = {}
    live: Reports = {}
    waivers: tuple[Waiver, ...] = ()
    unread: str = ""


def _offline(store: Store, release: Release, told: Sequence[Event], files: LedgerFiles) -> _Offline:
    """A report that was changed lets nothing go forward. What speaks against the candidate is looked at all the same."""
    try:
        candidate, live = (_reports(store, release, agent) for agent in (release.candidate, release.live))
        return _Offline(candidate, live, safety_waivers(store, release, told, files))
    except UserError as error:
        return _Offline(unread="; ".join(filter(None, (error.what, error.cure))))


def _reports(store: Store, release: Release, agent: str) -> dict[str, dict[str, Any]]:
    made = newest(reports_of(store, release.tenant, agent), release.policy.safety_suite) if agent else {}
    return {kind: {**one.figures, "passed": one.passed} for kind, one in made.items()}


def _due_after(event: Event) -> int | None:
    """Live sessions, after so many of which the candidate is owed one; None where all sessions are its. A mirrored one owes the
    candidate's of the same run."""
    share = 0.5 if event.stage == "shadow" else event.share
    return math.ceil(math.log(CHANCE) / math.log1p(-share)) if 0 < share < 1 else None
