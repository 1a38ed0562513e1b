"""Gateways follow the store within a reading, go on without it, and a release is taken back even then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agent_rft.cli import main
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy
from observability.dossier import NotThere
from observability.registry import register_agent, report
from observability.releases import Move, decided, events, record
from observability.store import Store, migrate, open_store
from observability.tables import artifacts
from serving.release import acts
from serving.release.controller import Controller
from serving.release.leadership import Leadership
from serving.release.routing import Routing, read_intents


def shown(routing: Routing) -> tuple[str, str, bool]:
    route = routing.route("acme", "desk")
    assert route
    return route.live, route.candidate, route.cut


@pytest.fixture
def on_trial(world) -> tuple[Any, Any]:
    """With half of the sessions."""
    release = world.on_trial()
    half = Move(act="advance", stage="canary", share=0.5, why="in a test")
    decided(world.store, "ann", "acme", release.id, lambda _, __: [half])
    return world, release


async def test_two_gateways_follow_the_store_and_know_their_agents(on_trial, tmp_path):
    world, release = on_trial
    one, two = (Routing(world.store, tmp_path / name) for name in "ab")
    assert one.route("acme", "desk") is None
    for routing in (one, two):
        await routing.refresh()
        assert shown(routing) == (release.live, release.candidate, False)
        assert routing.agent("acme", release.candidate).checkpoint == "better"
    with pytest.raises(NotThere):
        one.agent("other", release.candidate)
    acts.roll_back(world.store, "ben", "acme", release.id, "by hand", cut=True)
    await two.refresh()
    assert shown(two) == (release.live, "", True)
    assert two.agent("acme", release.candidate), "runs that it began still end"


async def test_a_withdrawal_holds_at_once_after_a_restart_and_in_the_store(on_trial, tmp_path, monkeypatch):
    world, release = on_trial
    routing = Routing(world.store, tmp_path / "w")
    await routing.refresh()
    routing.withdraw("acme", release.id, "a storm", cut=False)
    assert shown(routing) == (release.live, "", False)
    assert world.acts(release)[-1][1] == "canary", "nobody told the store yet"

    again = Routing(world.store, tmp_path / "w")  # as after kill -9
    await again.refresh()
    newest = events(world.store, "acme", release.id)[-1]
    assert (newest.stage, newest.by) == ("rolled_back", "@controller") and "a storm" in newest.why
    assert shown(again) == (release.live, "", False) and not list((tmp_path / "w").iterdir())
    await routing.refresh()
    assert shown(routing) == (release.live, "", False) and len(world.acts(release)) == 3


async def test_a_withdrawal_is_forgotten_only_when_the_routes_know_it(on_trial, tmp_path, monkeypatch):
    world, release = on_trial
    routing = Routing(world.store, tmp_path / "w")
    await routing.refresh()
    routing.withdraw("acme", release.id, "a storm", cut=True)

    def away(_: object) -> Any:
        raise sa.exc.OperationalError("select", {}, Exception("gone"))

    with monkeypatch.context() as patch:
        patch.setattr("serving.release.routing.standings", away)  # right after the rollback was written
        await routing.refresh()
    assert routing.away and shown(routing) == (release.live, "", True)
    await routing.refresh()
    assert shown(routing) == (release.live, "", True) and not routing.away


async def test_an_agent_that_cannot_be_read_keeps_no_other_service_where_it_was(on_trial, tmp_path):
    world, release = on_trial
    broken = register_agent(world.store, "other", Agent(checkpoint="c", tool_set="t"), "broken")
    report(world.store, "other", broken, "safety", passed=True, figures={}, by="trainer")
    acts.begin_first(world.store, "eve", "other", "desk", broken, Policy())
    with world.store.writing() as connection:
        connection.execute(sa.update(artifacts).where(artifacts.c.id == broken).values(facts={"checkpoint": "another", "tool_set": "t"}))
    routing = Routing(world.store, tmp_path / "w")
    await routing.refresh()
    assert shown(routing) == (release.live, release.candidate, False)
    acts.roll_back(world.store, "ben", "acme", release.id, "by hand")
    await routing.refresh()
    assert shown(routing) == (release.live, "", False)
    with pytest.raises(NotThere):
        routing.agent("other", broken)


async def test_a_withdrawal_with_very_many_words_reaches_the_store_all_the_same(on_trial, tmp_path):
    world, release = on_trial
    routing = Routing(world.store, tmp_path / "w")
    await routing.refresh()
    routing.withdraw("acme", release.id, "unsafe " * 1000, cut=False)
    await routing.refresh()
    await routing.refresh()
    assert shown(routing) == (release.live, "", False) and world.acts(release)[-1][1] == "rolled_back"


@pytest.fixture
def switched(postgres: Callable[[], str]) -> Iterator[tuple[str, Callable[[bool], None]]]:
    """A database, and what takes it away and brings it back."""
    url = postgres()
    migrate(url)
    name = sa.make_url(url).database
    elsewhere = sa.make_url(url).set(drivername="postgresql+psycopg", database="template1")
    admin = sa.create_engine(elsewhere, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def switch(on: bool) -> None:
        with admin.connect() as connection:
            connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {str(on).lower()}'))
            if not on:
                end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                connection.execute(sa.text(end), {"name": name})

    yield url, switch
    switch(True)
    admin.dispose()


async def test_the_database_away_during_a_rollback(switched, world_of, tmp_path, monkeypatch, capsys):
    url, switch = switched
    world = world_of(open_store(url))
    release = world.on_trial(shadow_sessions=0, storm=(2, 3))
    routing, folder = Routing(world.store, tmp_path / "w"), tmp_path / "w"
    controller = Controller(world.store, routing, Leadership(world.store))
    controller.tick(world.now)
    await routing.refresh()
    assert shown(routing)[1] == release.candidate
    for _ in range(2):
        world.session(release, "candidate", failed=True)

    def gone(*told: Any) -> Any:
        switch(False)  # between the decision and its record
        return record(*told)

    monkeypatch.setattr("serving.release.controller.record", gone)
    with pytest.raises(sa.exc.OperationalError):
        controller.tick(world.later(1))
    assert shown(routing)[:2] == (release.live, ""), "users are off it at once"
    await routing.refresh()
    assert routing.away and shown(routing)[:2] == (release.live, ""), "and stay so while the database is away"
    assert main(["release", "rollback", "77", "--tenant", "acme", "--store", url, "--folder", str(folder), "--cut"]) == 0
    assert "withdraw it now" in capsys.readouterr().out
    assert {intent.release: intent.cut for intent in read_intents(folder).values()} == {release.id: False, 77: True}

    monkeypatch.setattr("agent_rft.commands.release.open_store", lambda _: Store(world.store.engine, "s", tmp_path))  # goes once it is open
    assert main(["release", "rollback", "78", "--tenant", "acme", "--store", url, "--folder", str(folder)]) == 0
    assert "does not answer" in capsys.readouterr().out and 78 in read_intents(folder)

    switch(True)
    await routing.refresh()
    newest = events(world.store, "acme", release.id)[-1]
    assert newest.stage == "rolled_back" and "a storm" in newest.why
    assert not routing.away and shown(routing)[:2] == (release.live, "") and not list(folder.iterdir())
    world.store.close()


def test_what_is_no_withdrawal_is_left_alone(tmp_path: Path):
    (tmp_path / "1.withdrawn.json").write_text("{")
    (tmp_path / "notes.txt").write_text("x")
    assert read_intents(tmp_path) == {} and read_intents(tmp_path / "none") == {}
    assert (tmp_path / "1.withdrawn.json").exists()
