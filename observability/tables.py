"""The store's tables, one definition for SQLite and PostgreSQL.

What the agent claims and what the system observed stand in separate columns. A card's key leads with its id, which begins
with its time: on PostgreSQL a month's cards and steps are a partition. Every card, grade and label carries the number of its
entry in the tenant's ledger, and the salt of the words that may one day have to be erased. Token ids and log-probabilities are not
stored: they are training data, ten times the size of the words they spell, and no reviewer reads them; their counts are.
JSON is kept as the text that came (json, not jsonb): jsonb refuses a NUL character, which a model may well sample,
and forgets the order of keys. What reviewers filter by has a column of its own.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from observability.texts import storable, to_json

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class Words(sa.types.TypeDecorator[str]):
    """Text that a model, a tool or a user wrote, made storable."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value if value is None else storable(value)


class Instant(sa.types.TypeDecorator[dt.datetime]):
    """A moment in UTC. SQLite forgets time zones, so every moment goes in as UTC and comes out saying so."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        return value and value.astimezone(dt.UTC)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> dt.datetime | None:
        return value and (value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC))


class Scalar(sa.types.TypeDecorator[Any]):
    """JSON that may be a bare number. SQLite takes a column called JSON for numeric, where 7.0 becomes 7 and a long number loses
    its last digits; so there it is text."""

    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.Text() if dialect.name == "sqlite" else sa.JSON(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return to_json(value) if dialect.name == "sqlite" and value is not None else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return json.loads(value) if dialect.name == "sqlite" and value is not None else value


Key = sa.String().with_variant(sa.String(collation="C"), "postgresql")  # sorted by code point on both: prefixes are ranges
Json = sa.JSON(none_as_null=True)

job_cards = sa.Table(
    "job_cards",
    metadata,
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("tenant", Key, primary_key=True),
    # which job
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("run_id", sa.String, nullable=False),
    sa.Column("step", sa.Integer),
    sa.Column("row_id", sa.String, nullable=False),
    sa.Column("sample_index", sa.Integer, nullable=False),
    sa.Column("task_type", Words),
    sa.Column("difficulty", Words),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("reference_answer", Scalar),
    sa.Column("item", Json),  # the row's `expected` and own keys; null in a card from before cards kept them
    # what the agent was given; opening messages and tools are blobs, since many cards share them
    sa.Column("opening", Key),
    sa.Column("tools", Key),
    sa.Column("limits", Json, nullable=False),
    sa.Column("rollout_seed", sa.BigInteger),
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
    # what redaction took out before anything was stored: kinds and places, never what stood there; null if nobody looked
    sa.Column("removed", Json),
    sa.Column("removed_paths", Json),  # these have keys in them, which may be a person's words
    # its place in the ledger, and that of its advantage, which is known only when its group has ended
    sa.Column("entry", sa.BigInteger, nullable=False),
    sa.Column("credit_entry", sa.BigInteger),
    sa.Column("salt", sa.LargeBinary),
    # the newest first, of a tenant, of one kind of its cards, of a run, of all
    sa.Index(None, "tenant", "started_at", "rollout_id"),
    sa.Index(None, "tenant", "kind", "started_at", "rollout_id"),
    sa.Index(None, "run_id", "started_at", "rollout_id"),
    sa.Index(None, "started_at", "rollout_id"),
    sa.Index(None, "run_id", "kind", "step"),
    sa.Index(None, "opening"),  # these and that of output_blob: whether another card names a text that is to be erased
    sa.Index(None, "tools"),
    postgresql_partition_by="RANGE (rollout_id)",
)


def _of_card() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["rollout_id", "tenant"], ["job_cards.rollout_id", "job_cards.tenant"], ondelete="CASCADE")


card_steps = sa.Table(
    "card_steps",
    metadata,
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("tenant", Key, primary_key=True),
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
    sa.Column("output_blob", Key),  # instead, where it is long
    sa.Column("error", Words),
    sa.Column("seconds", sa.Double),
    sa.Column("attempts", sa.Integer),
    sa.Column("context_tokens", sa.Integer),
    sa.Column("sampled_tokens", sa.Integer),
    _of_card(),
    sa.Index(None, "output_blob", sqlite_where=sa.text("output_blob IS NOT NULL"), postgresql_where=sa.text("output_blob IS NOT NULL")),
    postgresql_partition_by="RANGE (rollout_id)",
)

blobs = sa.Table(  # by the SHA-256 of the plain text; the body is compressed
    "blobs",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("hash", Key, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

grades = sa.Table(  # append-only: a grader that was mended adds a row, and both verdicts stay
    "grades",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("tenant", Key, nullable=False),
    sa.Column("grader", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
    sa.Column("reward", sa.Double),
    sa.Column("passed", sa.Boolean),
    sa.Column("parts", Json, nullable=False),
    sa.Column("errors", Json, nullable=False),
    sa.Column("graded_at", Instant, nullable=False),
    sa.Column("entry", sa.BigInteger, nullable=False),
    sa.Column("salt", sa.LargeBinary),
    _of_card(),
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
    sa.Column("rollout_id", Key),
    sa.Column("tenant", Key, nullable=False),
    sa.Column("row_id", sa.String),  # where a label is about a row and no one rollout
    sa.Column("labeller", Words, nullable=False),
    sa.Column("score", sa.Double),
    sa.Column("label", Words),
    sa.Column("note", Words, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("entry", sa.BigInteger, nullable=False),
    sa.Column("salt", sa.LargeBinary),
    _of_card(),
    sa.Index(None, "rollout_id", "id"),
    sqlite_autoincrement=True,
)

# --- the ledger: what was recorded, in digests, each entry naming the one before --------------------------------------------

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String, nullable=False),  # text: a hash covers it to the letter
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("subject", Key, nullable=False),
    sa.Column("facts", sa.String, nullable=False),
    sa.Column("payload", sa.String, nullable=False),
    sa.Column("previous", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)

ledger_roots = sa.Table(  # signed; each is also a line of a file outside the store
    "ledger_roots",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("root", sa.String, nullable=False),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("signature", sa.String, nullable=False),
    sa.Column("peaks", sa.String, nullable=False),  # of the tree, so that the next root goes on from this one
)

# --- the index of words -------------------------------------------------------------------------------------------------
# Beside these there is search_words, by the same numbers: FTS5's own kind of table on SQLite, one with a tsvector on PostgreSQL.

search_cards = sa.Table(
    "search_cards",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),  # grows with time
    sa.Column("tenant", Key, nullable=False),
    sa.Column("rollout_id", Key, nullable=False),
    _of_card(),
    sa.Index(None, "rollout_id", "tenant", unique=True),
)

search_marks = sa.Table(  # up to which entry of the ledger the cards are in the index
    "search_marks",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
)

# --- what people say of cards -----------------------------------------------------------------------------------------------


def recorded(name: str, *parts: SchemaItem, salted: bool = True) -> sa.Table:
    """A table to which rows are only added, in the order in which things happened, each with its entry in the ledger."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("tenant", Key, nullable=False),
        *(part for part in parts if isinstance(part, sa.Column)),
        sa.Column("by", Words, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        *([sa.Column("salt", sa.LargeBinary)] if salted else []),
        *(part for part in parts if not isinstance(part, sa.Column)),
        sqlite_autoincrement=True,
    )


