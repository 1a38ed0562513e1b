"""Job cards, their steps, and grades that are only ever added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True)
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    make_job_cards()
    make_card_steps()
    make_grades()


def downgrade() -> None:
    op.drop_table("grades")
    op.drop_table("card_steps")
    op.drop_table("job_cards")


def make_job_cards() -> None:
    op.create_table(
        "job_cards",
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("run_id", sa.String, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("row_id", sa.String, nullable=False),
        sa.Column("sample_index", sa.Integer, nullable=False),
        sa.Column("task_type", sa.Text),
        sa.Column("difficulty", sa.Text),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("reference_answer", JSON),
        sa.Column("context", JSON, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("recorded_at", INSTANT, nullable=False),
        sa.Column("ending", sa.String),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("failed_part", sa.String, nullable=False),
        sa.Column("context_tokens", sa.Integer, nullable=False),
        sa.Column("sampled_tokens", sa.Integer, nullable=False),
        sa.Column("tool_calls", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("tool_seconds", sa.Double, nullable=False),
        sa.Column("advantage", sa.Double),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("checkpoint", sa.String, nullable=False),
        sa.Column("dataset", sa.String, nullable=False),
        sa.Column("tool_set", sa.String, nullable=False),
        sa.Column("grader", sa.String, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.PrimaryKeyConstraint("rollout_id", name="pk_job_cards"),
    )
    op.create_index("ix_job_cards_tenant_started_at_rollout_id", "job_cards", ["tenant", "started_at", "rollout_id"])
    op.create_index("ix_job_cards_run_id_kind_step", "job_cards", ["run_id", "kind", "step"])


def make_card_steps() -> None:
    op.create_table(
        "card_steps",
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("said", sa.Text),
        sa.Column("call_id", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("arguments", JSON),
        sa.Column("output", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("seconds", sa.Double),
        sa.Column("attempts", sa.Integer),
        sa.Column("context_tokens", sa.Integer),
        sa.Column("sampled_tokens", sa.Integer),
        sa.PrimaryKeyConstraint("rollout_id", "position", name="pk_card_steps"),
        sa.ForeignKeyConstraint(["rollout_id"], ["job_cards.rollout_id"], name="fk_card_steps_rollout_id_job_cards", ondelete="CASCADE"),
    )


def make_grades() -> None:
    op.create_table(
        "grades",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("grader", sa.String, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("reward", sa.Double),
        sa.Column("passed", sa.Boolean),
        sa.Column("parts", JSON, nullable=False),
        sa.Column("errors", JSON, nullable=False),
        sa.Column("graded_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_grades"),
        sa.ForeignKeyConstraint(["rollout_id"], ["job_cards.rollout_id"], name="fk_grades_rollout_id_job_cards", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_grades_rollout_id_id", "grades", ["rollout_id", "id"])
