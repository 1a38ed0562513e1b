"""An index of the words in cards: FTS5 on SQLite, tsvector on PostgreSQL, both by a number that begins with the card's time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "search_cards",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=False),
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("rollout_id", KEY, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_search_cards"),
        sa.ForeignKeyConstraint(
            ["rollout_id", "tenant"],
            ["job_cards.rollout_id", "job_cards.tenant"],
            name="fk_search_cards_rollout_id_job_cards",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_search_cards_rollout_id_tenant", "search_cards", ["rollout_id", "tenant"], unique=True)
    op.create_table(
        "search_marks",
        sa.Column("tenant", KEY, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_search_marks"),
    )
    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE VIRTUAL TABLE search_words USING fts5(words, content='', tokenize='unicode61 remove_diacritics 0')")
    else:
        op.execute("CREATE TABLE search_words (number BIGINT CONSTRAINT pk_search_words PRIMARY KEY, words TSVECTOR NOT NULL)")
        op.execute("CREATE INDEX ix_search_words_words ON search_words USING gin (words)")


def downgrade() -> None:
    for table in ("search_words", "search_marks", "search_cards"):
        op.drop_table(table)
