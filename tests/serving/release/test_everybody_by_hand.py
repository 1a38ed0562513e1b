"""One person alone does not give everybody a candidate that its figures have not shown to be as good."""

import datetime as dt

import msgspec
import pytest

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Policy, Session
from agent_rft.release.tests import new_tests
from observability.registry import register_agent, report
from observability.release_tables import release_tests
from observability.releases import Move, events, record
from observability.store import migrate, open_store
from serving.release import acts

TENANT = "acme"
AT = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
POLICY = Policy(margin=0.2, rate_margin=0.2)


@pytest.fixture
def store(tmp_path):
    url = f"sqlite:///{tmp_path}/cards.db"
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def release(store):
    """In its canary, at half of the sessions."""
    agents = [register_agent(store, TENANT, Agent(checkpoint=f"run/{number}", tool_set="t1"), f"agent {number}") for number in range(2)]
    for agent in agents:
        report(store, TENANT, agent, "safety", passed=True, figures={}, by="trainer")
    acts.begin_first(store, "ann", TENANT, "desk", agents[0], POLICY)
    release = acts.begin(store, "ann", TENANT, "desk", agents[1], POLICY)
    move = Move(act="advance", stage="canary", share=0.5, why="so far so good")
    record(store, "@controller", TENANT, release.id, move, events(store, TENANT, release.id)[-1].id)
    return release


def test_a_share_of_one_needs_what_full_needs(store, release):
    with pytest.raises(UserError, match="its figures do not show yet that it is as good") as refused:
        acts.to_canary(store, "ann", TENANT, release.id, 1.0)
    assert f"rft release promote {release.id}" in refused.value.cure
    assert acts.to_canary(store, "ann", TENANT, release.id, 0.9).share == 0.9


def test_once_it_is_shown_one_person_is_enough(store, release):
    tests = new_tests(POLICY)
    for _ in range(40):
        for arm in ("live", "candidate"):
            tests.take(Session(arm=arm, session="s", closed_at=AT, turns=1, reward=1.0))
    row = {"tenant": TENANT, "release": release.id, "until": 0, "state": msgspec.to_builtins(tests), "at": AT}
    with store.writing() as connection:
        connection.execute(release_tests.insert(), [row])
    assert acts.to_canary(store, "ann", TENANT, release.id, 1.0).share == 1.0
