"""A release moves by what its sessions say, whoever dies meanwhile, and every step stands on its record."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Policy
from observability import ledger, turns
from observability.leases import holder
from observability.registry import register_agent, report
from observability.release_tables import agent_reports, release_tests, releases
from observability.releases import events, record, routes
from observability.store import Store, migrate, open_store
from serving.release import acts
from serving.release.controller import Controller
from serving.release.knowing import known_of
from serving.release.leadership import LEASE, Leadership
from serving.release.routing import Routing

TO_FULL = [
    ("create", "offline", 0.0),
    ("advance", "shadow", 0.0),
    ("advance", "canary", 0.5),
    ("advance", "full", 1.0),
]


def controller(store: Store) -> Controller:
    return Controller(store, None, Leadership(store))


def good_candidate(world: Any, release: Any, tick: Callable[[], None]) -> None:
    """A shadow of two sessions, then pairs until it is full: each as good as the live one's."""
    tick()
    for _ in range(2):
        world.session(release, "candidate", shadow=True)
        world.session(release, "live", shadow=True)
    world.later(11)
    tick()  # counts them
    tick()  # decides on them
    for _ in range(6):
        world.session(release, "candidate")
        world.session(release, "live")
    world.later(11)
    tick()
    tick()


def test_a_good_candidate_goes_to_full_by_itself_and_the_trail_says_why(world):
    release, control = world.on_trial(), controller(world.store)
    good_candidate(world, release, lambda: control.tick(world.now))
    told = events(world.store, "acme", release.id)
    assert [(event.act, event.stage, event.share) for event in told] == TO_FULL
    assert {event.by for event in told[1:]} == {"@controller"}
    assert (
        "2 sessions in the shadow" in told[2].why and told[3].figures["tests"]["reward"]["n"] == 4
    )  # of six that end at once, four wait at most
    assert routes(world.store)[0].live == release.candidate
    assert not list(ledger.verify(world.store, "acme"))


@pytest.mark.parametrize(
    ("told", "why", "cut"),
    [
        ({"failed": True}, "a storm", False),
        ({"violations": ("critical:leaked:KEY",)}, "unsafe: critical:leaked:KEY", True),
    ],
)
def test_a_bad_candidate_is_rolled_back_by_its_first_turns(world, told, why, cut):
    release, control = world.on_trial(shadow_sessions=0, storm=(2, 3)), controller(world.store)
    control.tick(world.now)
    assert world.acts(release)[-1] == ("advance", "canary", 0.5)
    for _ in range(2):
        world.session(release, "candidate", **told)
    control.tick(world.later(1))
    newest = events(world.store, "acme", release.id)[-1]
    assert (newest.stage, newest.cut, newest.by) == ("rolled_back", cut, "@controller") and why in newest.why
    assert (routes(world.store)[0].candidate, routes(world.store)[0].cut) == ("", cut)


def test_without_figures_nothing_goes_forward_and_then_it_goes_back(world):
    release = world.on_trial(shadow_sessions=0, hold_seconds=60, rollback_seconds=300)
    control = controller(world.store)
    control.tick(world.now)
    world.session(release, "candidate", None, to_grade=True)  # whose grade never comes
    control.tick(world.later(59))
    assert world.acts(release)[-1][0] == "advance"
    control.tick(world.later(2))
    assert events(world.store, "acme", release.id)[-1].held
    control.tick(world.later(240))
    assert world.acts(release)[-1] == ("rollback", "rolled_back", 0.0)


@pytest.mark.parametrize(("share", "live_sessions"), [(0.5, 17), (0.25, 41)])  # 0.5**16 is more than 1e-5, 0.5**17 less; 0.75**40, 0.75**41
def test_no_session_of_the_candidate_is_chance_until_it_is_one_in_a_hundred_thousand(world, share, live_sessions):
    release = world.on_trial(shadow_sessions=0, steps=(share,))
    controller(world.store).tick(world.now)
    for _ in range(live_sessions - 1):
        world.session(release, "live")
    assert not known_of(world.store, release, world.later(1)).traffic
    world.session(release, "live")
    assert known_of(world.store, release, world.later(1)).traffic


# --- what cannot be looked at, or written ------------------------------------------------------------------------------------------


