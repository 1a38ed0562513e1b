"""A store is made, migrated and refused as it should be."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy import exc

import observability.store as stores
from agent_rft.contracts.errors import UserError
from observability.cards import find_card
from observability.ingest import StoreRecorder
from observability.partitions import is_partition
from observability.store import alembic_config, drift, migrate, open_store

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GRADER_TABLES = {"grader_versions", "grader_states", "grader_reports", "grader_approvals", "human_labels"}
LEDGER_TABLES = {"blobs", "ledger", "ledger_roots"}
SEARCH_TABLES = {"search_cards", "search_marks"}
PEOPLE_TABLES = {"users", "api_keys", "access_log", "access_cards", "reviews", "change_requests", "change_outcomes", "card_states"}
PEOPLE_TABLES |= {"review_queue", "queue_fills", "saved_views", "legal_holds", "erasures", "retention_policies"}
PEOPLE_TABLES |= {"sources", "traces", "trace_parts", "artifacts"}
RELEASE_TABLES = {"releases", "release_events", "release_turns", "release_sessions", "release_tests", "agent_runs", "leases"}
RELEASE_TABLES |= {
    "agent_reports",
    "approvals",
    "approval_decisions",
    "approval_uses",
    "tool_results",
    "outbox",
    "alarms",
    "monitor_states",
}
TABLES = {"alembic_version", "job_cards", "card_steps", "grades"} | GRADER_TABLES | LEDGER_TABLES | SEARCH_TABLES
TABLES |= PEOPLE_TABLES | RELEASE_TABLES
pytestmark = pytest.mark.usefixtures("migrations_themselves")


def table_names(store):
    return {name for name in sa.inspect(store.engine).get_table_names() if not is_partition(name) and not name.startswith("search_words")}


def test_an_embedded_store_makes_its_folder_and_tables_by_itself(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/new/folder/cards.db")
    assert table_names(store) == TABLES
    open_store(f"sqlite:///{tmp_path}/new/folder/cards.db")  # and is simply opened the next time


def test_a_commit_to_an_embedded_store_is_on_the_disk_when_it_returns(sqlite_store):
    with sqlite_store.reading() as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert settings == ["wal", 2, 1]  # 2 is FULL


def test_postgresql_is_only_migrated_when_told_to(postgres):
    url = postgres(bare=True)
    with pytest.raises(UserError, match=r"revision none, this code needs 0009\n.*make migrate"):
        open_store(url)
    assert migrate(url) == "0009"
    assert "job_cards" in table_names(open_store(url))


def test_the_tables_and_the_migrations_say_the_same(store):
    with store.reading() as connection:
        assert drift(connection) == []


def test_drift_would_be_seen(store):
    with store.writing() as connection:
        connection.execute(sa.text("ALTER TABLE job_cards ADD COLUMN stray INTEGER"))
    with store.reading() as connection:
        assert drift(connection) != []


def test_down_and_up_again_with_cards_in_place(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(make_card())
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert table_names(store) == {"alembic_version"}
    with store.writing() as connection:
        command.upgrade(alembic_config(connection), "head")
    with StoreRecorder(store) as recorder:
        recorder.record(make_card())
    assert recorder.acknowledged == 1


def test_a_store_of_the_first_revision_keeps_its_cards_and_gains_the_graders(store, make_card):
    with StoreRecorder(store) as recorder:
        recorder.record(make_card())
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), "0001")
    assert table_names(store) == TABLES - GRADER_TABLES - LEDGER_TABLES - SEARCH_TABLES - PEOPLE_TABLES - RELEASE_TABLES
    with store.writing() as connection:
        command.upgrade(alembic_config(connection), "head")
    assert table_names(store) == TABLES
    assert find_card(store, make_card().rollout_id).card.grade == make_card().grade


def test_cards_from_before_cards_kept_their_rows_own_keys_read_back_without_and_new_ones_with(store, make_card):
    item = {"expected": {"tolerance_rel": 0.02}, "rubric": ["be brief"]}
    with StoreRecorder(store) as recorder:
        recorder.record(make_card("old", item=item))
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), "0002")
    assert "item" not in {column["name"] for column in sa.inspect(store.engine).get_columns("job_cards")}
    with store.writing() as connection:
        command.upgrade(alembic_config(connection), "head")
    with StoreRecorder(store) as recorder:
        recorder.record(make_card("new", item=item))
        recorder.record(make_card("bare", item={}))
    assert [find_card(store, one).card.item for one in ("old", "new", "bare")] == [None, item, {}]
    assert find_card(store, "old").card.metadata == make_card().metadata


def test_a_migration_that_fails_leaves_the_store_as_it_was(store):
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), "base")
        connection.execute(sa.text("CREATE TABLE grades (id INTEGER)"))  # in the way of the last table to be made
    with pytest.raises(UserError, match="cannot be opened"):
        stores._reaching(store, lambda: stores._upgrade(store))
    assert table_names(store) == {"alembic_version", "grades"}


def test_a_store_newer_than_the_code_is_refused(url):
    migrate(url)
    with stores._store(url).writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"revision 9999, newer than this code \(0009\)"):
        open_store(url)
    with pytest.raises(UserError, match="update agent-rft"):
        migrate(url)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("cards.db", "no database URL"),
        ("mysql://host/cards", "no job-card store on mysql"),
        ("sqlite://", "forgotten on exit"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", r"postgresql://nobody:\*\*\*@127.0.0.1:1/none cannot be opened"),
    ],
)
def test_a_wrong_url_is_explained(wrong, says):
    with pytest.raises(UserError, match=says) as raised:
        open_store(wrong)
    assert raised.value.cure
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)
    with pytest.raises(UserError, match="file is not a database"):
        open_store(f"sqlite:///{file}")
    assert file.read_text() == "not a database " * 100


def test_processes_that_open_the_same_new_store_at_once_all_succeed(tmp_path):
    url = f"sqlite:///{tmp_path}/cards.db"
    script = [sys.executable, str(HERE / "open_and_record.py"), url]
    children = [subprocess.Popen([*script, f"p{i}", "40"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for i in range(3)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0]
    with open_store(url).reading() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM job_cards")) == 120


def test_migrations_of_one_postgresql_database_take_turns(postgres):
    url = postgres(bare=True)
    store = stores._store(url)
    migrating = threading.Thread(target=migrate, args=[url])
    with stores._alone(store):  # another process is at it
        migrating.start()
        migrating.join(timeout=0.5)
        assert migrating.is_alive()
        assert table_names(store) == set()
    migrating.join(timeout=10)
    assert "job_cards" in table_names(store)
    assert migrate(url) == "0009"  # and one that finds the work done has nothing to do


def test_the_migrations_are_found_where_the_package_is_installed(tmp_path):
    for package in ("agent_rft/contracts", "observability", "migrations"):
        shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "import observability.store as s; s.open_store(); print(s.MIGRATIONS)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == str(tmp_path / "site" / "migrations")
    assert (tmp_path / "runs" / "cards.db").exists()


def test_a_tenants_question_that_takes_too_long_is_ended_and_only_there(postgres):
    """On SQLite the patience of the pages is the only limit."""
    url = postgres()
    migrate(url)
    with closing(open_store(url)) as store:
        slow, hurried = sa.select(sa.func.pg_sleep(0.3)), store.ending_questions_after(0.05)
        with hurried.of("acme").reading() as connection, pytest.raises(exc.OperationalError, match="statement timeout"):
            connection.execute(slow)
        for unhurried in (hurried, store.of("acme")):  # the same connection, again out of the pool
            with unhurried.reading() as connection:
                connection.execute(slow)


def test_a_server_that_takes_connections_and_says_nothing_is_away_within_seconds(monkeypatch):
    """Who rolls back at night must not wait for it."""
    monkeypatch.setitem(stores.PROMPT, "connect_timeout", 2)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        with pytest.raises(stores.StoreAway, match="timeout"):
            open_store(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/cards")
