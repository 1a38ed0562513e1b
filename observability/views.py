"""Queries that a team keeps under names. A view is no record: it may be changed and removed."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from observability.dossier import NotThere
from observability.query import Query, parse
from observability.store import Store, take_turns
from observability.tables import saved_views
from observability.texts import storable

NAME = re.compile(r"[\w][\w.-]{0,63}")
MARK = "@"
"""Before a view's name, where a query could stand."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    query: str
    """As it was typed: `after:7d` counts back from whenever the view is asked."""
    by: str
    at: dt.datetime


def save(store: Store, by: str, tenant: str, name: str, query: str) -> View:
    """In place of the one that had the name. A query that cannot be read is refused now and not when somebody needs it."""
    now, faults = dt.datetime.now(dt.UTC), list[Fault]()
    if not NAME.fullmatch(name):
        faults.append(Fault("name", f"{name[:40]!r} is no name of a view", "up to 64 letters, digits, '.', '-' and '_'"))
    try:
        parse(query, now)
    except FaultsFound as found:
        faults += found.faults
    if faults:
        raise FaultsFound("the view cannot be saved:", faults, exit_code=2)
    values = {"query": query, "by": storable(by), "at": now}
    with store.writing() as connection:
        take_turns(connection, f"views {tenant}")
        changed = connection.execute(sa.update(saved_views).where(*_is(tenant, name)).values(values))
        if not changed.rowcount:
            connection.execute(sa.insert(saved_views), [{"tenant": tenant, "name": name, **values}])
    return View(name=name, query=query, by=by, at=now)


def remove(store: Store, tenant: str, name: str) -> None:
    with store.writing() as connection:
        gone = connection.execute(sa.delete(saved_views).where(*_is(tenant, name))).rowcount
    if not gone:
        raise _unknown(store, tenant, name)


def listed(store: Store, tenant: str) -> list[View]:
    """By name."""
    select = sa.select(*(saved_views.c[name] for name in View.__struct_fields__)).where(saved_views.c.tenant == tenant)
    with store.reading() as connection:
        return [View(**row) for row in connection.execute(select.order_by(saved_views.c.name)).mappings()]


def read_query(store: Store, tenant: str, text: str, now: dt.datetime) -> Query:
    """What somebody asks for, be it by a view's name. Whoever takes a query from a person takes it here: an erasure or a hold that
    meant something else by `@name` than a search would do what nobody asked."""
    return parse(query_of(store, tenant, text), now)


def as_noted(text: str, query: Query) -> str:
    """What the record says that was asked for: of a view also what it stood for at that moment, since it may be changed later."""
    return f"{text.strip()}: {str(query) or 'every card'}" if text.strip().startswith(MARK) else text


def query_of(store: Store, tenant: str, text: str) -> str:
    """The query that `@name` stands for; any other text as it is."""
    name = text.strip().removeprefix(MARK)
    if not text.strip().startswith(MARK) or not NAME.fullmatch(name):
        return text
    with store.reading() as connection:
        found = connection.scalar(sa.select(saved_views.c.query).where(*_is(tenant, name)))
    if found is None:
        raise _unknown(store, tenant, name)
    return found


def _is(tenant: str, name: str) -> Sequence[sa.ColumnElement[bool]]:
    return saved_views.c.tenant == tenant, saved_views.c.name == storable(name)


def _unknown(store: Store, tenant: str, name: str) -> NotThere:
    known = [view.name for view in listed(store, tenant)]
    return NotThere(
        f"there is no view {name[:64]}", did_you_mean(name[:64], known) if known else "none is saved: `rft view save NAME QUERY`"
    )