def test_a_release_that_cannot_be_looked_at_holds_up_no_other_and_is_taken_back_in_the_end(world, monkeypatch):
    broken, control = world.on_trial(shadow_sessions=0, rollback_seconds=300), controller(world.store)
    control.tick(world.now)
    with world.store.writing() as connection:
        row = {"tenant": "acme", "release": broken.id, "until": 0, "state": {"canary": "no tests"}, "at": world.now}
        connection.execute(sa.insert(release_tests), [row])
    other = register_agent(world.store, "acme", Agent(checkpoint="other", tool_set="t"), "other")
    report(world.store, "acme", other, "safety", passed=True, figures={}, by="trainer")
    acts.begin_first(world.store, "ann", "acme", "chat", broken.live, Policy())
    whole = acts.begin(world.store, "ann", "acme", "chat", other, Policy(needs=("safety",), shadow_sessions=0))
    control.tick(world.later(1))
    assert world.acts(whole)[-1] == ("advance", "canary", 0.01)
    control.tick(world.later(299))
    assert world.acts(broken)[-1] == ("advance", "canary", 0.5)
    control.tick(world.later(2))
    newest = events(world.store, "acme", broken.id)[-1]
    assert newest.stage == "rolled_back" and newest.why == "for 301 s its figures could not be looked at: ValidationError"


def test_a_report_that_was_changed_lets_nothing_forward_and_hides_nothing_that_speaks_against_the_candidate(world):
    release, control = world.on_trial(shadow_sessions=0), controller(world.store)
    control.tick(world.now)
    with world.store.writing() as connection:
        connection.execute(sa.update(agent_reports).where(agent_reports.c.kind == "evaluation").values(figures={"reward": 0.0}))
    for _ in range(6):  # enough for full
        world.session(release, "candidate")
        world.session(release, "live")
    for _ in range(3):
        control.tick(world.later(11))
    assert world.acts(release)[-1] == ("advance", "canary", 0.5)
    with pytest.raises(
        UserError, match=rf"waits for reports that can be gone by: the evaluation report of {release.candidate} .* is not what"
    ):
        acts.to_canary(world.store, "ann", "acme", release.id)
    world.session(release, "candidate", violations=("critical:leaked:KEY",))
    control.tick(world.later(1))
    newest = events(world.store, "acme", release.id)[-1]
    assert (newest.stage, newest.why) == ("rolled_back", "unsafe: critical:leaked:KEY")


def test_what_a_gateway_could_not_tell_for_an_hour_takes_a_candidate_back_all_the_same(world):
    """The store was away, and the controller is back at it before the gateway's turns are."""
    release, control = world.on_trial(), controller(world.store)
    good_candidate(world, release, lambda: control.tick(world.now))
    then = world.now
    control.tick(world.later(3600))
    world.session(release, "candidate", at=then, violations=("critical:leaked:KEY",))
    control.tick(world.later(1))
    newest = events(world.store, "acme", release.id)[-1]
    assert (newest.stage, newest.why) == ("rolled_back", "unsafe: critical:leaked:KEY")


def test_a_release_whose_policy_is_a_newer_version_s_is_moved_by_nobody_here_and_taken_back_in_the_end(world):
    strange, control = world.on_trial(shadow_sessions=0, rollback_seconds=300), controller(world.store)
    control.tick(world.now)
    with world.store.writing() as connection:
        policy = msgspec.to_builtins(strange.policy) | {"patience": 3}
        connection.execute(sa.update(releases).where(releases.c.id == strange.id).values(policy=policy))
    control = controller(world.store)
    for _ in range(2):
        world.session(strange, "candidate")
    control.tick(world.later(1))
    acts.begin_first(world.store, "ann", "acme", "chat", strange.live, Policy())
    other = register_agent(world.store, "acme", Agent(checkpoint="other", tool_set="t"), "other")
    report(world.store, "acme", other, "safety", passed=True, figures={}, by="trainer")
    whole = acts.begin(world.store, "ann", "acme", "chat", other, Policy(needs=("safety",), shadow_sessions=0))
    control.tick(world.later(299))
    assert world.acts(whole)[-1] == ("advance", "canary", 0.01) and world.acts(strange)[-1] == ("advance", "canary", 0.5)
    control.tick(world.later(2))
    newest = events(world.store, "acme", strange.id)[-1]
    assert newest.stage == "rolled_back" and "for 301 s its figures could not be looked at: the policy of release 2" in newest.why


