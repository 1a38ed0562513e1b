"""What releases are decided from: turns as gateways tell them, and sessions once they are over.

A session is counted once, whatever dies meanwhile: that it is over, the figures it gave, and the tests that it went into are one
transaction. It is over when it was silent for long enough, and not before its turns have their grades, which are waited for for so long.
A turn that comes after that is of a session that is counted; it changes no figure any more.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from agent_rft.contracts.releases import Policy, Release, Session, Turn
from observability.release_tables import release_sessions, release_tests, release_turns
from observability.store import Store, take_turns

AT_ONCE = 20_000
"""Turns that are looked at in one go."""
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


class Grading(msgspec.Struct, frozen=True):
    """Of a release's turns that are to be graded."""

    waiting: int
    graded: int
    without: int
    """They were dropped, or the grader gave no score."""


# --- turns ----------------------------------------------------------------------------------------------------------------


def add_turns(store: Store, turns: Sequence[Turn]) -> None:
    """One that is there already stays as it is."""
    rows = [msgspec.structs.asdict(turn) | {"violations": list(turn.violations), "counted": False} for turn in turns]
    if not rows:
        return
    with store.writing() as connection:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(release_turns).on_conflict_do_nothing(), rows)


def to_grade(store: Store, limit: int) -> list[Turn]:
    """The newest first: where there are more than can be graded, what is old goes without."""
    waiting = _in_fair_order().limit(limit).subquery()
    mine = (release_turns.c.tenant == waiting.c.tenant, release_turns.c.rollout_id == waiting.c.rollout_id)
    return _turns(store, sa.select(release_turns).join(waiting, sa.and_(*mine)).order_by(waiting.c.place, release_turns.c.at.desc()))


def _in_fair_order() -> sa.Select[Any, Any, int]:
    """Of those that wait, each release's and arm's newest, then each one's second: who is asked much keeps no other's from being graded,
    and the live agent not its candidate's."""
    waiting = (release_turns.c.to_grade.is_(True), release_turns.c.graded_at.is_(None))
    newest_first, among = release_turns.c.at.desc(), (release_turns.c.release, release_turns.c.arm)
    place = sa.func.row_number().over(partition_by=among, order_by=newest_first).label("place")
    return sa.select(release_turns.c.tenant, release_turns.c.rollout_id, place).where(*waiting).order_by(place, newest_first)


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
    """By name, in the candidate's turns, counted or not."""
    mine = (release_turns.c.release == release, release_turns.c.arm == "candidate", release_turns.c.at >= since)
    some = sa.cast(release_turns.c.violations, sa.Text) != "[]"
    with store.reading() as connection:
        return {name for names in connection.scalars(sa.select(release_turns.c.violations).where(*mine, some)) for name in names}


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
    if not _anything_open(store, release.id, silent):
        return []
    with store.writing() as connection:
        take_turns(connection, f"sessions {release.id}")
        whole = _over(_open_turns(connection, release.id, silent), release.policy, now)
        if not whole:
            return []
        known = _known_sessions(connection, release.id, whole)
        fresh = [(key, turns) for key, turns in whole.items() if key not in known]
        made = [(key, _session(turns, release.policy)) for key, turns in fresh]
        made.sort(key=lambda one: (one[1].closed_at, one[0]))
        rows = [_session_row(release, session, step) for _, session in made]
        ids = _added(connection, rows)
        _advance(connection, release, [session for _, session in made], ids, take, now)
        _mark(connection, release.tenant, [turn.rollout_id for turns in whole.values() for turn in turns])
    return [session for _, session in made]


def tests_of(store: Store, tenant: str, release: int) -> State | None:
    """As of the newest counted session."""
    mine = (release_tests.c.tenant == tenant, release_tests.c.release == release)
    with store.reading() as connection:
        return connection.scalar(sa.select(release_tests.c.state).where(*mine))


