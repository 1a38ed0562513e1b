"""Traces that are no card: not whole yet, or such as no card can be read from. They hold words all the same, which may be asked for,
held and erased by the trace's id in the store, the `rollout_id` that its parts bear."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import sqlalchemy as sa

from observability.query import And, Not, Or, Prefix, Query, Term, Text
from observability.store import Store
from observability.tables import job_cards, trace_parts, traces
from observability.texts import unpacked
from observability.words import GAP, stands_in, words_in


class Cardless(NamedTuple):
    rollout_id: str
    last_at: dt.datetime
    """When the last of it came."""


def without_card(connection: sa.Connection, tenant: str, before: dt.datetime | None = None) -> list[Cardless]:
    """Those of which words are there, the oldest first: a handful, unless somebody sends spans that make no card."""
    part = trace_parts.c
    words = sa.exists().where(part.tenant == traces.c.tenant, part.trace_id == traces.c.trace_id, part.salt.is_not(None))
    mine = [traces.c.tenant == tenant, ~_has_card(), words, *([] if before is None else [traces.c.last_at < before])]
    select = sa.select(traces.c.rollout_id, sa.func.max(traces.c.last_at)).where(*mine).group_by(traces.c.rollout_id)
    return sorted((Cardless(*row) for row in connection.execute(select)), key=lambda one: (one.last_at, one.rollout_id))


def asked_for(store: Store, tenant: str, query: Query) -> list[str]:
    """Those of which the query is true for certain: it names one, or has words of its spans."""
    with store.reading() as connection:
        found = [one.rollout_id for one in without_card(connection, tenant)]
        return [one for one in found if _is_true(query, one, _words(connection, tenant, one), unknown=False)]


def may_be_asked_for(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str], query: Query) -> list[str]:
    """Those among the ids that are a trace without a card, and of which nobody can say that the query is not true."""
    mine = (traces.c.tenant == tenant, traces.c.rollout_id.in_(rollout_ids), ~_has_card())
    found = connection.scalars(sa.select(traces.c.rollout_id).distinct().where(*mine)).all()
    return [one for one in found if _is_true(query, one, _words(connection, tenant, one), unknown=True)]


def known_among(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> set[str]:
    mine = (traces.c.tenant == tenant, traces.c.rollout_id.in_(rollout_ids))
    return set(connection.scalars(sa.select(traces.c.rollout_id).where(*mine)))


def other_names(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> dict[str, str]:
    """What parts of these traces are called by that came before the trace said which card it is, each with that card."""
    same = sa.and_(trace_parts.c.tenant == traces.c.tenant, trace_parts.c.trace_id == traces.c.trace_id)
    named = sa.exists().where(job_cards.c.tenant == tenant, job_cards.c.rollout_id == trace_parts.c.rollout_id)
    other = (traces.c.tenant == tenant, traces.c.rollout_id.in_(rollout_ids), trace_parts.c.rollout_id != traces.c.rollout_id, ~named)
    select = sa.select(trace_parts.c.rollout_id, traces.c.rollout_id).distinct().select_from(traces.join(trace_parts, same)).where(*other)
    return {row[0]: row[1] for row in connection.execute(select)}


def _has_card() -> sa.ColumnElement[bool]:
    return sa.exists().where(job_cards.c.tenant == traces.c.tenant, job_cards.c.rollout_id == traces.c.rollout_id)


def _is_true(query: Query, rollout_id: str, words: Sequence[str], *, unknown: bool) -> bool:
    """`unknown`: what is said of a term that asks of a card's own, such as its kind."""
    match query:
        case Text():
            return stands_in(query, words)
        case Term("id", ":", values):
            return any(rollout_id.startswith(one.start) if isinstance(one, Prefix) else rollout_id == one for one in values)
        case Term():
            return unknown
        case Not(part):
            return not _is_true(part, rollout_id, words, unknown=not unknown)
        case And(parts):
            return all(_is_true(part, rollout_id, words, unknown=unknown) for part in parts)
        case Or(parts):
            return any(_is_true(part, rollout_id, words, unknown=unknown) for part in parts)


def _words(connection: sa.Connection, tenant: str, rollout_id: str) -> list[str]:
    same = sa.and_(trace_parts.c.tenant == traces.c.tenant, trace_parts.c.trace_id == traces.c.trace_id)
    mine = (traces.c.tenant == tenant, traces.c.rollout_id == rollout_id, trace_parts.c.body.is_not(None))
    bodies = connection.scalars(sa.select(trace_parts.c.body).select_from(traces.join(trace_parts, same)).where(*mine))
    return [word for body in bodies for text in _texts(json.loads(unpacked(body))) for word in (GAP, *words_in(text))]


def _texts(value: Any) -> Iterator[str]:
    """Keys too, and what is inside of texts that are JSON."""
    if isinstance(value, str):
        inside = _inside(value)
        yield from (value,) if inside is None else _texts(inside)
    elif isinstance(value, dict):
        for key, one in cast(dict[str, Any], value).items():
            yield key
            yield from _texts(one)
    elif isinstance(value, list):
        for one in cast(Iterable[Any], value):
            yield from _texts(one)
    elif value is not None:
        yield str(value)


def _inside(text: str) -> Any:
    try:
        return json.loads(text) if text[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return None
