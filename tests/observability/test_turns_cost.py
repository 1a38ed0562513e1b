"""What a release is asked each second costs the same however many turns and sessions it ever had, and answers as it did."""

from __future__ import annotations

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from agent_rft.contracts.releases import Policy, Release, Session, Turn
from observability import turns
from observability.release_tables import release_sessions, release_tests, release_turns
from observability.store import Store

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
BEGAN = NOW - dt.timedelta(days=1)
SECONDS = dt.timedelta(seconds=1)
RELEASE = Release(
    id=7, tenant="acme", service="desk", candidate="b", live="a", by="ann", at=BEGAN, policy=Policy(idle_seconds=4, rollback_seconds=6)
)


@pytest.fixture
def store(release_store: Store) -> Store:
    return release_store


def turn(number: int, session: str, at: float, **told: Any) -> Turn:
    """`at`: seconds before NOW."""
    named = {"tenant": "acme", "release": 7, "rollout_id": f"r{number}", "session": session, "at": NOW - at * SECONDS, "arm": "candidate"}
    return Turn(**{**named, "shadow": False, "seconds": 1.0, "failed": False, "tool_calls": 0, "tool_failures": 0, **told})


def remember(state: dict[str, Any] | None, sessions: Any) -> dict[str, Any]:
    return {"seen": [*(state or {"seen": []})["seen"], *(one.session for one in sessions)]}


def closed(store: Store, at: dt.datetime = NOW) -> list[Session]:
    return turns.close_sessions(store, RELEASE, 1, remember, at)


# --- by which index -----------------------------------------------------------------------------------------------------------

COUNTED, GO_ON = 5_000, 300


@pytest.fixture
def long_live(store: Store) -> Store:
    """A release with many turns that are counted, and a few sessions that go on for long."""
    past = [turn(number, f"s{number}", 5 * COUNTED - number, arm=("live", "candidate")[number % 2]) for number in range(COUNTED)]
    going = [turn(COUNTED + number, f"g{number % 30}", GO_ON - number) for number in range(GO_ON)]
    waiting = [turn(2 * COUNTED + number, f"w{number}", 50, to_grade=True) for number in range(20)]
    turns.add_turns(store, [*past, *going, *waiting])
    with store.writing() as connection:
        connection.execute(sa.update(release_turns).where(release_turns.c.at < NOW - GO_ON * SECONDS).values(counted=True))
        if store.engine.dialect.name == "postgresql":  # which does so by itself
            connection.execute(sa.text("ANALYZE release_turns"))
    return store


def plans_of(store: Store, ask: Callable[[], object]) -> str:
    """Of each question that is asked of turns meanwhile."""
    said: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "release_turns" in statement:
            said.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", hear)
    try:
        ask()
    finally:
        event.remove(store.engine, "before_cursor_execute", hear)
    assert said
    explain = "EXPLAIN QUERY PLAN " if store.engine.dialect.name == "sqlite" else "EXPLAIN "
    with store.reading() as connection:
        return "\n".join(str(row[-1]) for one in said for row in connection.exec_driver_sql(explain + one[0], one[1]))


ASKED: dict[str, tuple[Callable[[Store], object], set[str]]] = {
    "what is owed": (lambda store: turns.owed_since(store, RELEASE, 5, BEGAN, NOW), {"figures", "last", "release_arm_at"}),
    "violations": (lambda store: turns.violations(store, 7, BEGAN), {"unsafe"}),
    "a storm": (lambda store: turns.newest_failed(store, 7, 12, BEGAN), {"release_arm_at"}),
    "what is to be graded": (lambda store: turns.to_grade(store, 32), {"waiting"}),
    "what is too much to grade": (lambda store: turns.drop_oldest(store, 2000, NOW), {"waiting"}),
    "which sessions are over": (lambda store: turns.close_sessions(store, RELEASE, 1, remember, BEGAN), {"last"}),
}


def test_the_migration_makes_the_indexes_of_those_turns_that_are_asked_for():
    """What no comparison of columns tells."""
    made = import_module("migrations.versions.0008_open_turns").partial()
    asked = {index.name: index.dialect_options["sqlite"]["where"] for index in release_turns.indexes}
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        said = {name: str(which.compile(dialect=dialect)) for name, which in made.items()}
        assert said == {
            name: str(which.compile(dialect=dialect)).replace("release_turns.", "") for name, which in asked.items() if which is not None
        }


