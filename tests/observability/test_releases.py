"""A release's record: every step written once, only on what its writer saw, and where sessions go by it."""

from __future__ import annotations

import datetime as dt
import threading

import msgspec
import pytest
import sqlalchemy as sa

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Event, Policy, Release
from observability import ledger, outbox
from observability.dossier import NotThere
from observability.registry import register_agent
from observability.release_tables import releases
from observability.releases import (
    Move,
    Stale,
    create,
    current,
    decided,
    events,
    live_agent,
    newest_event,
    record,
    release_of,
    routes,
    routes_of,
    standings,
    watched,
)
from observability.store import Store
from observability.tables import artifacts

TENANT = "acme"


@pytest.fixture
def store(release_store: Store) -> Store:
    return release_store


@pytest.fixture
def agents(store: Store) -> list[str]:
    return [register_agent(store, TENANT, Agent(checkpoint=f"run/step-{number}", tool_set="t1"), f"agent {number}") for number in range(4)]


def full(store: Store, service: str, agent: str, tenant: str = TENANT) -> Release:
    release = create(store, "ann", tenant, service, agent, live_agent(store, tenant, service), Policy())
    decided(store, "ann", tenant, release.id, lambda _, __: [Move(act="advance", stage="full", share=1.0, why="by hand")])
    return release


def trial(store: Store, service: str, agent: str, share: float = 0.05) -> tuple[Release, Event]:
    release = create(store, "ann", TENANT, service, agent, live_agent(store, TENANT, service), Policy())
    move = Move(act="advance", stage="canary", share=share, why="so far so good", figures={"sessions": 20})
    return release, record(store, "@controller", TENANT, release.id, move, events(store, TENANT, release.id)[-1].id)


def shown(store: Store, service: str = "desk") -> tuple[str, str, float, int]:
    route = next(route for route in routes(store) if route.service == service)
    return route.live, route.candidate, route.share, route.release


def test_a_release_goes_from_its_service_s_first_agent_to_full_and_back(store, agents):
    first = full(store, "desk", agents[0])
    assert shown(store) == (agents[0], agents[0], 1.0, first.id)
    release, event = trial(store, "desk", agents[1])
    assert shown(store) == (agents[0], agents[1], 0.05, release.id)
    assert (event.stage, event.by, event.figures) == ("canary", "@controller", {"sessions": 20})

    record(store, "@controller", TENANT, release.id, Move(act="advance", stage="full", share=1.0, why="good"), event.id)
    assert shown(store) == (agents[1], agents[1], 1.0, release.id)
    assert [told.act for told in events(store, TENANT, first.id)] == ["create", "advance", "supersede"]

    back = Move(act="rollback", stage="rolled_back", cut=True, why="unsafe")
    record(store, "ben", TENANT, release.id, back, events(store, TENANT, release.id)[-1].id)
    route = routes(store)[0]
    assert (route.live, route.candidate, route.cut) == (agents[0], "", True), "what was live before is live again"
    assert [told.act for told in events(store, TENANT, first.id)][-1] == "resume"
    assert not list(ledger.verify(store, TENANT))


def test_what_is_held_against_a_rolled_back_agent_is_rolled_back_with_it(store, agents):
    full(store, "desk", agents[0])
    second = full(store, "desk", agents[1])
    third, _ = trial(store, "desk", agents[2])
    decided(store, "ann", TENANT, second.id, lambda _, __: [Move(act="rollback", stage="rolled_back", why="by hand")])
    newest = events(store, TENANT, third.id)[-1]
    assert (newest.act, newest.stage) == ("rollback", "rolled_back") and f"release {second.id}" in newest.why
    assert shown(store)[:2] == (agents[0], "")


def test_only_who_saw_the_newest_event_decides(store, agents):
    full(store, "desk", agents[0])
    release, event = trial(store, "desk", agents[1])
    there, outcomes = threading.Barrier(2), list[str]()

    def decide(stage: str) -> None:
        there.wait()
        try:
            record(store, stage, TENANT, release.id, Move(act="advance", stage=stage, share=1.0, why=stage), event.id)
            outcomes.append("written")
        except Stale as error:
            outcomes.append(error.what)

    both = [threading.Thread(target=decide, args=(stage,)) for stage in ("full", "rolled_back")]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(outcomes)[1] == "written" and "moved on" in sorted(outcomes)[0]
    assert len(events(store, TENANT, release.id)) == 3
    assert not list(ledger.verify(store, TENANT))


def test_one_release_of_a_service_at_a_time_and_against_what_is_live(store, agents):
    full(store, "desk", agents[0])
    with pytest.raises(UserError, match="is what answers for desk already"):
        create(store, "ann", TENANT, "desk", agents[0], agents[0], Policy())
    with pytest.raises(Stale, match=f"answered by {agents[0]} and not by {agents[2]}"):
        create(store, "ann", TENANT, "desk", agents[1], agents[2], Policy())
    release, _ = trial(store, "desk", agents[1])
    with pytest.raises(UserError, match=f"release {release.id} of desk is on trial"):
        create(store, "ann", TENANT, "desk", agents[2], agents[0], Policy())
    with pytest.raises(NotThere, match="no agent agent-x"):
        create(store, "ann", TENANT, "other", "agent-x", "", Policy())
    with pytest.raises(UserError, match="is no name"):
        create(store, "ann", TENANT, "de sk", agents[2], "", Policy())


