"""Stores to record in, on SQLite and on PostgreSQL, and a maker of cards."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_rft.contracts.jobcards import JobCard
from observability import release_tables as of_releases
from observability.store import Store, migrate, open_store
from observability.tables import access_cards, access_log, api_keys, artifacts, ledger, users

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def make_card() -> Callable[..., JobCard]:
    return runpy.run_path(str(HERE / "sample_cards.py"))["make_card"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store of each kind."""
    return request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{tmp_path}/cards.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:///{tmp_path}/cards.db")
    yield store
    store.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One store of each kind for a module whose tests leave rows in few tables only."""
    folder = tmp_path_factory.mktemp("store")
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else f"sqlite:///{folder}/cards.db"
    migrate(url)
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def peoples_store(migrated: Store) -> Iterator[Store]:
    """Without users, keys and accesses, and with an empty ledger."""
    yield migrated
    with migrated.writing() as connection:
        for table in (access_cards, access_log, api_keys, users, ledger):
            connection.execute(table.delete())


@pytest.fixture
def release_store(migrated: Store) -> Iterator[Store]:
    """Without agents, releases and what they are decided on."""
    yield migrated
    names = ("release_events", "releases", "release_turns", "release_sessions", "release_tests", "outbox", "leases")
    with migrated.writing() as connection:
        for table in (*(getattr(of_releases, name) for name in names), artifacts, ledger):
            connection.execute(table.delete())
