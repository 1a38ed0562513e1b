"""What a list shows of cards beside their columns: the first words of what was asked and answered, and how far each has come."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from observability.cards import texts_of
from observability.states import STATES
from observability.store import Store
from observability.tables import job_cards, ledger, search_marks

FIRST = 200
"""Characters."""
FROM_THE_END = ("sealed", "reviewed", "graded", "submitted")
"""What is so of a card at the same time is told by the farthest of these."""


class Glance(msgspec.Struct, frozen=True):
    rollout_id: str
    prompt: str
    answer: str
    reason: str
    checkpoint: str
    sample_index: int
    state: str


def state_column() -> sa.ColumnElement[str]:
    order = [*FROM_THE_END, *(state for state in STATES if state not in FROM_THE_END)]
    return sa.case(*((STATES[state], sa.literal(state)) for state in order), else_=sa.literal("in_progress"))


def glances(store: Store, tenant: str, rollout_ids: Sequence[str]) -> dict[str, Glance]:
    cut = [sa.func.substr(job_cards.c[name], 1, FIRST).label(name) for name in ("answer", "reason")]
    plain = [job_cards.c[name] for name in ("rollout_id", "opening", "checkpoint", "sample_index")]
    select = sa.select(*plain, *cut, state_column().label("state"))
    mine = select.where(job_cards.c.tenant == tenant, job_cards.c.rollout_id.in_(rollout_ids))
    with store.reading() as connection:
        rows = [dict(row) for row in connection.execute(mine).mappings()]
        texts = texts_of(connection, tenant, rows)
    asked = {name: _asked(text) for name, text in texts.items()}
    return {row["rollout_id"]: Glance(prompt=asked.get(row.pop("opening"), ""), **row) for row in rows}


def _asked(opening: str) -> str:
    """The last thing that a person said in it."""
    said = [message["content"] for message in json.loads(opening) if message["role"] == "user"]
    return said[-1][:FIRST] if said else ""


def not_indexed(store: Store, tenant: str, most: int = 100_000) -> int:
    """Cards that no word finds yet, counted up to a limit."""
    mark = sa.select(search_marks.c.seq).where(search_marks.c.tenant == tenant).scalar_subquery()
    newer = sa.select(ledger.c.seq).where(ledger.c.tenant == tenant, ledger.c.seq > sa.func.coalesce(mark, 0), ledger.c.kind == "card")
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(newer.limit(most).subquery())) or 0
