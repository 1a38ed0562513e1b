"""Grader versions with their states, reports and approvals, and what people say of rollouts: only ever added."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True)
INSTANT = sa.DateTime(timezone=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "grader_versions",
        sa.Column("name", KEY, nullable=False),
        sa.Column("version", KEY, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_grader_versions"),
    )
    make_history("grader_states", sa.Column("state", sa.String, nullable=False), sa.Column("by", sa.Text, nullable=False))
    make_history(
        "grader_reports",
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("figures", JSON, nullable=False),
    )
    make_history("grader_approvals", sa.Column("by", sa.Text, nullable=False))
    make_human_labels()


def downgrade() -> None:
    for table in ("human_labels", "grader_approvals", "grader_reports", "grader_states", "grader_versions"):
        op.drop_table(table)


def make_history(table: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        table,
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("version", KEY, nullable=False),
        *columns,
        sa.Column("at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(
            ["name", "version"], ["grader_versions.name", "grader_versions.version"], name=f"fk_{table}_name_grader_versions"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(f"ix_{table}_name_version_id", table, ["name", "version", "id"])


def make_human_labels() -> None:
    op.create_table(
        "human_labels",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("rollout_id", KEY),
        sa.Column("row_id", sa.String),
        sa.Column("labeller", sa.Text, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("label", sa.Text),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_human_labels"),
        sa.ForeignKeyConstraint(["rollout_id"], ["job_cards.rollout_id"], name="fk_human_labels_rollout_id_job_cards", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_human_labels_rollout_id_id", "human_labels", ["rollout_id", "id"])