OF_ONE = {"release_session_arm_at", "pk"}
"""Of one session, one turn."""


def test_each_question_is_answered_from_the_index_that_holds_no_more_than_it_asks_for(long_live):
    for asked, (ask, wanted) in ASKED.items():
        plan = plans_of(long_live, partial(ask, long_live))
        assert not re.search(r"Seq Scan|Hash|SCAN (main\.)?release_turns(?! USING)", plan), f"{asked}: {plan}"
        used = set(re.findall(r"(?:ix|pk)_release_turns_?(\w*)", plan)) - OF_ONE - {""}
        assert used == wanted, f"{asked}: {plan}"


# --- answers as it did: each question as it was first put, by reading every turn ---------------------------------------------


def owed_of_all(store: Store, live_sessions: int, began: dt.datetime, now: dt.datetime) -> dt.datetime | None:
    t, silent = release_turns, now - dt.timedelta(seconds=RELEASE.policy.idle_seconds)
    candidate = (t.c.release == 7, t.c.arm == "candidate", t.c.at >= began)
    is_figure = sa.or_(t.c.to_grade.is_(False), t.c.reward.is_not(None))
    with store.reading() as connection:
        newest = connection.scalar(sa.select(sa.func.max(t.c.at)).where(*candidate, is_figure)) or began
        last, first = sa.func.max(t.c.at).label("last"), sa.func.min(t.c.at).label("first")
        ended = sa.select(last).where(*candidate, t.c.counted.is_(False)).group_by(t.c.shadow, t.c.session).subquery()
        over = connection.scalar(sa.select(sa.func.min(ended.c.last)).where(ended.c.last <= silent))
        bare = sa.select(sa.func.min(t.c.at)).where(*candidate, ~is_figure, t.c.graded_at.is_not(None), t.c.at > newest)
        before = t.alias()
        known = sa.exists().where(before.c.release == 7, before.c.session == t.c.session, before.c.arm == "live", before.c.at <= newest)
        live = sa.select(first).where(t.c.release == 7, t.c.arm == "live", t.c.at > newest, ~known).group_by(t.c.session)
        overdue = connection.scalar(live.order_by(first).offset(live_sessions - 1).limit(1))
        since = [one for one in (over, connection.scalar(bare), overdue) if one is not None]
    return max(min(since), newest) if since else None


def sessions_of_all(store: Store, now: dt.datetime) -> dict[tuple[bool, str, str], int]:
    """Those that are to be counted, and of how many turns."""
    silent = now - dt.timedelta(seconds=RELEASE.policy.idle_seconds)
    patience = silent - dt.timedelta(seconds=RELEASE.policy.rollback_seconds)
    found: defaultdict[tuple[bool, str, str], list[Any]] = defaultdict(list)
    with store.reading() as connection:
        for row in connection.execute(sa.select(release_turns).where(release_turns.c.counted.is_(False))):
            found[row.shadow, row.arm, row.session].append(row)
        known = {tuple(row) for row in connection.execute(sa.select(*(release_sessions.c[name] for name in ("shadow", "arm", "session"))))}

    def is_over(of_session: list[Any]) -> bool:
        last, waits = max(row.at for row in of_session), any(row.to_grade and row.graded_at is None for row in of_session)
        return last <= silent and (not waits or last <= patience)

    return {key: len(rows) for key, rows in found.items() if key not in known and is_over(rows)}


def counted_of_all(store: Store, step: int) -> tuple[int, int, dict[str, int]]:
    arms: defaultdict[str, int] = defaultdict(int)
    in_step = in_shadow = 0
    with store.reading() as connection:
        for row in connection.execute(sa.select(release_sessions).where(release_sessions.c.release == 7)):
            arms[row.arm] += 1
            in_step += row.arm == "candidate" and not row.shadow and row.step >= step
            in_shadow += row.arm == "candidate" and row.shadow
    return in_step, in_shadow, dict(arms)


