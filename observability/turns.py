"""What releases are decided from: turns as gateways tell them, and sessions once they are over.

A session is counted once, whatever dies meanwhile: that it is over, the figures it gave, and the tests that it went into are one
transaction. It is over when it was silent for long enough, and not before its turns have their grades, which are waited for for so long.
A turn that comes after that is of a session that is counted; it changes no figure any more.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple, get_args

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.agents import Arm
from agent_rft.contracts.releases import Policy, Release, Session, Turn
from observability.release_tables import IS_FIGURE, IS_UNSAFE, MAY_BE_LAST, WAITS, release_sessions, release_tests, release_turns
from observability.rows import add_rows
from observability.store import Store, one_of, take_turns

AT_ONCE = 20_000
"""Turns that are looked at in one go; of a session that is over, all of its turns."""
ARMS: tuple[Arm, ...] = get_args(Arm)
State = dict[str, Any]
Take = Callable[[State | None, Sequence[Session]], State]
"""The tests' state after so many sessions more; None before the first."""
_FIELDS = Turn.__struct_fields__


class Counted(NamedTuple):
    """What a release has to show."""

    candidate_in_step: int
    """Sessions of the candidate's that were counted under an event or later ones."""
    shadow: int
    """Of the candidate's that were mirrored."""
    sessions: Mapping[str, int]
    """By arm, whatever the step."""


class Tally(msgspec.Struct, frozen=True):
    """All counted sessions of a release up to one of them. They are numbered in the order in which they are counted."""

    until: int = 0
    numbers: Mapping[tuple[str, bool, int], int] = {}
    """By arm, whether it was mirrored, and the event that they were counted under."""

    def since(self, step: int) -> Counted:
        arms: defaultdict[str, int] = defaultdict(int)
        for (arm, _, _), number in self.numbers.items():
            arms[arm] += number
        of_candidate = [(shadow, within, number) for (arm, shadow, within), number in self.numbers.items() if arm == "candidate"]
        in_step = sum(number for shadow, within, number in of_candidate if not shadow and within >= step)
        return Counted(in_step, sum(number for shadow, _, number in of_candidate if shadow), dict(arms))


class Grading(msgspec.Struct, frozen=True):
    """Of a release's turns that are to be graded."""

    waiting: int
    graded: int
    without: int
    """They were dropped, or the grader gave no score."""


# --- turns ----------------------------------------------------------------------------------------------------------------


def add_turns(store: Store, turns: Sequence[Turn]) -> None:
    """One that is there already stays as it is."""
    rows = {(turn.tenant, turn.rollout_id): turn for turn in reversed(turns)}  # of one that comes twice the first counts
    if not rows:
        return
    with store.writing() as connection:
        there = _those_there(connection, rows)
        new = [msgspec.structs.asdict(turn) | {"counted": False} for key, turn in reversed(rows.items()) if key not in there]
        add_rows(connection, release_turns, new)