reviews = recorded(  # of a card's verdicts the newest counts; a note is none
    "reviews",
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("position", sa.Integer),  # of the step it is about; null where it is about the whole card
    sa.Column("verdict", sa.String, nullable=False),  # accept, reject, coach, note
    sa.Column("note", Words, nullable=False),
    _of_card(),
    sa.Index(None, "rollout_id", "id"),
)
change_requests = recorded(  # what a note asks to be changed
    "change_requests",
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("target", sa.String, nullable=False),  # dataset, prompt, tool
    sa.Column("row_id", sa.String, nullable=False),  # the data-set row that the card tried
    sa.Column("wanted", Words, nullable=False),
    _of_card(),
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "rollout_id", "id"),
)
change_outcomes = recorded(  # of a change request: done or declined, and how
    "change_outcomes",
    sa.Column("request", sa.BigInteger, nullable=False),
    sa.Column("rollout_id", Key, nullable=False),  # the request's
    sa.Column("outcome", sa.String, nullable=False),
    sa.Column("how", Words, nullable=False),
    sa.ForeignKeyConstraint(["request"], ["change_requests.id"], ondelete="CASCADE"),
    sa.Index(None, "request", "id"),
    sa.Index(None, "rollout_id", "id"),
)
card_states = recorded(  # what a card's own columns cannot say: a run that has no card yet, one that was sealed
    "card_states",
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("why", Words, nullable=False),
    sa.Index(None, "rollout_id", "id"),
)

review_queue = sa.Table(  # cards that wait for a person, by why they do; those reviewed since are done
    "review_queue",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("reason", Key, primary_key=True),  # audit, low_grade, disagreement, flag:NAME
    sa.Column("why", Words, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),  # of the tenant's newest entry then: a review with a later one came since
    sa.Column("at", Instant, nullable=False),
    _of_card(),
)
queue_fills = sa.Table(  # what was looked at each time, and by which rule: enough to draw the same sample again
    "queue_fills",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("until", sa.BigInteger, primary_key=True, autoincrement=False),  # the newest entry of the ledger that it saw
    sa.Column("since", sa.BigInteger, nullable=False),  # it saw those after this one
    sa.Column("policy", Json, nullable=False),
    sa.Column("at", Instant, nullable=False),
)

saved_views = sa.Table(
    "saved_views",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("name", Key, primary_key=True),
    sa.Column("query", Words, nullable=False),
    sa.Column("by", Words, nullable=False),
    sa.Column("at", Instant, nullable=False),
)

