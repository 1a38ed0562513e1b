"""Many rows at once: they come out as those that SQLAlchemy puts in one by one, and what goes wrong is told as there."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, exc

from observability.rows import add_rows
from observability.store import Store
from observability.tables import artifacts, blobs, ledger

IN_TOKYO = dt.datetime(2026, 3, 1, 9, 30, 0, 123456, dt.timezone(dt.timedelta(hours=9)))
ODD = ("plain", "tab\tand\nline\\N \\. \\x00", "a\0b", "\ud83d half", "'; DROP TABLE x; --", "snow \u2603 \U0001f600", "")


def artifact(number: int, name: str) -> dict[str, Any]:
    facts = {"text": name, "none": None, "list": [1, 2.5, True]}
    return {
        "tenant": "acme",
        "kind": "dataset",
        "id": f"{number}",
        "name": name,
        "run_id": "",
        "parents": [],
        "facts": facts,
        "at": IN_TOKYO,
    }


def entry(tenant: str, seq: int) -> dict[str, Any]:
    digests = {name: "" for name in ("facts", "payload", "previous", "hash")}
    return {"tenant": tenant, "seq": seq, "at": "", "kind": "card", "subject": "one", **digests}


def test_many_rows_are_what_each_by_itself_would_be(store: Store) -> None:
    with store.writing() as connection:
        add_rows(connection, artifacts, [artifact(number, name) for number, name in enumerate(ODD)])
        for number, name in enumerate(ODD):
            connection.execute(sa.insert(artifacts), [artifact(100 + number, name)])
    with store.reading() as connection:
        rows = {int(row["id"]): {**row, "id": ""} for row in connection.execute(sa.select(artifacts)).mappings()}
    for number, name in enumerate(ODD):
        assert rows[number] == rows[100 + number]
        assert rows[number]["at"] == dt.datetime(2026, 3, 1, 0, 30, 0, 123456, dt.UTC)  # nine hours before Tokyo's
        assert rows[number]["facts"] == {"text": name, "none": None, "list": [1, 2.5, True]}
    assert rows[2]["name"] == "a\u2400b"


def test_bytes_stay_as_they_are(store: Store) -> None:
    bodies = [bytes(range(256)), b"", b"\\x41\t\n\\."]
    with store.writing() as connection:
        add_rows(connection, blobs, [{"tenant": "acme", "hash": f"{number}", "body": body} for number, body in enumerate(bodies)])
    with store.reading() as connection:
        assert list(connection.scalars(sa.select(blobs.c.body).order_by(blobs.c.hash))) == bodies


@pytest.mark.parametrize("count", [0, 1, 2])
def test_any_number_of_rows(store: Store, count: int) -> None:
    with store.writing() as connection:
        add_rows(connection, ledger, [entry("acme", seq) for seq in range(count)])
    with store.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(ledger)) == count


def test_what_a_rule_forbids_is_refused_whole_as_sqlalchemy_says_it(store: Store) -> None:
    with pytest.raises(exc.IntegrityError), store.writing() as connection:
        add_rows(connection, ledger, [entry("acme", 1), entry("acme", 2), entry("acme", 1)])
    with store.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(ledger)) == 0


def add_after_losing_it(store: Store) -> None:
    with store.writing() as connection:
        mine = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        with store.engine.connect() as other:
            other.execute(sa.text("SELECT pg_terminate_backend(:pid, 1000)"), {"pid": mine})
        add_rows(connection, ledger, [entry("acme", 1), entry("acme", 2)])


def test_a_connection_that_is_lost_on_the_way_is_told_as_a_store_that_is_away(store: Store) -> None:
    if store.engine.dialect.name != "postgresql":
        pytest.skip("a file has no connection to lose")
    with pytest.raises(exc.OperationalError) as lost:
        add_after_losing_it(store)
    assert lost.value.connection_invalidated
    with store.writing() as connection:  # and the next one is sound
        add_rows(connection, ledger, [entry("acme", 1), entry("acme", 2)])


def test_a_tenants_own_transaction_is_kept_behind_its_policy(store: Store) -> None:
    """PostgreSQL copies nothing into a table behind a policy."""
    if store.engine.dialect.name != "postgresql":
        pytest.skip("nothing is written through SQLite's views")
    with store.of("acme").writing() as connection:
        add_rows(connection, ledger, [entry("acme", 1), entry("acme", 2)])
    with pytest.raises(exc.ProgrammingError, match="row-level security policy"), store.of("acme").writing() as connection:
        add_rows(connection, ledger, [entry("acme", 3), entry("globex", 1)])


def test_postgresql_gets_many_rows_by_copy(store: Store) -> None:
    if store.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no COPY")
    told: list[str] = []

    def note(connection: Any, cursor: Any, *_: object) -> None:
        told.append(cursor.statusmessage)

    event.listen(store.engine, "after_cursor_execute", note)
    with store.writing() as connection:
        add_rows(connection, ledger, [entry("acme", seq) for seq in range(1, 4)])
    assert told == ["COPY 3"]
