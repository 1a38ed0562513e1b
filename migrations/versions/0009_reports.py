"""What was found out about agents offline is entered in the ledger: whether an agent meets anybody rests on it.

Until now a report was one of the artifacts, and a change of it showed nowhere. Each that is there is entered in the order of its time,
and from now on a change shows. What was changed before cannot be known.
"""

from __future__ import annotations

import datetime as dt
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

from observability.book import Book
from observability.chain import facts_digest
from observability.halves import moment_text, report_halves
from observability.records import Values
from observability.rowsecurity import confine_tables
from observability.tables import Instant

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
REPORTS = sa.table(
    "agent_reports",
    *(sa.column(name, KEY) for name in ("tenant", "agent")),
    sa.column("kind", sa.String),
    sa.column("passed", sa.Boolean),
    sa.column("figures", JSON),
    sa.column("by", sa.Text),
    sa.column("at", Instant),
    sa.column("entry", sa.BigInteger),
)
ARTIFACTS = sa.table(
    "artifacts",
    *(sa.column(name, KEY) for name in ("tenant", "kind", "id")),
    *(sa.column(name, sa.Text) for name in ("name", "run_id")),
    *(sa.column(name, JSON) for name in ("parents", "facts")),
    sa.column("at", Instant),
)
OF_AGENTS = sa.and_(ARTIFACTS.c.kind == "report", ARTIFACTS.c.run_id == "")
"""A run's report says which run's it is."""
LEDGER = sa.table(
    "ledger",
    *(sa.column(name, KEY) for name in ("tenant", "kind", "subject")),
    sa.column("facts", sa.String),
    sa.column("seq", sa.BigInteger),
)


def upgrade() -> None:
    op.create_table(
        "agent_reports",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("agent", KEY, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("figures", JSON, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agent_reports"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_agent_reports_tenant_agent_entry", "agent_reports", ["tenant", "agent", "entry"])
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        confine_tables(connection, {"agent_reports": "SELECT, INSERT"})
    move_from_artifacts(connection)


def downgrade() -> None:
    """The entries stay in the ledger, where code from before passes over them; an upgrade finds them again."""
    connection = op.get_bind()
    rows = [dict(row) for row in connection.execute(sa.select(REPORTS).order_by(REPORTS.c.entry)).mappings()]
    if rows:
        connection.execute(sa.insert(ARTIFACTS), [as_artifact(row) for row in rows])
    op.drop_table("agent_reports")


def move_from_artifacts(connection: sa.Connection) -> None:
    select = sa.select(ARTIFACTS.c.tenant, ARTIFACTS.c.facts).where(OF_AGENTS)
    rows = [as_row(tenant, facts) for tenant, facts in connection.execute(select)]
    rows.sort(key=lambda row: (row["tenant"], row["at"], row["agent"], row["kind"]))
    for tenant, of_tenant in groupby(rows, key=lambda row: row["tenant"]):
        book, entered = Book(connection, [tenant]), entries_of(connection, tenant)
        for row in of_tenant:
            halves = report_halves(row)
            known = entered.get((row["agent"], facts_digest(halves.facts)))
            if known is None:
                book.enter("report", row["agent"], row, halves)
            else:
                row["entry"] = known
        book.close()
    if rows:
        rows.sort(key=lambda row: (row["tenant"], row["entry"]))  # ids grow with the entries, as everywhere
        connection.execute(sa.insert(REPORTS), rows)
        connection.execute(sa.delete(ARTIFACTS).where(OF_AGENTS))


def entries_of(connection: sa.Connection, tenant: str) -> dict[tuple[str, str], int]:
    """By agent and digest: what an upgrade before a downgrade has entered."""
    mine = sa.select(LEDGER).where(LEDGER.c.tenant == tenant, LEDGER.c.kind == "report")
    return {(row.subject, row.facts): row.seq for row in connection.execute(mine)}


def as_row(tenant: str, facts: dict[str, Any]) -> Values:
    told = {name: facts[name] for name in ("agent", "kind", "passed", "figures", "by")}
    return told | {"tenant": tenant, "at": dt.datetime.fromisoformat(facts["at"])}


def as_artifact(row: Values) -> Values:
    agent, kind, at = row["agent"], row["kind"], moment_text(row["at"])
    facts = {name: row[name] for name in ("agent", "kind", "passed", "figures", "by")} | {"at": at}
    named = {"tenant": row["tenant"], "kind": "report", "id": f"{agent}/{kind}/{at}", "name": f"{kind} of {agent}", "run_id": ""}
    return named | {"parents": [["agent", agent]], "facts": facts, "at": row["at"]}
