"""A store confined to a tenant shows nobody else's rows, however it is asked, and writes nobody else's."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from observability.find import count, page
from observability.ingest import StoreRecorder
from observability.query import EVERY_CARD
from observability.store import alembic_config
from observability.tables import job_cards, ledger, metadata


@pytest.fixture
def shared(store, make_card):
    """Two cards of acme, one of rival."""
    with StoreRecorder(store) as recorder:
        for number, tenant in enumerate(("acme", "acme", "rival")):
            recorder.record(make_card(f"0198c2d4-0000-7000-8000-00000000000{number}", tenant=tenant))
    return store


def rows(connection, table):
    return connection.scalar(sa.select(sa.func.count()).select_from(table))


def test_a_tenant_sees_its_own_rows_of_every_table_and_no_others(shared):
    everything = {}
    with shared.reading() as connection:
        for table in metadata.tables.values():
            if "tenant" in table.c:
                everything[table.name] = dict(connection.execute(sa.select(table.c.tenant, sa.func.count()).group_by(table.c.tenant)).all())
    assert everything["job_cards"] == {"acme": 2, "rival": 1}
    for tenant in ("acme", "rival", "nobody", ""):
        with shared.of(tenant).reading() as connection:
            for name, of_tenant in everything.items():
                assert rows(connection, metadata.tables[name]) == of_tenant.get(tenant, 0), name


def test_questions_that_name_no_tenant_are_answered_for_the_one_it_is_confined_to(shared):
    assert count(shared, EVERY_CARD) == 3
    assert count(shared.of("rival"), EVERY_CARD) == 1
    assert [line.rollout_id[-1] for line in page(shared.of("rival"), EVERY_CARD, 10)] == ["2"]


def test_a_connection_that_served_one_tenant_serves_the_next_and_everybody_after_it(shared):
    for tenant, seen in (("acme", 2), ("rival", 1), ("acme", 2)):
        with shared.of(tenant).reading() as connection:
            assert rows(connection, job_cards) == seen
    with shared.reading() as connection:
        assert rows(connection, job_cards) == 3


def test_another_tenants_tables_cannot_be_named_past_the_policy(shared):
    """On PostgreSQL not even by the partition's own name. (SQLite has no rights: there only our own code asks.)"""
    if shared.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no roles")
    with shared.reading() as connection:
        partitions = list(connection.scalars(sa.text("SELECT DISTINCT tableoid::regclass::text FROM job_cards")))
    with shared.of("rival").reading() as connection, pytest.raises(exc.ProgrammingError, match="permission denied"):
        connection.execute(sa.text(f"SELECT * FROM {partitions[0]}"))


def test_on_postgresql_a_tenant_writes_its_own_rows_only_and_changes_no_record(shared):
    if shared.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no roles")
    one = {"tenant": "acme", "name": "mine", "query": "kind:eval", "by": "ann", "at": sa.func.now()}
    views = metadata.tables["saved_views"]
    with pytest.raises(exc.ProgrammingError, match="row-level security"), shared.of("rival").writing() as connection:
        connection.execute(sa.insert(views).values(**one))
    with shared.of("acme").writing() as connection:
        connection.execute(sa.insert(views).values(**one))
    with shared.of("rival").writing() as connection:
        assert connection.execute(sa.delete(views)).rowcount == 0
        assert connection.execute(sa.update(job_cards).values(answer="forged")).rowcount == 1  # its own
    for statement in (sa.delete(ledger), sa.update(ledger).values(facts=""), sa.delete(job_cards), sa.text("TRUNCATE ledger")):
        with pytest.raises(exc.ProgrammingError, match="permission denied"), shared.of("acme").writing() as connection:
            connection.execute(statement)


def test_down_again_the_tables_are_open_as_before(store):
    from alembic import command

    with store.writing() as connection:
        command.downgrade(alembic_config(connection), "0005")
        if connection.dialect.name == "postgresql":
            assert connection.scalar(sa.text("SELECT count(*) FROM pg_policies")) == 0
        command.upgrade(alembic_config(connection), "head")