def counted(store: Store, release: int, step: int) -> Counted:
    grouped = sa.select(release_sessions.c.arm, release_sessions.c.shadow, release_sessions.c.step >= step, sa.func.count())
    told = grouped.where(release_sessions.c.release == release).group_by(*list(grouped.selected_columns)[:3])
    with store.reading() as connection:
        rows = connection.execute(told).all()
    arms: defaultdict[str, int] = defaultdict(int)
    for arm, _, _, number in rows:
        arms[arm] += number
    in_step = sum(number for arm, shadow, within, number in rows if arm == "candidate" and not shadow and within)
    return Counted(in_step, sum(number for arm, shadow, _, number in rows if arm == "candidate" and shadow), dict(arms))


def owed_since(store: Store, release: Release, live_sessions: int, began: dt.datetime, now: dt.datetime) -> dt.datetime | None:
    """Since when the candidate has been owed a figure; None where it is owed none. It is where a session of its is over and not
    counted, where none of its newest turns got the grade that it was to get, and where so many live sessions began without one of its."""
    turns, silent = release_turns, now - dt.timedelta(seconds=release.policy.idle_seconds)
    candidate = (turns.c.release == release.id, turns.c.arm == "candidate", turns.c.at >= began)
    is_figure = sa.or_(turns.c.to_grade.is_(False), turns.c.reward.is_not(None))
    with store.reading() as connection:
        newest = connection.scalar(sa.select(sa.func.max(turns.c.at)).where(*candidate, is_figure)) or began
        last = sa.func.max(turns.c.at).label("last")
        ended = sa.select(last).where(*candidate, turns.c.counted.is_(False)).group_by(turns.c.shadow, turns.c.session).subquery()
        over = connection.scalar(sa.select(sa.func.min(ended.c.last)).where(ended.c.last <= silent))
        bare = sa.select(sa.func.min(turns.c.at)).where(*candidate, ~is_figure, turns.c.graded_at.is_not(None), turns.c.at > newest)
        first = sa.func.min(turns.c.at).label("first")
        live = sa.select(first).where(*_begun_after(release.id, newest)).group_by(turns.c.session)
        overdue = connection.scalar(live.order_by(first).offset(max(live_sessions, 1) - 1).limit(1))
        since = [one for one in (over, connection.scalar(bare), overdue) if one is not None]
    return max(min(since), newest) if since else None


def _begun_after(release: int, moment: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Turns of live sessions that had none before. Those that go on could not have been the candidate's."""
    before = release_turns.alias()
    earlier = (before.c.release == release, before.c.counted.in_((True, False)), before.c.session == release_turns.c.session)
    known = sa.exists().where(*earlier, before.c.arm == "live", before.c.at <= moment)
    return release_turns.c.release == release, release_turns.c.arm == "live", release_turns.c.at > moment, ~known


def _anything_open(store: Store, release: int, silent: dt.datetime) -> bool:
    mine = (release_turns.c.release == release, release_turns.c.counted.is_(False), release_turns.c.at <= silent)
    with store.reading() as connection:
        return connection.scalar(sa.select(release_turns.c.release).where(*mine).limit(1)) is not None


Key = tuple[bool, str, str]
"""Shadow, arm, session."""


def _open_turns(connection: sa.Connection, release: int, silent: dt.datetime) -> dict[Key, list[Turn]]:
    """Of sessions that were silent since then: those of all that go on would be read each second, tens of thousands of them."""
    turns, later = release_turns, release_turns.alias()
    same = (getattr(later.c, name) == getattr(turns.c, name) for name in ("release", "session", "arm", "shadow"))
    goes_on = sa.exists().where(*same, later.c.counted.is_(False), later.c.at > silent)
    mine = (turns.c.release == release, turns.c.counted.is_(False), turns.c.at <= silent, ~goes_on)
    select = sa.select(turns).where(*mine).order_by(turns.c.at).limit(AT_ONCE)
    found: defaultdict[Key, list[Turn]] = defaultdict(list)
    for row in connection.execute(select).mappings():
        turn = _turn(dict(row))
        found[turn.shadow, turn.arm, turn.session].append(turn)
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
        found.update((row.shadow, row.arm, row.session) for row in connection.execute(sa.select(*columns).where(*mine)))
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


def _mark(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> None:
    for first in range(0, len(rollout_ids), 500):
        mine = (release_turns.c.tenant == tenant, release_turns.c.rollout_id.in_(rollout_ids[first : first + 500]))
        connection.execute(sa.update(release_turns).where(*mine).values(counted=True))
