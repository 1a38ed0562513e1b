"""A few of the faults that `make faults` tries by the hundred: what was acknowledged is there, once, and the ledger holds."""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2] / "bench" / "faults"
SENDERS = ("cards", "traces")


@pytest.fixture(scope="module")
def faults():
    before = sys.path[:]
    found = runpy.run_path(str(HERE / "__main__.py"), run_name="faults")
    sys.path[:] = before
    return found


@pytest.fixture(scope="module")
def folder():
    """Not one of pytest's: run by root, PostgreSQL belongs to another user, who would be locked out of it."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def on_a_small_disk(faults, folder):
    """SQLite and the spools, on a disk that can be filled; only root may mount one."""
    with contextlib.ExitStack() as stack:
        root = os.geteuid() == 0
        disk = stack.enter_context(faults["small_disk"](folder / "disk", 16)) if root else folder
        world = faults["World"](folder / "small", f"sqlite:///{disk}/cards.db")
        stack.callback(world.close)
        world.spools = disk
        yield world


def test_kills_of_the_server_the_database_and_one_who_sends(faults, folder):
    postgres = faults["Postgres"](folder / "postgres")
    world = faults["World"](folder / "world", postgres.url)
    try:
        with world.clients("kills", SENDERS) as clients:
            for fault in (world.server.kill, postgres.kill, clients.kill_one, world.server.kill, postgres.kill):
                before = len(clients.acknowledged("cards"))
                faults["wait_for"]("cards go on", lambda before=before: len(clients.acknowledged("cards")) > before)
                fault()
                assert world.checker.wrong(clients) == []
            clients.end()
            assert world.checker.wrong(clients) + world.checker.sources(clients, killed=True) == []
            assert len(clients.acknowledged("cards")) >= 20 and clients.acknowledged("traces")
    finally:
        world.close()
        postgres.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk(faults, on_a_small_disk, folder):
    row = faults["once"](on_a_small_disk, faults["Row"]("full", "SQLite"), lambda _: faults["fill"](folder / "disk", 2))
    assert (row.times, row.wrong) == (1, [])
    assert row.cards and row.traces


def test_what_is_lost_or_taken_away_would_be_found(on_a_small_disk):
    world = on_a_small_disk
    with world.clients("tampered", SENDERS) as clients:
        clients.end()
        cards, traces = sorted(clients.acknowledged("cards")), sorted(clients.acknowledged("traces"))
        with world.checker.store.engine.connect() as connection:
            for statement in (
                "PRAGMA foreign_keys=OFF",
                f"DELETE FROM job_cards WHERE rollout_id = '{cards[0]}'",
                f"DELETE FROM card_steps WHERE rollout_id = '{cards[1]}' AND position = 0",
                f"DELETE FROM trace_parts WHERE trace_id = '{traces[0]}'",
                "UPDATE sources SET ranges = '1-2' WHERE ranges <> '' AND tenant = 'tampered'",
            ):
                connection.exec_driver_sql(statement)
            connection.commit()
        wrong = "\n".join(world.checker.wrong(clients))
        assert f"card {cards[0]} was acknowledged and is not there" in wrong
        assert f"card {cards[1]} has 3 steps" in wrong
        assert f"trace {traces[0]} has 0 spans" in wrong
        assert f"card {cards[0]}: removed: it was recorded and is gone from the store" in wrong  # by the ledger
        assert any("nor the last" in one for one in world.checker.sources(clients, killed=False))
