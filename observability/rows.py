"""Puts many rows into a table at once. What a column makes of a value is asked of its type, as SQLAlchemy does, but a column at a
time and not a value at a time, which was half of the work of recording a card; and PostgreSQL gets them by COPY.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event

COPY = "copy"
"""The execution option that holds a statement's other form."""
CONFINED = "confined"
"""And the one of a transaction that sees one tenant's rows only. PostgreSQL copies nothing into a table behind a policy."""


class _Plan(NamedTuple):
    insert: str
    copy: str
    makers: tuple[Callable[[Any], Any] | None, ...]
    """Of each column, what makes its values fit for the driver, if they need it."""


def add_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """All of them name the same columns, two at least."""
    if len(rows) < 2:
        if rows:
            connection.execute(sa.insert(table), rows)
        return
    names = tuple(rows[0])
    plan = _plan(connection.dialect, table, names)
    columns = [_made(values, maker) for values, maker in zip(zip(*map(itemgetter(*names), rows), strict=True), plan.makers, strict=True)]
    connection.exec_driver_sql(plan.insert, list(zip(*columns, strict=True)), {COPY: plan.copy})


def _made(values: Sequence[Any], maker: Callable[[Any], Any] | None) -> Sequence[Any]:
    """Every type here keeps None as the database's own."""
    return values if maker is None else [None if value is None else maker(value) for value in values]


@functools.lru_cache(maxsize=256)
def _plan(dialect: sa.Dialect, table: sa.Table, names: tuple[str, ...]) -> _Plan:
    quote = dialect.identifier_preparer.quote
    into = f"{quote(table.name)} ({', '.join(map(quote, names))})"
    places = ", ".join(["?" if dialect.name == "sqlite" else "%s"] * len(names))
    makers = tuple(table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names)
    return _Plan(f"INSERT INTO {into} VALUES ({places})", f"COPY {into} FROM STDIN", makers)


def copy_on(engine: sa.Engine) -> None:
    """From now on the engine, which is one of PostgreSQL's, takes `add_rows` by COPY. Within SQLAlchemy's own call, so that a failure
    is told and a lost connection is dropped as with any other statement."""
    event.listen(engine, "do_executemany", _copy)


def _copy(cursor: Any, _statement: str, rows: Sequence[Sequence[Any]], context: Any) -> bool:
    """Whether it is done."""
    options: Mapping[str, Any] = context.execution_options
    if COPY not in options or options.get(CONFINED):
        return False
    with cursor.copy(options[COPY]) as copy:
        for row in rows:
            copy.write_row(row)
    return True
