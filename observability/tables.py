"""The store's tables, one definition for SQLite and PostgreSQL.

What the agent claims and what the system observed stand in separate columns. Token ids and log-probabilities are not
stored: they are training data, ten times the size of the words they spell, and no reviewer reads them; their counts are.
JSON is kept as the text that came (json, not jsonb): jsonb refuses a NUL character, which a model may well sample,
and forgets the order of keys. What reviewers filter by has a column of its own.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class Words(sa.types.TypeDecorator[str]):
    """Text that a model, a tool or a user wrote, made storable: a NUL becomes its picture, half a surrogate pair the
    replacement character. PostgreSQL refuses the first, UTF-8 the second, and one such answer must not hold up a store."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "\u2400").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Instant(sa.types.TypeDecorator[dt.datetime]):
    """A moment in UTC. SQLite forgets time zones, so every moment goes in as UTC and comes out saying so."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        return value and value.astimezone(dt.UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dt.datetime | None:
        return value and (value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC))


Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")  # sorted by code point on both: prefixes are ranges
Json = sa.JSON(none_as_null=True)

job_cards = sa.Table(
    "job_cards",
    metadata,
    sa.Column("rollout_id", Key, primary_key=True),
    # which job
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("run_id", sa.String, nullable=False),
    sa.Column("step", sa.Integer),
    sa.Column("row_id", sa.String, nullable=False),
    sa.Column("sample_index", sa.Integer, nullable=False),
    sa.Column("task_type", Words),
    sa.Column("difficulty", Words),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("reference_answer", Json),
    sa.Column("item", Json),  # the row's `expected` and own keys; null in a card from before cards kept them
    # what the agent was given: opening messages, tools, limits, seed
    sa.Column("context", Json, nullable=False),
    # what the agent claims
    sa.Column("answer", Words, nullable=False),
    # what the system observed
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("recorded_at", Instant, nullable=False),
    sa.Column("ending", sa.String),
    sa.Column("reason", Words, nullable=False),
    sa.Column("failed_part", sa.String, nullable=False),
    sa.Column("context_tokens", sa.Integer, nullable=False),
    sa.Column("sampled_tokens", sa.Integer, nullable=False),
    sa.Column("tool_calls", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("tool_seconds", sa.Double, nullable=False),
    sa.Column("advantage", sa.Double),
    # what made it
    sa.Column("code", sa.String, nullable=False),
    sa.Column("checkpoint", sa.String, nullable=False),
    sa.Column("dataset", sa.String, nullable=False),
    sa.Column("tool_set", sa.String, nullable=False),
    sa.Column("grader", sa.String, nullable=False),
    sa.Column("seed", sa.BigInteger),
    sa.Index(None, "tenant", "started_at", "rollout_id"),
    sa.Index(None, "run_id", "kind", "step"),
)

card_steps = sa.Table(
    "card_steps",
    metadata,
    sa.Column("rollout_id", Key, sa.ForeignKey("job_cards.rollout_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("kind", sa.String, nullable=False),  # message, tool_call, tool_result
    # what the agent claims: its words, the call it asks for
    sa.Column("said", Words),
    sa.Column("call_id", Words),
    sa.Column("name", Words),
    sa.Column("arguments", Json),
    # what the system observed
    sa.Column("output", Words),
    sa.Column("error", Words),
    sa.Column("seconds", sa.Double),
    sa.Column("attempts", sa.Integer),
    sa.Column("context_tokens", sa.Integer),
    sa.Column("sampled_tokens", sa.Integer),
)

grades = sa.Table(  # append-only: a grader that was mended adds a row, and both verdicts stay
    "grades",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("rollout_id", Key, sa.ForeignKey("job_cards.rollout_id", ondelete="CASCADE"), nullable=False),
    sa.Column("grader", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
    sa.Column("reward", sa.Double),
    sa.Column("passed", sa.Boolean),
    sa.Column("parts", Json, nullable=False),
    sa.Column("errors", Json, nullable=False),
    sa.Column("graded_at", Instant, nullable=False),
    sa.Index(None, "rollout_id", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, so a removed grade leaves a gap
)

# --- graders: what may train and gate, and why. Nothing here is ever changed; a new row says what is so from now on ---------

grader_versions = sa.Table(
    "grader_versions",
    metadata,
    sa.Column("name", Key, primary_key=True),
    sa.Column("version", Key, primary_key=True),
    sa.Column("hash", sa.String, nullable=False),
    sa.Column("spec", Json, nullable=False),
    sa.Column("code", sa.String, nullable=False),
    sa.Column("created_by", Words, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)


def _of_grader(table: str, *columns: sa.Column[Any]) -> sa.Table:
    """A table of what happened to grader versions, in the order in which it did."""
    return sa.Table(
        table,
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("name", Key, nullable=False),
        sa.Column("version", Key, nullable=False),
        *columns,
        sa.Column("at", Instant, nullable=False),
        sa.ForeignKeyConstraint(["name", "version"], ["grader_versions.name", "grader_versions.version"]),
        sa.Index(None, "name", "version", "id"),
        sqlite_autoincrement=True,
    )


grader_states = _of_grader(
    "grader_states",
    sa.Column("state", sa.String, nullable=False),  # registered, active, retired: the newest counts
    sa.Column("by", Words, nullable=False),
)
grader_reports = _of_grader(
    "grader_reports",
    sa.Column("kind", sa.String, nullable=False),  # cases, regrade, adversarial, kappa: the newest of each counts
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("why", Words, nullable=False),
    sa.Column("figures", Json, nullable=False),
)
grader_approvals = _of_grader("grader_approvals", sa.Column("by", Words, nullable=False))

human_labels = sa.Table(  # append-only: of a labeller's labels for one rollout the newest counts
    "human_labels",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("rollout_id", Key, sa.ForeignKey("job_cards.rollout_id", ondelete="CASCADE")),
    sa.Column("row_id", sa.String),  # where a label is about a row and no one rollout
    sa.Column("labeller", Words, nullable=False),
    sa.Column("score", sa.Double),
    sa.Column("label", Words),
    sa.Column("note", Words, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Index(None, "rollout_id", "id"),
    sqlite_autoincrement=True,
)
