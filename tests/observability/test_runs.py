"""Runs in hand, in the store: whose they are, and who may go on with one."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator

import msgspec
import pytest
import sqlalchemy as sa

from observability import runs
from observability.release_tables import agent_runs
from observability.runs import Kept, Run
from observability.store import Store

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def later(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


@pytest.fixture
def store(migrated: Store) -> Iterator[Store]:
    yield migrated
    with migrated.writing() as connection:
        connection.execute(sa.delete(agent_runs))


def a_run(rollout_id: str = "r-1", **more: object) -> Run:
    run = Run(
        tenant="acme", rollout_id=rollout_id, client_id=None, service="research", session="s-1", agent="agent-1", arm="live", release=0,
        state="running", request={"hash": "h"}, rollout=b"story", waits_for=None, owner="one", lease_until=later(5), at=NOW, changed_at=NOW,
    )  # fmt: skip
    return msgspec.structs.replace(run, **more)


def accept(store: Store, *accepted: Run) -> list[Run]:
    with store.writing() as connection:
        return [runs.accept(connection, run) for run in accepted]


def keep(store: Store, owner: str, kept: Kept) -> bool:
    with store.writing() as connection:
        return runs.keep(connection, kept, owner, NOW, later(5))


def test_a_run_is_read_back_as_it_was_accepted(store):
    (run,) = accept(store, a_run(client_id="mine"))
    assert runs.found(store, "acme", "r-1") == run == a_run(client_id="mine")
    assert runs.found(store, "other", "r-1") is None


def test_a_callers_id_names_one_run_of_its_tenant(store):
    first, again, others = accept(
        store, a_run(client_id="mine"), a_run("r-2", client_id="mine"), a_run("r-3", client_id="mine", tenant="other")
    )
    assert (first.rollout_id, again.rollout_id, others.rollout_id) == ("r-1", "r-1", "r-3")


def test_only_its_owner_keeps_a_run(store):
    accept(store, a_run())
    kept = Kept("acme", "r-1", "running", "agent-2", "live", b"more")
    assert not keep(store, "two", kept) and runs.found(store, "acme", "r-1") == a_run()
    assert keep(store, "one", kept)
    assert (runs.found(store, "acme", "r-1") or a_run()).rollout == b"more"


def test_a_run_whose_lease_is_over_is_taken_up_by_one_of_all_who_would(store):
    accept(store, *(a_run(f"r-{n}") for n in range(6)), a_run("done", state="done"), a_run("parked", state="parked"))
    assert runs.take_over(store, "two", later(4), later(9)) == [], "its owner lives"
    runs.renew(store, "one", [("acme", "r-0")], later(30))
    taken: dict[str, list[Run]] = {}
    threads = [
        threading.Thread(target=lambda owner=owner: taken.update({owner: runs.take_over(store, owner, later(6), later(9))}))
        for owner in ("two", "three")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.rollout_id for some in taken.values() for run in some) == [f"r-{n}" for n in range(1, 6)]
    for owner, some in taken.items():
        assert {(runs.found(store, "acme", run.rollout_id) or a_run()).owner for run in some} <= {owner}


def test_whoever_leaves_in_peace_leaves_its_runs_to_others_at_once(store):
    accept(store, a_run())
    runs.let_go(store, "one", NOW)
    assert [run.owner for run in runs.take_over(store, "two", later(0.1), later(5))] == ["two"]


def test_a_parked_run_has_no_owner_and_one_takes_it_up(store):
    accept(store, a_run())
    assert keep(store, "one", Kept("acme", "r-1", "parked", "agent-1", "live", b"story", 41))
    parked = runs.found(store, "acme", "r-1")
    assert parked and (parked.owner, parked.state, parked.waits_for) == ("", "parked", 41)
    assert runs.take_over(store, "two", later(100), later(105)) == []
    assert runs.unpark(store, "acme", "r-1", "two", later(5)) is not None
    assert runs.unpark(store, "acme", "r-1", "three", later(5)) is None


def test_words_of_what_is_over_are_forgotten_and_no_others(store):
    accept(store, a_run("old", state="done"), a_run("new", state="done", changed_at=later(60)), a_run("running"))
    assert runs.forget(store, later(30)) == 1
    assert [runs.found(store, "acme", name) is None for name in ("old", "new", "running")] == [True, False, False]
