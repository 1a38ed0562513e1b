"""What people say of cards, what is held and erased, who may do what and did, where cards come from, what they were made with.

On PostgreSQL the application reads and writes as a role that row-level security keeps to one tenant.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from agent_rft.contracts.errors import UserError
from observability.rowsecurity import confine, release
from observability.tables import Instant

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MADE = (
    "change_outcomes",
    "trace_parts",
    "reviews",
    "review_queue",
    "queue_fills",
    "erasures",
    "change_requests",
    "api_keys",
    "access_cards",
    "users",
    "traces",
    "sources",
    "saved_views",
    "retention_policies",
    "legal_holds",
    "card_states",
    "artifacts",
    "access_log",
)
"""Children first."""

LEDGERED = (
    "reviews",
    "change_requests",
    "change_outcomes",
    "card_states",
    "legal_holds",
    "erasures",
    "access_log",
    "trace_parts",
)
LISTS = (["tenant", "kind", "started_at", "rollout_id"], ["run_id", "started_at", "rollout_id"], ["started_at", "rollout_id"])
"""The newest cards of a kind, of a run, of all."""


def upgrade() -> None:
    make_people()
    make_reviews()
    make_desk()
    make_keeping()
    make_origins()
    for columns in LISTS:
        op.create_index(f"ix_job_cards_{'_'.join(columns)}", "job_cards", columns)
    empty_the_index_of_words()
    if op.get_bind().dialect.name == "postgresql":
        confine(op.get_bind())


def empty_the_index_of_words() -> None:
    """It was made of other words, and FTS5 forgets a card only when told the very words that it was given. It fills by itself."""
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute("INSERT INTO search_words (search_words) VALUES ('delete-all')" if on_sqlite else "TRUNCATE search_words")
    for table in ("search_cards", "search_marks"):
        op.execute(f"DELETE FROM {table}")


def downgrade() -> None:
    refuse_if_in_use()
    if op.get_bind().dialect.name == "postgresql":
        release(op.get_bind())
    op.drop_column("job_cards", "removed_paths")
    for index, table in (("opening", "job_cards"), ("tools", "job_cards"), ("output_blob", "card_steps")):
        op.drop_index(f"ix_{table}_{index}", table)
    for columns in LISTS:
        op.drop_index(f"ix_job_cards_{'_'.join(columns)}", "job_cards")
    for table in MADE:
        op.drop_table(table)


def refuse_if_in_use() -> None:
    """The ledger has entries of these rows and goes on without them: each would be missed for ever after."""
    count = "SELECT count(*) FROM {}".format
    rows = {table: op.get_bind().scalar(sa.text(count(table))) or 0 for table in LEDGERED}
    rows["job_cards"] = op.get_bind().scalar(sa.text(count("job_cards WHERE removed_paths IS NOT NULL"))) or 0
    if any(rows.values()):
        held = ", ".join(f"{table} ({number:,})" for table, number in rows.items() if number)
        what = f"the store cannot go back before revision {revision}: what is in {held} is in the ledger too, and has no place there"
        raise UserError(what, "bring back a backup from before the upgrade, or stay at this version")


def make_people() -> None:
    op.create_table(
        "users",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("disabled_at", Instant, nullable=True),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_users"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", KEY, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("user", KEY, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("use", sa.String, nullable=False),
        sa.Column("scopes", JSON, nullable=True),
        sa.Column("at", Instant, nullable=False),
        sa.Column("expires_at", Instant, nullable=True),
        sa.Column("revoked_at", Instant, nullable=True),
        sa.Column("opened_with", KEY, nullable=True),
        sa.Column("rotated_to", KEY, nullable=True),
        sa.ForeignKeyConstraint(["tenant", "user"], ["users.tenant", "users.name"], name="fk_api_keys_tenant_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
    )
    op.create_index("ix_api_keys_tenant_user", "api_keys", ["tenant", "user"])
    op.create_table(
        "access_log",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("cards", sa.Integer, nullable=False),
        sa.Column("cards_digest", sa.String, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_access_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_access_log_tenant_entry", "access_log", ["tenant", "entry"])
    op.create_table(
        "access_cards",
        sa.Column("access", NUMBER, autoincrement=False, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.ForeignKeyConstraint(["access"], ["access_log.id"], name="fk_access_cards_access_access_log", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("access", "rollout_id", name="pk_access_cards"),
    )
    op.create_index("ix_access_cards_rollout_id_access", "access_cards", ["rollout_id", "access"])


def make_reviews() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("position", sa.Integer, nullable=True),
        sa.Column("verdict", sa.String, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.ForeignKeyConstraint(
            ["rollout_id", "tenant"],
            ["job_cards.rollout_id", "job_cards.tenant"],
            name="fk_reviews_rollout_id_job_cards",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reviews_rollout_id_id", "reviews", ["rollout_id", "id"])
    op.create_table(
        "change_requests",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("row_id", sa.String, nullable=False),
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.ForeignKeyConstraint(
            ["rollout_id", "tenant"],
            ["job_cards.rollout_id", "job_cards.tenant"],
            name="fk_change_requests_rollout_id_job_cards",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_change_requests"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_change_requests_tenant_id", "change_requests", ["tenant", "id"])
    op.create_index("ix_change_requests_rollout_id_id", "change_requests", ["rollout_id", "id"])
    op.create_table(
        "change_outcomes",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("request", sa.BigInteger, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("how", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.ForeignKeyConstraint(["request"], ["change_requests.id"], name="fk_change_outcomes_request_change_requests", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_change_outcomes"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_change_outcomes_request_id", "change_outcomes", ["request", "id"])
    op.create_index("ix_change_outcomes_rollout_id_id", "change_outcomes", ["rollout_id", "id"])
    op.create_table(
        "card_states",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_card_states"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_card_states_rollout_id_id", "card_states", ["rollout_id", "id"])


def make_desk() -> None:
    op.create_table(
        "review_queue",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("reason", KEY, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id", "tenant"],
            ["job_cards.rollout_id", "job_cards.tenant"],
            name="fk_review_queue_rollout_id_job_cards",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "rollout_id", "reason", name="pk_review_queue"),
    )
    op.create_table(
        "saved_views",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("query", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", name="pk_saved_views"),
    )


def make_keeping() -> None:
    op.create_table(
        "legal_holds",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("name", KEY, nullable=False),
        sa.Column("act", sa.String, nullable=False),
        sa.Column("query", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_legal_holds"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_legal_holds_tenant_name_id", "legal_holds", ["tenant", "name", "id"])
    op.create_table(
        "erasures",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_erasures"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_erasures_rollout_id_id", "erasures", ["rollout_id", "id"])
    op.add_column("job_cards", sa.Column("removed_paths", JSON))
    op.create_index("ix_job_cards_opening", "job_cards", ["opening"])
    op.create_index("ix_job_cards_tools", "job_cards", ["tools"])
    named = sa.text("output_blob IS NOT NULL")
    op.create_index("ix_card_steps_output_blob", "card_steps", ["output_blob"], sqlite_where=named, postgresql_where=named)
    op.create_table(
        "queue_fills",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("until", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("policy", JSON, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "until", name="pk_queue_fills"),
    )
    op.create_table(
        "retention_policies",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("kind", KEY, nullable=False),
        sa.Column("days", sa.Integer, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "kind", name="pk_retention_policies"),
    )


def make_origins() -> None:
    op.create_table(
        "sources",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("source", KEY, nullable=False),
        sa.Column("ranges", sa.Text, nullable=False),
        sa.Column("announced", sa.BigInteger, nullable=True),
        sa.Column("sample_rate", sa.Double, nullable=True),
        sa.Column("first_at", Instant, nullable=False),
        sa.Column("last_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "source", name="pk_sources"),
    )
    op.create_table(
        "traces",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("trace_id", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("carded", sa.Boolean, nullable=False),
        sa.Column("last_at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "trace_id", name="pk_traces"),
    )
    op.create_index("ix_traces_carded_last_at", "traces", ["carded", "last_at"])
    op.create_index("ix_traces_tenant_rollout_id", "traces", ["tenant", "rollout_id"])
    op.create_table(
        "trace_parts",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("trace_id", KEY, nullable=False),
        sa.Column("hash", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("spans", sa.Integer, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=True),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant", "trace_id"], ["traces.tenant", "traces.trace_id"], name="fk_trace_parts_tenant_traces", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "trace_id", "hash", name="pk_trace_parts"),
    )
    op.create_index("ix_trace_parts_tenant_rollout_id", "trace_parts", ["tenant", "rollout_id"])
    op.create_table(
        "artifacts",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("kind", KEY, nullable=False),
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("run_id", sa.String, nullable=False),
        sa.Column("parents", JSON, nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "kind", "id", name="pk_artifacts"),
    )
