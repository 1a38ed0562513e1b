"""Who of several processes does what only one may do: a lease in the table, renewed while its holder lives, taken over when it is over.

A lease keeps two from doing the same work twice. It does not keep them from harm: a holder that was asleep past its end may still act,
so whatever it does must also be refused by what it acts on (a release's `expected_event`).
"""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from observability.release_tables import leases
from observability.store import Store, take_turns


def take(store: Store, name: str, owner: str, seconds: float) -> bool:
    """Whether it is the owner's for so long from now on. By the database's clock, where it has one: machines' clocks differ."""
    with store.writing() as connection:
        take_turns(connection, f"lease {name}")
        now = _now(connection)
        held = connection.execute(sa.select(leases.c.owner, leases.c.until).where(leases.c.name == name)).first()
        if held and held.owner != owner and held.until > now:
            return False
        values = {"owner": owner, "until": now + dt.timedelta(seconds=seconds)}
        if held:
            connection.execute(sa.update(leases).where(leases.c.name == name).values(**values))
        else:
            connection.execute(sa.insert(leases), [values | {"name": name}])
    return True


def give_up(store: Store, name: str, owner: str) -> None:
    """At a clean stop: the next one need not wait for the end."""
    with store.writing() as connection:
        connection.execute(sa.delete(leases).where(leases.c.name == name, leases.c.owner == owner))


def holder(store: Store, name: str) -> str:
    """Empty where nobody holds it."""
    with store.reading() as connection:
        held = connection.execute(sa.select(leases.c.owner, leases.c.until).where(leases.c.name == name)).first()
        return held.owner if held and held.until > _now(connection) else ""


def _now(connection: sa.Connection) -> dt.datetime:
    if connection.dialect.name != "postgresql":
        return dt.datetime.now(dt.UTC)
    now = connection.scalar(sa.select(sa.func.clock_timestamp()))
    assert isinstance(now, dt.datetime)
    return now
