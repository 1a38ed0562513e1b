"""Cards by tenant, by month on PostgreSQL, their long texts as blobs, and the ledger of all that was recorded.

Every card, grade and label that is there is entered in the ledger in the order of its time, so that from now on a change of it
shows. What was changed before cannot be known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from observability.book import Book
from observability.halves import label_halves
from observability.partitions import make_partitions
from observability.records import CardRows, Values, with_blob
from observability.tables import Instant, Scalar
from observability.texts import Blobs, packed, to_json, unpacked

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")
JSON = sa.JSON(none_as_null=True)
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
BATCH = 500
MOVED = ("human_labels", "grades", "card_steps", "job_cards")
"""Children first."""
INDEXES = (
    ("human_labels", ("rollout_id", "id")),
    ("grades", ("rollout_id", "id")),
    ("job_cards", ("tenant", "started_at", "rollout_id")),
    ("job_cards", ("run_id", "kind", "step")),
)
WITHOUT_CARD = "default"
"""Whose the labels are that are about a row and no card."""


def upgrade() -> None:
    set_aside()
    make_tables(ledgered=True)
    make_ledger()
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        first = connection.scalar(sa.text("SELECT min(rollout_id) FROM before_job_cards"))
        make_partitions(connection, first)
    for batch in batches(connection):
        enter_cards(connection, batch)
    enter_labels(connection)
    finish(connection)


def downgrade() -> None:
    set_aside()
    make_tables(ledgered=False)
    connection = op.get_bind()
    for batch in batches(connection):
        restore_cards(connection, batch)
    copy_labels(connection)
    finish(connection)
    for table in ("ledger_roots", "ledger", "blobs"):
        op.drop_table(table)


# --- the tables, before and after -------------------------------------------------------------------------------------


def card_columns(ledgered: bool) -> list[sa.Column[Any]]:
    given = [sa.Column("context", JSON, nullable=False)]
    if ledgered:
        given = [
            sa.Column("opening", KEY),
            sa.Column("tools", KEY),
            sa.Column("limits", JSON, nullable=False),
            sa.Column("rollout_seed", sa.BigInteger),
        ]
    places = [
        sa.Column("removed", JSON),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("credit_entry", sa.BigInteger),
        sa.Column("salt", sa.LargeBinary),
    ]
    return [
        sa.Column("rollout_id", KEY, nullable=False),
        sa.Column("tenant", KEY if ledgered else sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("run_id", sa.String, nullable=False),
        sa.Column("step", sa.Integer),
        sa.Column("row_id", sa.String, nullable=False),
        sa.Column("sample_index", sa.Integer, nullable=False),
        sa.Column("task_type", sa.Text),
        sa.Column("difficulty", sa.Text),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("reference_answer", Scalar if ledgered else JSON),
        sa.Column("item", JSON),
        *given,
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("started_at", Instant, nullable=False),
        sa.Column("recorded_at", Instant, nullable=False),
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
        *(places if ledgered else []),
    ]


def step_columns(ledgered: bool) -> list[sa.Column[Any]]:
    return [
        sa.Column("rollout_id", KEY, nullable=False),
        *([sa.Column("tenant", KEY, nullable=False)] if ledgered else []),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("said", sa.Text),
        sa.Column("call_id", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("arguments", JSON),
        sa.Column("output", sa.Text),
        *([sa.Column("output_blob", KEY)] if ledgered else []),
        sa.Column("error", sa.Text),
        sa.Column("seconds", sa.Double),
        sa.Column("attempts", sa.Integer),
        sa.Column("context_tokens", sa.Integer),
        sa.Column("sampled_tokens", sa.Integer),
    ]


def grade_columns(ledgered: bool) -> list[sa.Column[Any]]:
    return [
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        *([sa.Column("tenant", KEY, nullable=False)] if ledgered else []),
        sa.Column("grader", sa.String, nullable=False),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("reward", sa.Double),
        sa.Column("passed", sa.Boolean),
        sa.Column("parts", JSON, nullable=False),
        sa.Column("errors", JSON, nullable=False),
        sa.Column("graded_at", Instant, nullable=False),
        *(places() if ledgered else []),
    ]


def label_columns(ledgered: bool) -> list[sa.Column[Any]]:
    return [
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("rollout_id", KEY),
        *([sa.Column("tenant", KEY, nullable=False)] if ledgered else []),
        sa.Column("row_id", sa.String),
        sa.Column("labeller", sa.Text, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("label", sa.Text),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("at", Instant, nullable=False),
        *(places() if ledgered else []),
    ]


def places() -> list[sa.Column[Any]]:
    return [sa.Column("entry", sa.BigInteger, nullable=False), sa.Column("salt", sa.LargeBinary)]


COLUMNS = {"job_cards": card_columns, "card_steps": step_columns, "grades": grade_columns, "human_labels": label_columns}


def table(name: str, ledgered: bool, aside: bool = False) -> sa.Table:
    return sa.Table(f"before_{name}" if aside else name, sa.MetaData(), *COLUMNS[name](ledgered))


def make_tables(ledgered: bool) -> None:
    owner = ["rollout_id", "tenant"] if ledgered else ["rollout_id"]
    keys = {"job_cards": owner, "card_steps": [*owner, "position"], "grades": ["id"], "human_labels": ["id"]}
    for name in reversed(MOVED):
        split = {"postgresql_partition_by": "RANGE (rollout_id)"} if ledgered and name in ("job_cards", "card_steps") else {}
        numbered = {"sqlite_autoincrement": True} if name in ("grades", "human_labels") else {}
        key = sa.PrimaryKeyConstraint(*keys[name], name=f"pk_{name}")
        op.create_table(name, *COLUMNS[name](ledgered), key, *_of_card(name, owner), **split, **numbered)
    for name, columns in INDEXES:
        op.create_index(f"ix_{name}_{'_'.join(columns)}", name, list(columns))


def _of_card(name: str, owner: list[str]) -> list[sa.ForeignKeyConstraint]:
    if name == "job_cards":
        return []
    there = [f"job_cards.{column}" for column in owner]
    return [sa.ForeignKeyConstraint(owner, there, name=f"fk_{name}_rollout_id_job_cards", ondelete="CASCADE")]


def make_ledger() -> None:
    op.create_table(
        "blobs",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("hash", KEY, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "hash", name="pk_blobs"),
    )
    op.create_table(
        "ledger",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("at", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("subject", KEY, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("facts", "payload", "previous", "hash")),
        sa.PrimaryKeyConstraint("tenant", "seq", name="pk_ledger"),
    )
    op.create_table(
        "ledger_roots",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.String, nullable=False) for name in ("root", "at", "key", "signature", "peaks")),
        sa.PrimaryKeyConstraint("tenant", "size", name="pk_ledger_roots"),
    )


def set_aside() -> None:
    """The tables as they are, under other names. On PostgreSQL the names of their constraints are free again, too."""
    for name, columns in INDEXES:
        op.drop_index(f"ix_{name}_{'_'.join(columns)}", name)
    if op.get_bind().dialect.name == "postgresql":
        for name in MOVED[:-1]:
            op.drop_constraint(f"fk_{name}_rollout_id_job_cards", name)
        for name in MOVED:
            op.drop_constraint(f"pk_{name}", name)
    for name in MOVED:
        op.rename_table(name, f"before_{name}")


def finish(connection: sa.Connection) -> None:
    for name in MOVED:
        op.drop_table(f"before_{name}")
    if connection.dialect.name == "postgresql":
        for name in ("grades", "human_labels"):
            number = f"pg_get_serial_sequence('{name}', 'id')"
            connection.execute(sa.text(f"SELECT setval({number}, coalesce(max(id), 0) + 1, false) FROM {name}"))


# --- what stood in them -------------------------------------------------------------------------------------------------


def batches(connection: sa.Connection) -> Iterator[Sequence[Values]]:
    """The cards, oldest first, whatever form they have."""
    ledgered = "entry" in {column["name"] for column in sa.inspect(connection).get_columns("before_job_cards")}
    cards = table("job_cards", ledgered, aside=True)
    place = sa.tuple_(cards.c.started_at, cards.c.rollout_id)
    select = sa.select(cards).order_by(cards.c.started_at, cards.c.rollout_id).limit(BATCH)
    batch = _rows(connection, select)
    while batch:
        yield batch
        after = sa.tuple_(
            sa.literal(batch[-1]["started_at"], Instant), sa.literal(batch[-1]["rollout_id"], KEY)
        )  # fmt: skip
        batch = _rows(connection, select.where(place > after))


def enter_cards(connection: sa.Connection, batch: Sequence[Values]) -> None:
    steps, given = (_by_card(connection, name, batch, False, order) for name, order in (("card_steps", "position"), ("grades", "id")))
    made = [_card_rows(card, steps.get(card["rollout_id"], []), given.get(card["rollout_id"], [])) for card in batch]
    book = Book(connection, (rows.card["tenant"] for rows in made))
    for rows in made:
        book.card(rows)
    book.close()
    texts = {(rows.card["tenant"], key): text for rows in made for key, text in rows.blobs.items()}
    there = sa.table("blobs", sa.column("tenant", KEY), sa.column("hash", KEY), sa.column("body", sa.LargeBinary))
    held = sa.select(there.c.tenant, there.c.hash).where(there.c.hash.in_([key for _, key in texts]))
    known = {(row[0], row[1]) for row in connection.execute(held)}
    bodies = [{"tenant": tenant, "hash": key, "body": packed(text)} for (tenant, key), text in texts.items() if (tenant, key) not in known]
    _insert(connection, there, bodies)
    _insert(connection, table("job_cards", True), [rows.card for rows in made])
    _insert(connection, table("card_steps", True), [step for rows in made for step in rows.steps])
    _insert(connection, table("grades", True), [grade for rows in made for grade in rows.grades])


def _card_rows(card: Values, steps: Sequence[Values], given: Sequence[Values]) -> CardRows:
    blobs, tenant = Blobs(), {"tenant": card["tenant"]}
    context = card.pop("context")
    card |= {"opening": blobs.put(to_json(context["opening"])), "tools": blobs.put(to_json(context["tools"]))}
    card |= {"limits": context["limits"], "rollout_seed": context["seed"], "removed": None}
    told = [with_blob(step, blobs) | tenant for step in steps]
    return CardRows(card, told, [grade | tenant for grade in given], blobs.texts)


def restore_cards(connection: sa.Connection, batch: Sequence[Values]) -> None:
    steps, given = (_by_card(connection, name, batch, True, order) for name, order in (("card_steps", "position"), ("grades", "id")))
    every = [step for card in batch for step in steps.get(card["rollout_id"], [])]
    bodies = sa.table("blobs", sa.column("tenant", KEY), sa.column("hash", KEY), sa.column("body", sa.LargeBinary))
    named = {row[name] for row in [*batch, *every] for name in ("opening", "tools", "output_blob") if row.get(name)}
    select = sa.select(bodies.c.hash, bodies.c.body).where(bodies.c.hash.in_(named))
    texts = {key: unpacked(body) for key, body in connection.execute(select)}
    for card in batch:
        opening, tools = (json.loads(texts[card.pop(name)]) for name in ("opening", "tools"))
        card["context"] = {"opening": opening, "tools": tools, "limits": card.pop("limits"), "seed": card.pop("rollout_seed")}
    for step in every:
        step["output"] = texts[step["output_blob"]] if step["output_blob"] else step["output"]
    _insert(connection, table("job_cards", False), batch)
    _insert(connection, table("card_steps", False), every)
    _insert(connection, table("grades", False), [grade for card in batch for grade in given.get(card["rollout_id"], [])])


def enter_labels(connection: sa.Connection) -> None:
    owners = table("job_cards", True)
    for label in _labels(connection, ledgered=False):
        whose = connection.scalar(sa.select(owners.c.tenant).where(owners.c.rollout_id == label["rollout_id"]))
        row = label | {"tenant": WITHOUT_CARD if whose is None else whose}
        book = Book(connection, [row["tenant"]])
        book.enter("label", row["rollout_id"] or row["row_id"], row, label_halves(row))
        book.close()
        _insert(connection, table("human_labels", True), [row])


def copy_labels(connection: sa.Connection) -> None:
    _insert(connection, table("human_labels", False), _labels(connection, ledgered=True))


def _labels(connection: sa.Connection, ledgered: bool) -> list[Values]:
    labels = table("human_labels", ledgered, aside=True)
    return _rows(connection, sa.select(labels).order_by(labels.c.id))


def _by_card(connection: sa.Connection, name: str, cards: Sequence[Values], ledgered: bool, order: str) -> dict[str, list[Values]]:
    of = table(name, ledgered, aside=True)
    select = sa.select(of).where(of.c.rollout_id.in_([card["rollout_id"] for card in cards])).order_by(of.c[order])
    found: dict[str, list[Values]] = {}
    for row in _rows(connection, select):
        found.setdefault(row["rollout_id"], []).append(row)
    return found


def _rows(connection: sa.Connection, select: sa.Select[Any]) -> list[Values]:
    return [dict(row) for row in connection.execute(select).mappings()]


def _insert(connection: sa.Connection, into: sa.Table | sa.TableClause, rows: Sequence[Values]) -> None:
    if rows:
        names = {column.name for column in into.columns}
        connection.execute(sa.insert(into), [{name: row[name] for name in names if name in row} for row in rows])