def _those_there(connection: sa.Connection, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Of these turns, by tenant and rollout. Who else would add some of those tenants' waits for this transaction's end."""
    found = set[tuple[str, str]]()
    for tenant in sorted({tenant for tenant, _ in keys}):  # in one order everywhere, so that two writers never wait for each other
        take_turns(connection, f"turns {tenant}")
        its = one_of(connection.dialect.name, release_turns.c.rollout_id, [rollout_id for owner, rollout_id in keys if owner == tenant])
        select = sa.select(release_turns.c.rollout_id).where(release_turns.c.tenant == tenant, its)
        found.update((tenant, rollout_id) for rollout_id in connection.scalars(select))
    return found


def to_grade(store: Store, limit: int) -> list[Turn]:
    """The newest first: where there are more than can be graded, what is old goes without."""
    waiting = _in_fair_order().limit(limit).subquery()
    mine = (release_turns.c.tenant == waiting.c.tenant, release_turns.c.rollout_id == waiting.c.rollout_id)
    return _turns(store, sa.select(release_turns).join(waiting, sa.and_(*mine)).order_by(waiting.c.place, release_turns.c.at.desc()))


def _in_fair_order() -> sa.Select[Any, Any, int]:
    """Of those that wait, each release's and arm's newest, then each one's second: who is asked much keeps no other's from being graded,
    and the live agent not its candidate's."""
    newest_first, among = release_turns.c.at.desc(), (release_turns.c.release, release_turns.c.arm)
    place = sa.func.row_number().over(partition_by=among, order_by=newest_first).label("place")
    return sa.select(release_turns.c.tenant, release_turns.c.rollout_id, place).where(WAITS).order_by(place, newest_first)


def graded(store: Store, tenant: str, rollout_id: str, reward: float | None, holdout: float | None, at: dt.datetime) -> None:
    """Without a reward: it was tried, and there will be none."""
    mine = (release_turns.c.tenant == tenant, release_turns.c.rollout_id == rollout_id, release_turns.c.graded_at.is_(None))
    with store.writing() as connection:
        connection.execute(sa.update(release_turns).where(*mine).values(reward=reward, holdout=holdout, graded_at=at))


def drop_oldest(store: Store, keep: int, at: dt.datetime) -> int:
    """All but the newest so many that wait go without a grade; how many."""
    with store.reading() as connection:
        over = connection.execute(_in_fair_order().offset(keep).limit(AT_ONCE)).all()
    dropped = 0
    for first in range(0, len(over), 500):
        mine = sa.tuple_(release_turns.c.tenant, release_turns.c.rollout_id).in_([tuple(row[:2]) for row in over[first : first + 500]])
        with store.writing() as connection:
            changed = sa.update(release_turns).where(mine, release_turns.c.graded_at.is_(None)).values(graded_at=at)
            dropped += connection.execute(changed).rowcount
    return dropped


def grading(store: Store, release: int) -> Grading:
    mine = (release_turns.c.release == release, release_turns.c.to_grade.is_(True))
    done, scored = release_turns.c.graded_at.is_not(None), release_turns.c.reward.is_not(None)
    counted = sa.select(done, scored, sa.func.count()).where(*mine).group_by(done, scored)
    with store.reading() as connection:
        told = {(bool(is_done), bool(has_score)): number for is_done, has_score, number in connection.execute(counted)}
    return Grading(waiting=told.get((False, False), 0), graded=told.get((True, True), 0), without=told.get((True, False), 0))


def newest_failed(store: Store, release: int, count: int, since: dt.datetime) -> list[bool]:
    """Of the candidate's newest turns that somebody waited for, the newest first: whether each failed."""
    mine = (release_turns.c.release == release, release_turns.c.arm == "candidate", release_turns.c.at >= since)
    select = sa.select(release_turns.c.failed).where(*mine, release_turns.c.shadow.is_(False))
    with store.reading() as connection:
        return list(connection.scalars(select.order_by(release_turns.c.at.desc()).limit(count)))


def violations(store: Store, release: int, since: dt.datetime) -> set[str]:
    """By name, in the candidate's turns since then, counted or not; and in older ones that nobody has looked at yet, since a gateway that
    could not reach the store tells of its turns whenever it can."""
    of_candidate = sa.select(release_turns.c.violations).where(release_turns.c.release == release, release_turns.c.arm == "candidate")
    unsafe = of_candidate.where(IS_UNSAFE)
    with store.reading() as connection:
        told = (connection.scalars(unsafe.where(which)).all() for which in (release_turns.c.at >= since, MAY_BE_LAST))
        return {name for rows in told for names in rows for name in names}


def _turns(store: Store, select: sa.Select[Any]) -> list[Turn]:
    with store.reading() as connection:
        return [_turn(dict(row)) for row in connection.execute(select).mappings()]


def _turn(row: Mapping[str, Any]) -> Turn:
    told: dict[str, Any] = {name: row[name] for name in _FIELDS}
    told["violations"] = tuple(told["violations"])
    return Turn(**told)


# --- sessions ---------------------------------------------------------------------------------------------------------------


def close_sessions(store: Store, release: Release, step: int, take: Take, now: dt.datetime) -> list[Session]:
    """Those that are over and were not counted yet, counted under the event `step`; in the order in which they ended."""
    silent = now - dt.timedelta(seconds=release.policy.idle_seconds)
    with store.reading() as connection:
        if not _due(connection, release, silent, 1):
            return []
    with store.writing() as connection:
        take_turns(connection, f"sessions {release.id}")
        due = _due(connection, release, silent, AT_ONCE)
        _mark(connection, release.tenant, [turn.rollout_id for turn in due if turn.at < turn.last], followed=True)
        ended = {Key(turn.shadow, turn.arm, turn.session) for turn in due if turn.at == turn.last}
        whole = _over(_open_turns(connection, release.id, ended), release.policy, now)
        known = _known_sessions(connection, release.id, whole)
        made = [(key, _session(turns, release.policy)) for key, turns in whole.items() if key not in known]
        made.sort(key=lambda one: (one[1].closed_at, one[0]))
        rows = [_session_row(release, session, step) for _, session in made]
        ids = _added(connection, rows)
        _advance(connection, release, [session for _, session in made], ids, take, now)
        _mark(connection, release.tenant, [turn.rollout_id for turns in whole.values() for turn in turns], counted=True)
    return [session for _, session in made]


def tests_of(store: Store, tenant: str, release: int) -> State | None:
    """As of the newest counted session."""
    told = tests_after(store, tenant, release, -1)
    return told and told[1]


def tests_after(store: Store, tenant: str, release: int, until: int) -> tuple[int, State] | None:
    """The newest counted session and the tests' state as of it; None where that is `until`, or none was counted."""
    mine = (release_tests.c.tenant == tenant, release_tests.c.release == release, release_tests.c.until != until)
    with store.reading() as connection:
        told = connection.execute(sa.select(release_tests.c.until, release_tests.c.state).where(*mine)).first()
    return told and (told.until, told.state)


def tally(store: Store, release: int, before: Tally | None = None) -> Tally:
    """With those that were counted since `before`."""
    before, sessions = before or Tally(), release_sessions
    kind = (sessions.c.arm, sessions.c.shadow, sessions.c.step)
    fresh = sa.select(*kind, sa.func.count(), sa.func.max(sessions.c.id)).group_by(*kind)
    with store.reading() as connection:
        rows = connection.execute(fresh.where(sessions.c.release == release, sessions.c.id > before.until)).all()
    if not rows:
        return before
    numbers = dict(before.numbers)
    for arm, shadow, step, number, _ in rows:
        numbers[arm, shadow, step] = numbers.get((arm, shadow, step), 0) + number
    return Tally(max(row[-1] for row in rows), numbers)


def owed_since(store: Store, release: Release, live_sessions: int | None, began: dt.datetime, now: dt.datetime) -> dt.datetime | None:
    """Since when the candidate has been owed a figure; None where it is owed none. It is where a session of its is over and not
    counted, where none of its newest turns got the grade that it was to get, and where so many live sessions began without one of its
    (None: no number of them says anything). Each of these is looked for from its oldest on, and no further than to the first."""
    turns, silent = release_turns, now - dt.timedelta(seconds=release.policy.idle_seconds)
    of_candidate = sa.select(turns.c.at).where(turns.c.release == release.id, turns.c.arm == "candidate").limit(1)
    oldest = of_candidate.order_by(turns.c.at)
    with store.reading() as connection:
        figures = of_candidate.where(IS_FIGURE, turns.c.at >= began).order_by(turns.c.at.desc())
        newest = connection.scalar(figures) or began
        over = connection.scalar(oldest.where(MAY_BE_LAST, turns.c.at >= began, turns.c.at <= silent, turns.c.at == _last()))
        bare = connection.scalar(oldest.where(~IS_FIGURE, turns.c.graded_at.is_not(None), turns.c.at > newest))
        begun = sa.select(turns.c.at).where(*_begun_after(release.id, newest)).order_by(turns.c.at)
        overdue = None if live_sessions is None else connection.scalar(begun.offset(max(live_sessions, 1) - 1).limit(1))
        since = [one for one in (over, bare, overdue) if one is not None]
    return max(min(since), newest) if since else None


def _begun_after(release: int, moment: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """The first turns of live sessions that had none before. Those that go on could not have been the candidate's."""
    turns, other = release_turns, release_turns.alias()
    of_session = (other.c.release == turns.c.release, other.c.session == turns.c.session, other.c.arm == "live")
    first = sa.select(other.c.rollout_id).where(*of_session).order_by(other.c.at, other.c.rollout_id).limit(1).scalar_subquery()
    return turns.c.release == release, turns.c.arm == "live", turns.c.at > moment, turns.c.rollout_id == first


class Key(NamedTuple):
    """Of a session."""

    shadow: bool
    arm: str
    session: str


def _due(connection: sa.Connection, release: Release, silent: dt.datetime, most: int) -> Sequence[Any]:
    """Turns that were silent since then, with their session's last one: either they are it, and the session is over and has its grades,
    or they were thought to be it and are not. What is neither counted nor followed is read here each second, so it must be little."""
    patience = silent - dt.timedelta(seconds=release.policy.rollback_seconds)
    return connection.execute(_due_question(), {"of": release.id, "silent": silent, "patience": patience, "most": most}).all()


@cache
def _due_question() -> sa.CompoundSelect[Any]:
    """Made once: to put it together takes longer than to answer it."""
    turns, last, other = release_turns, _last(), release_turns.alias()
    silent, patience = (sa.bindparam(name, type_=turns.c.at.type) for name in ("silent", "patience"))
    most = sa.bindparam("most", type_=sa.Integer)
    waits = sa.exists().where(*_same_session(other), other.c.to_grade.is_(True), other.c.graded_at.is_(None))
    select = sa.select(*(turns.c[name] for name in ("rollout_id", *Key._fields, "at")), last.label("last"))
    mine = select.where(turns.c.release == sa.bindparam("of"), MAY_BE_LAST, turns.c.at <= silent)
    needed = mine.where(sa.or_(turns.c.at <= patience, turns.c.at < last, ~waits)).order_by(turns.c.at).limit(most)
    each = [needed.where(turns.c.arm == arm).subquery().select() for arm in ARMS]  # in the order of their index
    return sa.union_all(*each).order_by("at").limit(most)


def _last() -> sa.ScalarSelect[dt.datetime]:
    """When the newest turn of the same session was that is not counted. A subquery with one value: it is asked of one turn after
    another, where a join would first gather all turns that go on."""
    other = release_turns.alias()
    return sa.select(other.c.at).where(*_same_session(other)).order_by(other.c.at.desc()).limit(1).scalar_subquery()


def _same_session(other: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    same = (other.c[name] == release_turns.c[name] for name in ("release", "session", "arm", "shadow"))
    return *same, other.c.counted.is_(False)


def _open_turns(connection: sa.Connection, release: int, ended: Collection[Key]) -> dict[Key, list[Turn]]:
    """Of these sessions, each with all of its turns that are not counted."""
    turns, names = release_turns, sorted({key.session for key in ended})
    found: defaultdict[Key, list[Turn]] = defaultdict(list)
    for first in range(0, len(names), 500):
        mine = (turns.c.release == release, turns.c.counted.is_(False), turns.c.session.in_(names[first : first + 500]))
        for row in connection.execute(sa.select(turns).where(*mine).order_by(turns.c.at)).mappings():
            if (key := Key(row["shadow"], row["arm"], row["session"])) in ended:
                found[key].append(_turn(dict(row)))
    return found


def _over(found: Mapping[Key, list[Turn]], policy: Policy, now: dt.datetime) -> dict[Key, list[Turn]]:
    silent = now - dt.timedelta(seconds=policy.idle_seconds)
    patience = silent - dt.timedelta(seconds=policy.rollback_seconds)

    def is_over(turns: Sequence[Turn]) -> bool:
        last, waits = turns[-1].at, any(turn.to_grade and turn.graded_at is None for turn in turns)
        return last <= silent and (not waits or last <= patience)

    return {key: turns for key, turns in found.items() if is_over(turns)}


def _known_sessions(connection: sa.Connection, release: int, among: Mapping[Key, Any]) -> set[Key]:
    columns = (release_sessions.c.shadow, release_sessions.c.arm, release_sessions.c.session)
    names = sorted({key[2] for key in among})
    found = set[Key]()
    for first in range(0, len(names), 500):
        mine = (release_sessions.c.release == release, release_sessions.c.session.in_(names[first : first + 500]))
        found.update(Key(row.shadow, row.arm, row.session) for row in connection.execute(sa.select(*columns).where(*mine)))
    return found


def _session(turns: Sequence[Turn], policy: Policy) -> Session:
    rewards = [turn.reward for turn in turns if turn.reward is not None]
    holdouts = [turn.holdout for turn in turns if turn.holdout is not None]
    return Session(
        arm=turns[0].arm,
        session=turns[0].session,
        shadow=turns[0].shadow,
        closed_at=turns[-1].at,
        turns=len(turns),
        reward=fmean(rewards) if rewards else None,
        holdout=fmean(holdouts) if holdouts else None,
        errors=float(any(turn.failed for turn in turns)),
        tool_failures=float(any(turn.tool_failures for turn in turns)),
        slow=float(any(turn.seconds > policy.slow_seconds for turn in turns)),
        unsafe=float(any(turn.violations for turn in turns)),
    )


def _added(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """Their numbers, in the same order."""
    if not rows:
        return []
    insert = sa.insert(release_sessions).returning(release_sessions.c.id, sort_by_parameter_order=True)
    return connection.execute(insert, rows).scalars().all()


def _session_row(release: Release, session: Session, step: int) -> dict[str, Any]:
    return msgspec.structs.asdict(session) | {"tenant": release.tenant, "release": release.id, "step": step}


def _advance(
    connection: sa.Connection,
    release: Release,
    sessions: Sequence[Session],
    ids: Sequence[int],
    take: Take,
    now: dt.datetime,
) -> None:
    if not sessions:
        return
    mine = (release_tests.c.tenant == release.tenant, release_tests.c.release == release.id)
    before = connection.scalar(sa.select(release_tests.c.state).where(*mine))
    values = {"until": ids[-1], "state": take(before, sessions), "at": now}
    if before is None:
        connection.execute(sa.insert(release_tests), [values | {"tenant": release.tenant, "release": release.id}])
    else:
        connection.execute(sa.update(release_tests).where(*mine).values(**values))


def _mark(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str], **as_what: bool) -> None:
    for first in range(0, len(rollout_ids), 500):
        mine = (release_turns.c.tenant == tenant, release_turns.c.rollout_id.in_(rollout_ids[first : first + 500]))
        connection.execute(sa.update(release_turns).where(*mine).values(**as_what))