async def test_a_rollback_that_hangs_in_the_store_holds_here_meanwhile(world, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.release.controller.HANGS_SECONDS", 0.05)
    release, goes_on, hangs = world.on_trial(shadow_sessions=0, storm=(2, 3)), threading.Event(), threading.Event()
    routing = Routing(world.store, tmp_path / "w")
    control = Controller(world.store, routing, Leadership(world.store))
    control.tick(world.now)
    await routing.refresh()
    for _ in range(2):
        world.session(release, "candidate", failed=True)

    def hanging(*told: Any) -> Any:
        hangs.set()
        goes_on.wait(10)
        return record(*told)

    monkeypatch.setattr("serving.release.controller.record", hanging)
    ticking = asyncio.create_task(asyncio.to_thread(control.tick, world.later(1)))
    await asyncio.to_thread(hangs.wait, 10)
    for _ in range(100):
        if (route := routing.route("acme", "desk")) and not route.candidate:
            break
        await asyncio.sleep(0.02)
    assert route and route.candidate == "", "users are off it"
    assert world.acts(release)[-1][1] == "canary", "and the store does not know it yet"
    goes_on.set()
    await ticking
    await routing.refresh()
    assert [stage for _, stage, _ in world.acts(release)] == ["offline", "canary", "rolled_back"], "once"


# --- killed -----------------------------------------------------------------------------------------------------------------


def killing(store: Store, at: int) -> Store:
    """The same store; before the commit of its `at`-th half transaction, or right after it, the process is gone."""
    points = itertools.count()

    class Killing(Store):
        @contextmanager
        def writing(self) -> Iterator[sa.Connection]:
            with super().writing() as connection:
                yield connection
                if next(points) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            if next(points) == at:
                os.kill(os.getpid(), signal.SIGKILL)

    return Killing(**{name: getattr(store, name) for name in ("engine", "name", "folder", "tenant", "confined")})


def in_a_child_that_dies(store: Store, work: Callable[[Store], None], at: int) -> bool:
    """Whether it was killed, and did not come to its end before."""
    store.engine.dispose()  # no connection goes to the child
    child = os.fork()
    if not child:
        try:
            work(killing(store, at))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_moment_of_any_transition_the_next_goes_on_as_if_nothing_had_been(world):
    """Each tick is begun by processes that are killed before and after each commit, until one comes through."""
    release, kills = world.on_trial(), 0

    def tick() -> None:
        nonlocal kills
        before_and_after = itertools.cycle((0, 1))  # nothing of the transaction is left; then all of it, and the next one is the first
        while in_a_child_that_dies(world.store, lambda store: controller(store).tick(world.now), next(before_and_after)):
            kills += 1
            assert kills < 50

    good_candidate(world, release, tick)
    assert world.acts(release) == TO_FULL
    assert kills == 10, "before and after each of three moves and of two countings"
    counted = turns.tally(world.store, release.id).since(0)
    assert (counted.shadow, counted.sessions) == (2, {"candidate": 8, "live": 8})
    state = turns.tests_of(world.store, "acme", release.id)
    assert state and next(test for test in state["canary"] if test["kpi"] == "reward")["bet"]["n"] == 4
    assert not list(ledger.verify(world.store, "acme"))


# --- two of them -----------------------------------------------------------------------------------------------------------------


def test_two_controllers_at_once_write_each_decision_once(postgres, world_of):
    url = postgres()
    migrate(url)
    world = world_of(open_store(url))
    others = [open_store(url) for _ in range(2)]
    release = world.on_trial()

    def tick() -> None:
        together = threading.Barrier(2)

        def one(store: Store) -> None:
            together.wait()
            controller(store).tick(world.now)

        both = [threading.Thread(target=one, args=(store,)) for store in others]
        for each in both:
            each.start()
        for each in both:
            each.join()

    good_candidate(world, release, tick)
    assert world.acts(release) == TO_FULL
    assert turns.tally(world.store, release.id).since(0).sessions == {"candidate": 8, "live": 8}
    assert not list(ledger.verify(world.store, "acme"))
    for store in (world.store, *others):
        store.close()


async def test_one_leads_and_another_takes_over_when_it_dies_or_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.release.leadership.SECONDS", 0.6)
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    first, second = Leadership(store, "first"), Leadership(store, "second")
    await first.renew()
    await second.renew()
    assert first.leads and not second.leads
    await asyncio.sleep(0.7)  # first is dead
    assert not first.leads, "it knows by its own clock"
    await second.renew()
    assert second.leads and holder(store, LEASE) == "second"
    task = asyncio.create_task(second.run())
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await first.renew()
    assert first.leads and not second.leads, "who goes gives it up"
    store.close()
