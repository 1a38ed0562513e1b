"""What the cards that a query asks for are like: how many of each kind, ending, tool and so on, and when they were.

Only the newest of them are looked at, in one statement: a store of a million cards answers as fast as one of ten thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from observability import find
from observability.counting import BETWEEN, NONE, Bin, Facet, bins_of, facet, grade_bands
from observability.filters import COLUMNS, Among
from observability.glances import state_column
from observability.query import Query
from observability.store import Store
from observability.tables import job_cards

MOST = 10_000
"""Cards that are looked at."""
KEYS = ("kind", "state", "review", "ending", "grade", "task", "tool", "grader", "checkpoint")


class Facets(msgspec.Struct, frozen=True):
    cards: int
    """That were looked at."""
    whole: bool
    """Whether these are all that the query asks for."""
    facets: tuple[Facet, ...]
    bins: tuple[Bin, ...]
    """Those in which something happened and those between."""


def facets(store: Store, query: Query, tenant: str, most: int = MOST) -> Facets:
    wanted = [job_cards.c.started_at, job_cards.c.ending.label("ended"), *(_asked(key).label(f"of_{key}") for key in KEYS)]
    rows = find.newest(store, wanted, query, most + 1, tenant)
    looked_at = rows[:most]
    found = [_facet(key, [getattr(row, f"of_{key}") for row in looked_at]) for key in KEYS]
    bins = bins_of([(row.started_at, row.ended or NONE) for row in looked_at])
    return Facets(len(looked_at), len(rows) <= most, tuple(one for one in found if one.tells), bins)


def _facet(key: str, values: list[Any]) -> Facet:
    return grade_bands(values) if key == "grade" else facet(key, values, isinstance(COLUMNS[key], Among))


def _asked(key: str) -> sa.ColumnElement[Any]:
    """Several values come as one text, so that a card stays one row."""
    asked = COLUMNS[key]
    if isinstance(asked, Mapping):
        return state_column()
    if not isinstance(asked, Among):
        return asked
    of_card = (asked.table.c.rollout_id == job_cards.c.rollout_id, asked.table.c.tenant == job_cards.c.tenant, *asked.only)
    return sa.select(sa.func.aggregate_strings(asked.values[-1], BETWEEN)).where(*of_card).correlate(job_cards).scalar_subquery()
