"""Sessions are counted once, when they are over and have their grades; and what is owed shows."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy, Release, Session, Turn
from observability import turns
from observability.registry import register_agent
from observability.releases import create
from observability.store import Store

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
SECONDS = dt.timedelta(seconds=1)
POLICY = Policy(idle_seconds=30, rollback_seconds=600, slow_seconds=5)


@pytest.fixture
def store(release_store: Store) -> Store:
    return release_store


@pytest.fixture
def release(store: Store) -> Release:
    first, second = (register_agent(store, "acme", Agent(checkpoint=name, tool_set="t"), name) for name in "ab")
    del first
    return create(store, "ann", "acme", "desk", second, "", POLICY)


def turn(release: Release, number: int, session: str, at: float, **told: Any) -> Turn:
    """`at`: seconds before NOW."""
    given: dict[str, Any] = {"arm": "candidate", "shadow": False, "seconds": 1.0, "failed": False, "tool_calls": 1, "tool_failures": 0}
    whole = {"tenant": "acme", "release": release.id, "rollout_id": f"r{number}", "session": session, "at": NOW - at * SECONDS}
    return Turn(**{**whole, **given, **told})


def remember(state: dict[str, Any] | None, sessions: Any) -> dict[str, Any]:
    """Tests that only say what they were told, in order."""
    return {"seen": [*(state or {"seen": []})["seen"], *(one.session for one in sessions)]}


def closed(store: Store, release: Release, at: dt.datetime = NOW, take: turns.Take = remember) -> list[Session]:
    return turns.close_sessions(store, release, 7, take, at)


def test_a_session_is_over_when_it_was_silent_and_its_figures_are_of_all_its_turns(store, release):
    told = [
        turn(release, 1, "s1", 60, seconds=6.0, tool_failures=2),
        turn(release, 2, "s1", 40, failed=True, violations=("leaked:KEY",)),
        turn(release, 3, "s2", 90),
        turn(release, 4, "s2", 20),  # not silent for 30 s
    ]
    turns.add_turns(store, told)
    (session,) = closed(store, release)
    assert (session.session, session.turns, session.closed_at) == ("s1", 2, NOW - 40 * SECONDS)
    assert (session.errors, session.tool_failures, session.slow, session.unsafe, session.reward) == (1.0, 1.0, 1.0, 1.0, None)
    assert [one.session for one in closed(store, release, NOW + 15 * SECONDS)] == ["s2"]
    assert turns.tests_of(store, "acme", release.id) == {"seen": ["s1", "s2"]}
    assert turns.tally(store, release.id).since(7) == (2, 0, {"candidate": 2})
    assert turns.tally(store, release.id).since(8).candidate_in_step == 0


def test_a_session_waits_for_its_grades_for_so_long(store, release):
    turns.add_turns(store, [turn(release, 1, "s1", 50, to_grade=True), turn(release, 2, "s1", 40, to_grade=True)])
    turns.add_turns(store, [turn(release, 3, "s2", 40, to_grade=True)])
    turns.graded(store, "acme", "r1", 0.2, 0.5, NOW)
    assert closed(store, release) == []
    turns.graded(store, "acme", "r2", 0.6, None, NOW)
    (session,) = closed(store, release)
    assert session.reward == pytest.approx(0.4) and session.holdout == 0.5  # (0.2 + 0.6) / 2; one holdout
    assert closed(store, release, NOW + 589 * SECONDS) == []
    (late,) = closed(store, release, NOW + 590 * SECONDS)  # 40 s ago, then 590: 30 of silence and 600 of patience
    assert (late.session, late.reward) == ("s2", None)


def test_a_late_turn_and_one_told_twice_change_nothing(store, release):
    turns.add_turns(store, [turn(release, 1, "s1", 60)])
    assert len(closed(store, release)) == 1
    turns.add_turns(store, [turn(release, 1, "s1", 60, failed=True), turn(release, 2, "s1", 50, failed=True)])
    assert closed(store, release) == [] and closed(store, release) == []
    assert turns.tests_of(store, "acme", release.id) == {"seen": ["s1"]}


def test_of_a_turn_that_comes_twice_the_first_counts_whether_together_or_later_and_of_each_tenant_by_itself(store, release):
    first, again = turn(release, 1, "s1", 60, to_grade=True), turn(release, 1, "s1", 50, to_grade=True, failed=True)
    theirs = turn(release, 1, "s9", 60, to_grade=True, tenant="globex")
    turns.add_turns(store, [first, turn(release, 2, "s2", 60, to_grade=True), again])
    turns.add_turns(store, [again, theirs, turn(release, 3, "s3", 60, to_grade=True, violations=("leaked:KEY",))])
    told = sorted(turns.to_grade(store, 9), key=lambda one: (one.tenant, one.rollout_id))
    assert [(one.tenant, one.rollout_id, one.failed) for one in told] == [
        ("acme", "r1", False), ("acme", "r2", False), ("acme", "r3", False), ("globex", "r1", False),
    ]  # fmt: skip
    assert (told[0], told[2].violations, told[3]) == (first, ("leaked:KEY",), theirs)


def test_what_was_not_counted_to_its_end_was_not_counted(store, release):
    """As after a kill: session, tests and turns are one transaction."""
    turns.add_turns(store, [turn(release, 1, "s1", 60)])

    def killed(_: object, __: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        closed(store, release, take=killed)
    assert turns.tests_of(store, "acme", release.id) is None and turns.tally(store, release.id).since(0).sessions == {}
    assert [one.session for one in closed(store, release)] == ["s1"]


def test_the_shadow_s_sessions_are_others_than_the_users(store, release):
    turns.add_turns(store, [turn(release, 1, "s1", 60, shadow=True), turn(release, 2, "s1", 60), turn(release, 3, "s1", 60, arm="live")])
    assert sorted((one.arm, one.shadow) for one in closed(store, release)) == [("candidate", False), ("candidate", True), ("live", False)]
    assert turns.tally(store, release.id).since(7) == (1, 1, {"candidate": 2, "live": 1})


def owed(store: Store, release: Release, live_sessions: int = 5, at: dt.datetime = NOW) -> float | None:
    since = turns.owed_since(store, release, live_sessions, NOW - 900 * SECONDS, at)
    return None if since is None else (at - since).total_seconds()


def test_a_candidate_is_owed_a_figure_only_where_there_should_be_one(store, release):
    assert owed(store, release) is None, "nobody came"
    turns.add_turns(store, [turn(release, number, f"s{number}", 500 - number, arm="live") for number in range(4)])
    assert owed(store, release) is None, "by chance"
    turns.add_turns(store, [turn(release, 5, "s5", 400, arm="live")])
    assert owed(store, release) == 400, "since the fifth live session"
    turns.add_turns(store, [turn(release, 6, "c1", 350, to_grade=True)])
    assert owed(store, release) == 400, "it came, and has no grade yet"
    turns.graded(store, "acme", "r6", None, None, NOW)
    assert owed(store, release) == 400, "a grader that gives no score gives no figure"
    turns.add_turns(store, [turn(release, 7, "c2", 340, to_grade=True)])
    turns.graded(store, "acme", "r7", 1.0, None, NOW)
    closed(store, release)
    assert owed(store, release) is None
    turns.add_turns(store, [turn(release, 8, "c3", 100, to_grade=True)])
    assert owed(store, release) == 100, "its session is over and waits for a grade"


def test_live_sessions_that_only_go_on_owe_the_candidate_nothing(store, release):
    for number in range(6):  # each began before the candidate's newest figure, and goes on after it
        turns.add_turns(store, [turn(release, 10 + number, f"s{number}", 800 - number, arm="live")])
        turns.add_turns(store, [turn(release, 20 + number, f"s{number}", 500 - number, arm="live")])
    turns.add_turns(store, [turn(release, 1, "c", 700)])
    closed(store, release)
    assert owed(store, release) is None
    turns.add_turns(store, [turn(release, 30 + number, f"n{number}", 400 - number, arm="live") for number in range(5)])
    assert owed(store, release) == 396, "five that began since"


def test_who_has_much_to_be_graded_keeps_no_other_from_it_nor_the_live_agent_its_candidate(store, release):
    turns.add_turns(store, [turn(release, number, f"s{number}", 50 - number, arm="live", to_grade=True) for number in range(20)])
    turns.add_turns(store, [turn(release, 100 + number, f"c{number}", 500 - number, to_grade=True) for number in range(2)])
    elsewhere = msgspec.structs.replace(release, id=release.id + 1)
    turns.add_turns(store, [turn(elsewhere, 200, "o", 700, to_grade=True)])
    assert [one.rollout_id for one in turns.to_grade(store, 5)] == ["r19", "r101", "r200", "r18", "r100"]
    assert turns.drop_oldest(store, 7, NOW) == 16
    assert {one.rollout_id for one in turns.to_grade(store, 99)} == {"r19", "r18", "r17", "r16", "r101", "r100", "r200"}


def test_the_newest_are_graded_and_the_oldest_go_without(store, release):
    turns.add_turns(store, [turn(release, number, f"s{number}", 100 - number, to_grade=True) for number in range(5)])
    assert [one.rollout_id for one in turns.to_grade(store, 2)] == ["r4", "r3"]
    assert turns.drop_oldest(store, 3, NOW) == 2 and turns.drop_oldest(store, 3, NOW) == 0
    turns.graded(store, "acme", "r4", 1.0, None, NOW)
    assert turns.grading(store, release.id) == turns.Grading(waiting=2, graded=1, without=2)
    turns.graded(store, "acme", "r4", 0.0, None, NOW)
    assert turns.to_grade(store, 9)[0].rollout_id == "r3", "a grade is given once"


def test_failed_turns_and_violations_of_the_candidate_are_seen(store, release):
    told = [turn(release, number, "s", 50 - number, failed=number % 2 == 0) for number in range(4)]
    told += [
        turn(release, 9, "l", 1, arm="live", failed=True, violations=("words:x",)),
        turn(release, 8, "s", 60, violations=("leaked:A",)),
    ]
    turns.add_turns(store, told)
    assert turns.newest_failed(store, release.id, 3, NOW - 900 * SECONDS) == [False, True, False]
    assert turns.violations(store, release.id, NOW - 900 * SECONDS) == {"leaked:A"}
    later = NOW - 59 * SECONDS
    assert turns.violations(store, release.id, later) == {"leaked:A"}, "nobody has looked at it yet"
    closed(store, release)
    assert turns.violations(store, release.id, later) == set()