# --- what is kept, and what may go ---------------------------------------------------------------------------------------

legal_holds = recorded(  # placed or released: of a name the newest row counts
    "legal_holds",
    sa.Column("name", Key, nullable=False),
    sa.Column("act", sa.String, nullable=False),
    sa.Column("query", Words, nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Index(None, "tenant", "name", "id"),
    salted=False,
)
erasures = recorded(  # cards, and traces that are none, whose words are gone
    "erasures",
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("why", Words, nullable=False),
    sa.Index(None, "rollout_id", "id"),
    salted=False,
)
retention_policies = sa.Table(
    "retention_policies",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("kind", Key, primary_key=True),  # of cards, or * for those without a policy of their own
    sa.Column("days", sa.Integer, nullable=False),
    sa.Column("by", Words, nullable=False),
    sa.Column("at", Instant, nullable=False),
)

# --- who may do what, and who did ------------------------------------------------------------------------------------------

users = sa.Table(
    "users",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("name", Key, primary_key=True),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("by", Words, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("disabled_at", Instant),
)
api_keys = sa.Table(  # the secret half is kept as a digest only
    "api_keys",
    metadata,
    sa.Column("id", Key, primary_key=True),
    sa.Column("tenant", Key, nullable=False),
    sa.Column("user", Key, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("use", sa.String, nullable=False),  # key, or session: what a signed-in browser holds
    sa.Column("scopes", Json),  # null: all that the role may
    sa.Column("at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("revoked_at", Instant),
    sa.Column("opened_with", Key),  # of a session: the key, with which it ends
    sa.Column("rotated_to", Key),  # the key that takes its place once the overlap is over
    sa.ForeignKeyConstraint(["tenant", "user"], ["users.tenant", "users.name"], ondelete="CASCADE"),
    sa.Index(None, "tenant", "user"),
)
access_log = recorded(  # what people read, took out and changed
    "access_log",
    sa.Column("action", sa.String, nullable=False),
    sa.Column("subject", Words, nullable=False),  # a query, a card's id, a user's name
    sa.Column("cards", sa.Integer, nullable=False),  # how many it concerned
    sa.Column("cards_digest", sa.String, nullable=False),  # over their ids, which stand in access_cards
    sa.Index(None, "tenant", "entry"),
    salted=False,
)
access_cards = sa.Table(
    "access_cards",
    metadata,
    sa.Column("access", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("rollout_id", Key, primary_key=True),
    sa.Column("tenant", Key, nullable=False),
    sa.ForeignKeyConstraint(["access"], ["access_log.id"], ondelete="CASCADE"),
    sa.Index(None, "rollout_id", "access"),
)

# --- where cards come from ---------------------------------------------------------------------------------------------------

sources = sa.Table(  # who records numbers the cards, so that what never came shows as a gap
    "sources",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("source", Key, primary_key=True),
    sa.Column("ranges", sa.Text, nullable=False),  # of numbers that came: 1-500,502-510
    sa.Column("announced", sa.BigInteger),  # how many there are, once the source has said so
    sa.Column("sample_rate", sa.Double),  # the share of its runs that it records; null where nobody said
    sa.Column("first_at", Instant, nullable=False),
    sa.Column("last_at", Instant, nullable=False),
)
traces = sa.Table(  # OpenTelemetry's, each pinned to a card at first sight
    "traces",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("trace_id", Key, primary_key=True),
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("carded", sa.Boolean, nullable=False),  # whether its card is made: spans that come later stand beside it
    sa.Column("last_at", Instant, nullable=False),
    sa.Index(None, "carded", "last_at"),
    sa.Index(None, "tenant", "rollout_id"),
)
trace_parts = sa.Table(  # the spans as they came, one row for what one request brought of a trace
    "trace_parts",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("trace_id", Key, primary_key=True),
    sa.Column("hash", Key, primary_key=True),  # of the plain text: the same sent twice is one part
    sa.Column("rollout_id", Key, nullable=False),
    sa.Column("spans", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("entry", sa.BigInteger, nullable=False),
    sa.Column("salt", sa.LargeBinary),
    sa.ForeignKeyConstraint(["tenant", "trace_id"], ["traces.tenant", "traces.trace_id"], ondelete="CASCADE"),
    sa.Index(None, "tenant", "rollout_id"),
)

# --- what cards were made with ------------------------------------------------------------------------------------------------

artifacts = sa.Table(  # checkpoints, datasets, tool sets, agents: the ends of a card's lineage
    "artifacts",
    metadata,
    sa.Column("tenant", Key, primary_key=True),
    sa.Column("kind", Key, primary_key=True),
    sa.Column("id", Key, primary_key=True),  # as cards name it
    sa.Column("name", Words, nullable=False),
    sa.Column("run_id", sa.String, nullable=False),
    sa.Column("parents", Json, nullable=False),  # [[kind, id], ...]
    sa.Column("facts", Json, nullable=False),
    sa.Column("at", Instant, nullable=False),
)