def violations_of_all(store: Store, since: dt.datetime) -> set[str]:
    new = sa.and_(release_turns.c.counted.is_(False), release_turns.c.followed.is_(False))
    mine = (release_turns.c.release == 7, release_turns.c.arm == "candidate", sa.or_(release_turns.c.at >= since, new))
    with store.reading() as connection:
        return {name for names in connection.scalars(sa.select(release_turns.c.violations).where(*mine)) for name in names}


TURN = st.fixed_dictionaries(
    {
        "session": st.sampled_from("abc"),
        "at": st.integers(0, 10),
        "arm": st.sampled_from(("live", "candidate")),
        "shadow": st.sampled_from((False, False, True)),
        "to_grade": st.sampled_from((True, True, True, False)),
        "violations": st.sampled_from(((), (), ("leaked",))),
    }
)
DONE = st.tuples(st.lists(TURN, min_size=2, max_size=8), st.lists(st.tuples(st.integers(0, 20), st.sampled_from((None, 0.5))), max_size=3))
"""Turns that come, however late; and grades that others get."""


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seconds=st.lists(st.tuples(DONE, st.integers(0, 5)), min_size=2, max_size=3), live_sessions=st.integers(1, 3))
def test_a_release_is_told_what_reading_every_turn_would_tell(store, seconds, live_sessions):
    with store.writing() as connection:
        for table in (release_turns, release_sessions, release_tests):
            connection.execute(table.delete())
    now, number, tally = NOW, 0, turns.Tally()
    for step, ((came, grades), pause) in enumerate(seconds):
        turns.add_turns(store, [turn(number + i, **one | {"at": one["at"] - (now - NOW) / SECONDS}) for i, one in enumerate(came)])
        number += len(came)
        for which, reward in grades:
            turns.graded(store, "acme", f"r{which}", reward, None, now)
        for began in (BEGAN, now - 5 * SECONDS):
            assert turns.owed_since(store, RELEASE, live_sessions, began, now) == owed_of_all(store, live_sessions, began, now)
            assert turns.owed_since(store, RELEASE, None, began, now) == owed_of_all(store, 10**9, began, now)
            assert turns.violations(store, 7, began) == violations_of_all(store, began)
        due = sessions_of_all(store, now)
        made = turns.close_sessions(store, RELEASE, step, remember, now)
        assert {(one.shadow, one.arm, one.session): one.turns for one in made} == due
        tally = turns.tally(store, 7, tally)
        assert tally.since(step) == turns.tally(store, 7).since(step) == counted_of_all(store, step)
        now += pause * SECONDS


# --- sessions and those that are looked at in one go -------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_a_session_is_counted_with_all_of_its_turns_however_few_are_looked_at_in_one_go(store, monkeypatch, at_once):
    monkeypatch.setattr(turns, "AT_ONCE", at_once)
    turns.add_turns(store, [turn(number, "long", 60 - number, failed=number == 0) for number in range(4)])
    turns.add_turns(store, [turn(10 + number, f"s{number}", 58.5 - number) for number in range(3)])
    made = [one for _ in range(8) for one in closed(store)]
    assert {one.session: (one.turns, one.errors) for one in made} == {"long": (4, 1.0), "s0": (1, 0.0), "s1": (1, 0.0), "s2": (1, 0.0)}


def test_those_who_wait_for_grades_hold_up_nobody(store, monkeypatch):
    monkeypatch.setattr(turns, "AT_ONCE", 2)
    turns.add_turns(store, [turn(number, f"w{number}", 9, to_grade=True) for number in range(5)])
    turns.add_turns(store, [turn(10, "s", 8)])
    assert [one.session for one in closed(store)] == ["s"]


def test_a_turn_of_a_session_that_goes_on_is_looked_at_once(store):
    """A session that never ends has any number of them."""
    turns.add_turns(store, [turn(number, "endless", 100 - number) for number in range(98)])
    assert closed(store) == []
    with store.reading() as connection:
        left = connection.scalars(sa.select(release_turns.c.rollout_id).where(release_turns.c.followed.is_(False))).all()
        silent = NOW - RELEASE.policy.idle_seconds * SECONDS
        assert not turns._due(connection, RELEASE, silent, 9)
    assert sorted(left) == ["r97"], "and those that are not silent for long enough: 3 s ago"
    (session,) = closed(store, NOW + 2 * SECONDS)
    assert session.turns == 98