def test_each_tenant_has_its_own(store, agents):
    full(store, "desk", agents[0])
    theirs = register_agent(store, "other", Agent(checkpoint="theirs", tool_set="t1"), "theirs")
    release = full(store, "desk", theirs, "other")
    assert {(route.tenant, route.live) for route in routes(store)} == {(TENANT, agents[0]), ("other", theirs)}
    assert [route.tenant for route in routes(store, "other")] == ["other"]
    assert [one.tenant for one, _ in current(store, TENANT)] == [TENANT]
    with pytest.raises(NotThere, match=f"there is no release {release.id}"):
        events(store, TENANT, release.id)


def test_what_may_still_move_is_watched_and_what_is_over_is_not(store, agents):
    first = full(store, "desk", agents[0])
    second = full(store, "desk", agents[1])
    release, _ = trial(store, "desk", agents[2])
    assert [one.id for one, _ in watched(store)] == [second.id, release.id]
    assert [(one.id, event.stage) for one, event in current(store)] == [(second.id, "full"), (release.id, "canary")]
    assert newest_event(store) == max(event.id for _, event in watched(store))
    assert first.id not in [one.release for one in standings(store)]


def test_a_withdrawal_that_nobody_could_write_down_counts_for_routing(store, agents):
    full(store, "desk", agents[0])
    release, _ = trial(store, "desk", agents[1])
    route = routes_of(standings(store), {release.id: True})[0]
    assert (route.live, route.candidate, route.release, route.share, route.cut) == (agents[0], "", 0, 0.0, True)

    decided(store, "ann", TENANT, release.id, lambda _, __: [Move(act="advance", stage="full", share=1.0, why="by hand")])
    route = routes_of(standings(store), {release.id: False})[0]
    assert (route.live, route.candidate, route.cut) == (agents[0], "", False), "from full back to what it was held against"


def test_everybody_who_has_to_be_told_of_an_event_is_told_in_its_transaction(store, agents):
    full(store, "desk", agents[0])
    words = outbox.due(store, dt.datetime.now(dt.UTC))
    assert [word.body["act"] for word in words] == ["create", "advance"]
    with pytest.raises(ZeroDivisionError):
        decided(store, "ann", TENANT, words[0].body["release"], lambda _, __: [Move(act="note", stage="full", why="x"), 1 / 0])
    assert len(outbox.due(store, dt.datetime.now(dt.UTC))) == 2, "an event that was not written is told to nobody"


def test_an_agent_that_somebody_changed_in_the_registry_is_none(store, agents):
    with store.writing() as connection:
        connection.execute(sa.update(artifacts).where(artifacts.c.id == agents[1]).values(facts={"checkpoint": "other", "tool_set": ""}))
    full(store, "desk", agents[0])
    with pytest.raises(UserError, match="not what it was registered as"):
        trial(store, "desk", agents[1])


def test_who_is_held_against_a_withdrawn_agent_is_withdrawn_with_it(store, agents):
    full(store, "desk", agents[0])
    second = full(store, "desk", agents[1])
    trial(store, "desk", agents[2])
    route = routes_of(standings(store), {second.id: False})[0]
    assert (route.live, route.candidate) == (agents[0], "")


def from_a_newer_version(store: Store, release: Release, **rules: object) -> None:
    with store.writing() as connection:
        policy = msgspec.to_builtins(release.policy) | {"drain_seconds": 7.0} | rules
        connection.execute(sa.update(releases).where(releases.c.id == release.id).values(policy=policy))


@pytest.mark.parametrize("rules", [{"patience": 3}, {"patience": 3, "alpha": "little"}])
def test_a_policy_that_is_not_known_here_to_its_end_stops_no_routes_and_no_rollback(store, agents, rules):
    live = full(store, "desk", agents[0])
    release, _ = trial(store, "desk", agents[1])
    from_a_newer_version(store, live, **rules)
    from_a_newer_version(store, release, **rules)
    (route,) = routes(store)
    assert (route.live, route.candidate) == (agents[0], agents[1])
    assert route.drain_seconds == (7.0 if len(rules) == 1 else Policy().drain_seconds), "what is known of it holds"
    assert [one.id for one, _ in watched(store)] == [one.id for one, _ in current(store)] == [live.id, release.id]
    with pytest.raises(UserError, match=rf"the policy of release {release.id} cannot be read(.|\n)*update agent-rft"):
        release_of(store, TENANT, release.id)
    decided(store, "ann", TENANT, release.id, lambda _, __: [Move(act="rollback", stage="rolled_back", why="by hand")])
    assert routes(store)[0].candidate == ""
