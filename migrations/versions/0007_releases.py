"""Releases and what decides them, the runs that gateways have in hand, what a person has to allow, whom to tell."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from agent_rft.contracts.errors import UserError
from observability.rowsecurity import confine_tables
from observability.tables import Instant

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
LEDGERED = ("approval_uses", "approval_decisions", "approvals", "release_events", "releases")
MADE = (
    *LEDGERED,
    "release_turns",
    "release_sessions",
    "release_tests",
    "agent_runs",
    "leases",
    "tool_results",
    "outbox",
    "alarms",
    "monitor_states",
)
"""Children first."""
RIGHTS = {
    **dict.fromkeys(("releases", "release_events", "approval_decisions", "approval_uses", "alarms", "release_sessions"), "SELECT, INSERT"),
    **dict.fromkeys(("approvals", "release_turns", "release_tests", "agent_runs", "outbox", "monitor_states"), "SELECT, INSERT, UPDATE"),
    "tool_results": "SELECT, INSERT, UPDATE, DELETE",
}
"""Of the application's role. Who does what only one may do (leases) is the server's own affair."""


def upgrade() -> None:
    make_releases()
    make_figures()
    make_runs()
    make_approvals()
    make_alarms()
    if op.get_bind().dialect.name == "postgresql":
        confine_tables(op.get_bind(), RIGHTS)


def downgrade() -> None:
    refuse_if_in_use()
    for table in MADE:
        op.drop_table(table)


def refuse_if_in_use() -> None:
    """The ledger has entries of these rows and goes on without them: each would be missed for ever after."""
    rows = {table: op.get_bind().scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0 for table in LEDGERED}
    if any(rows.values()):
        held = ", ".join(f"{table} ({number:,})" for table, number in rows.items() if number)
        what = f"the store cannot go back before revision {revision}: what is in {held} is in the ledger too, and has no place there"
        raise UserError(what, "bring back a backup from before the upgrade, or stay at this version")


def make_releases() -> None:
    op.create_table(
        "releases",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("service", KEY, nullable=False),
        sa.Column("candidate", KEY, nullable=False),
        sa.Column("live", KEY, nullable=False),
        sa.Column("policy", JSON, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_releases"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_releases_tenant_service_id", "releases", ["tenant", "service", "id"])
    op.create_table(
        "release_events",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("act", sa.String, nullable=False),
        sa.Column("stage", sa.String, nullable=False),
        sa.Column("share", sa.Double, nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("cut", sa.Boolean, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("figures", JSON, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["release"], ["releases.id"], name="fk_release_events_release_releases", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_release_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_release_events_release_id", "release_events", ["release", "id"])


def make_figures() -> None:
    op.create_table(
        "release_turns",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("session", KEY, nullable=False),
        sa.Column("arm", sa.String, nullable=False),
        sa.Column("shadow", sa.Boolean, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("failed", sa.Boolean, nullable=False),
        sa.Column("tool_calls", sa.Integer, nullable=False),
        sa.Column("tool_failures", sa.Integer, nullable=False),
        sa.Column("violations", JSON, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("to_grade", sa.Boolean, nullable=False),
        sa.Column("graded_at", Instant, nullable=True),
        sa.Column("reward", sa.Double, nullable=True),
        sa.Column("holdout", sa.Double, nullable=True),
        sa.Column("counted", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "rollout_id", name="pk_release_turns"),
    )
    op.create_index("ix_release_turns_release_counted_session", "release_turns", ["release", "counted", "session"])
    op.create_index("ix_release_turns_release_arm_at", "release_turns", ["release", "arm", "at"])
    op.create_index("ix_release_turns_to_grade_graded_at_at", "release_turns", ["to_grade", "graded_at", "at"])
    op.create_table(
        "release_sessions",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("shadow", sa.Boolean, nullable=False),
        sa.Column("session", KEY, nullable=False),
        sa.Column("arm", sa.String, nullable=False),
        sa.Column("closed_at", Instant, nullable=False),
        sa.Column("turns", sa.Integer, nullable=False),
        sa.Column("reward", sa.Double, nullable=True),
        sa.Column("holdout", sa.Double, nullable=True),
        sa.Column("errors", sa.Double, nullable=False),
        sa.Column("tool_failures", sa.Double, nullable=False),
        sa.Column("slow", sa.Double, nullable=False),
        sa.Column("unsafe", sa.Double, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_release_sessions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_release_sessions_release_id", "release_sessions", ["release", "id"])
    op.create_index(
        "ix_release_sessions_release_shadow_arm_session", "release_sessions", ["release", "shadow", "arm", "session"], unique=True
    )
    op.create_table(
        "release_tests",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("state", JSON, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "release", name="pk_release_tests"),
    )


def make_runs() -> None:
    op.create_table(
        "agent_runs",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("client_id", KEY, nullable=True),
        sa.Column("service", KEY, nullable=False),
        sa.Column("session", KEY, nullable=False),
        sa.Column("agent", KEY, nullable=False),
        sa.Column("arm", sa.String, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("request", JSON, nullable=False),
        sa.Column("rollout", sa.LargeBinary, nullable=False),
        sa.Column("waits_for", sa.BigInteger, nullable=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("lease_until", Instant, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("changed_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "rollout_id", name="pk_agent_runs"),
    )
    op.create_index("ix_agent_runs_state_lease_until", "agent_runs", ["state", "lease_until"])
    op.create_index("ix_agent_runs_tenant_client_id", "agent_runs", ["tenant", "client_id"], unique=True)
    op.create_table(
        "leases",
        sa.Column("name", KEY, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("until", Instant, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def make_approvals() -> None:
    op.create_table(
        "approvals",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("call_id", KEY, nullable=False),
        sa.Column("tool", KEY, nullable=False),
        sa.Column("arguments", JSON, nullable=True),
        sa.Column("arguments_hash", sa.String, nullable=False),
        sa.Column("expires_at", Instant, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_approvals"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_approvals_rollout_id_id", "approvals", ["rollout_id", "id"])
    op.create_index("ix_approvals_tenant_id", "approvals", ["tenant", "id"])
    op.create_table(
        "approval_decisions",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("approval", sa.BigInteger, nullable=False),
        sa.Column("decision", sa.String, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.ForeignKeyConstraint(["approval"], ["approvals.id"], name="fk_approval_decisions_approval_approvals", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_approval_decisions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_approval_decisions_approval", "approval_decisions", ["approval"], unique=True)
    op.create_table(
        "approval_uses",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("approval", sa.BigInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["approval"], ["approvals.id"], name="fk_approval_uses_approval_approvals", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_approval_uses"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_approval_uses_approval", "approval_uses", ["approval"], unique=True)
    op.create_table(
        "tool_results",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("call_id", KEY, nullable=False),
        sa.Column("tool", KEY, nullable=False),
        sa.Column("body_hash", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("output", sa.Text, nullable=True),
        sa.Column("error", sa.String, nullable=True),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "rollout_id", "call_id", name="pk_tool_results"),
    )
    op.create_index("ix_tool_results_at", "tool_results", ["at"])


def make_alarms() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("body", JSON, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("next_at", Instant, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("sent_at", Instant, nullable=True),
        sa.Column("trouble", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_sent_at_next_at", "outbox", ["sent_at", "next_at"])
    op.create_table(
        "alarms",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("service", KEY, nullable=False),
        sa.Column("monitor", KEY, nullable=False),
        sa.Column("alarmed", sa.Boolean, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("figures", JSON, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alarms"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alarms_tenant_service_monitor_id", "alarms", ["tenant", "service", "monitor", "id"])
    op.create_table(
        "monitor_states",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("service", KEY, nullable=False),
        sa.Column("monitor", KEY, nullable=False),
        sa.Column("state", JSON, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "service", "monitor", name="pk_monitor_states"),
    )
