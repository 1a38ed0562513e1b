"""Runs of agents that gateways have in hand, from being accepted until their cards are durable: who drives each, and how far it is.

A run is driven by whoever holds its lease. One whose lease is over is anybody's, and goes on where it was kept last. Whoever lost a
run learns it when keeping: every write names its owner. A parked run waits for a person, and nobody holds it meanwhile.

The rows hold words of users as they were said. They go once a run is over and its caller had time to ask for the answer; what stays is
the card, which is redacted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.agents import Arm
from observability.release_tables import agent_runs, approval_decisions, approvals
from observability.store import Store

State = Literal["running", "parked", "done"]
NOBODY = ""
AT_ONCE = 100
"""Taken over, or asked about, in one go."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    rollout_id: str
    """The run's, by which its caller knows it."""
    client_id: str | None
    service: str
    session: str
    agent: str
    arm: Arm
    release: int
    state: State
    request: dict[str, Any]
    """What tells whether the same id came with another request. No words of it."""
    rollout: bytes
    """All that whoever goes on with it needs."""
    waits_for: int | None
    owner: str
    lease_until: dt.datetime
    at: dt.datetime
    changed_at: dt.datetime


class Kept(NamedTuple):
    """How far a run has come."""

    tenant: str
    rollout_id: str
    state: State
    agent: str
    arm: Arm
    rollout: bytes
    waits_for: int | None = None


class Decided(NamedTuple):
    """A parked run that can go on."""

    tenant: str
    rollout_id: str
    decision: Literal["approve", "refuse", "expired"]
    by: str
    note: str


def accept(connection: sa.Connection, run: Run) -> Run:
    """The run as it now stands: the one that its caller's id names, where there is one already."""
    if run.client_id is not None:
        known = connection.execute(sa.select(agent_runs).where(_of(run.tenant), agent_runs.c.client_id == run.client_id)).mappings().first()
        if known:
            return _run(known)
    connection.execute(sa.insert(agent_runs), [msgspec.structs.asdict(run)])
    return run


def keep(connection: sa.Connection, kept: Kept, owner: str, now: dt.datetime, lease_until: dt.datetime) -> bool:
    """False where it is not this owner's any more; then nothing was kept."""
    held = kept.state == "running"
    changed = {
        "state": kept.state, "agent": kept.agent, "arm": kept.arm, "rollout": kept.rollout, "waits_for": kept.waits_for, "changed_at": now,
        "owner": owner if held else NOBODY, "lease_until": lease_until if held else now,
    }  # fmt: skip
    mine = (_of(kept.tenant), agent_runs.c.rollout_id == kept.rollout_id, agent_runs.c.owner == owner)
    return connection.execute(sa.update(agent_runs).where(*mine).values(**changed)).rowcount == 1


def renew(store: Store, owner: str, held: Sequence[tuple[str, str]], until: dt.datetime) -> None:
    """Of the runs that it really drives, by tenant and id: one that it let fall is for others."""
    with store.writing() as connection:
        for first in range(0, len(held), AT_ONCE):
            named = sa.tuple_(agent_runs.c.tenant, agent_runs.c.rollout_id).in_(held[first : first + AT_ONCE])
            connection.execute(sa.update(agent_runs).where(*_held_by(owner), named).values(lease_until=until))


def let_go(store: Store, owner: str, now: dt.datetime) -> None:
    """Whoever leaves in peace lets others go on at once."""
    with store.writing() as connection:
        connection.execute(sa.update(agent_runs).where(*_held_by(owner)).values(owner=NOBODY, lease_until=now))


def take_over(store: Store, owner: str, now: dt.datetime, until: dt.datetime, most: int = AT_ONCE) -> list[Run]:
    """Runs that nobody drives any more, the longest left first."""
    left = (agent_runs.c.state == "running", agent_runs.c.lease_until < now)
    with store.reading() as connection:  # mostly there are none, and a look must not cost a writer's turn
        if connection.execute(sa.select(agent_runs.c.rollout_id).where(*left).limit(1)).first() is None:
            return []
    with store.writing() as connection:
        found = sa.select(agent_runs).where(*left).order_by(agent_runs.c.lease_until).limit(most).with_for_update(skip_locked=True)
        runs = [_run(row) for row in connection.execute(found).mappings()]
        for run in runs:
            connection.execute(sa.update(agent_runs).where(*_is(run)).values(owner=owner, lease_until=until))
    return [msgspec.structs.replace(run, owner=owner, lease_until=until) for run in runs]


def unpark(store: Store, tenant: str, rollout_id: str, owner: str, until: dt.datetime) -> Run | None:
    """None where another was quicker."""
    with store.writing() as connection:
        parked = (_of(tenant), agent_runs.c.rollout_id == rollout_id, agent_runs.c.state == "parked")
        row = connection.execute(sa.select(agent_runs).where(*parked).with_for_update(skip_locked=True)).mappings().first()
        if row is None:
            return None
        connection.execute(sa.update(agent_runs).where(*_is(_run(row))).values(state="running", owner=owner, lease_until=until))
    return msgspec.structs.replace(_run(row), state="running", owner=owner, lease_until=until)


def decided(store: Store, now: dt.datetime, most: int = AT_ONCE) -> list[Decided]:
    """Parked runs whose approval was given, refused, or is over."""
    waits = agent_runs.join(approvals, approvals.c.id == agent_runs.c.waits_for)
    with_decision = waits.outerjoin(approval_decisions, approval_decisions.c.approval == approvals.c.id)
    over = sa.or_(approval_decisions.c.decision.is_not(None), approvals.c.expires_at <= now)
    columns = (
        agent_runs.c.tenant,
        agent_runs.c.rollout_id,
        approval_decisions.c.decision,
        approval_decisions.c.by,
        approval_decisions.c.note,
    )
    select = sa.select(*columns).select_from(with_decision).where(agent_runs.c.state == "parked", over).limit(most)
    with store.reading() as connection:
        rows = connection.execute(select).all()
    return [Decided(row.tenant, row.rollout_id, row.decision or "expired", row.by or "", row.note or "") for row in rows]


def found(store: Store, tenant: str, rollout_id: str) -> Run | None:
    with store.reading() as connection:
        row = connection.execute(sa.select(agent_runs).where(_of(tenant), agent_runs.c.rollout_id == rollout_id)).mappings().first()
    return _run(row) if row else None


def waiting_for(store: Store, tenant: str, approval: int) -> Run | None:
    """The run that an approval holds up."""
    with store.reading() as connection:
        row = connection.execute(sa.select(agent_runs).where(_of(tenant), agent_runs.c.waits_for == approval)).mappings().first()
    return _run(row) if row else None


def forget(store: Store, before: dt.datetime) -> int:
    """Those that were over by then. Answers how many."""
    with store.writing() as connection:
        over = (agent_runs.c.state == "done", agent_runs.c.changed_at < before)
        return connection.execute(sa.delete(agent_runs).where(*over)).rowcount


def _of(tenant: str) -> sa.ColumnElement[bool]:
    return agent_runs.c.tenant == tenant


def _is(run: Run) -> Sequence[sa.ColumnElement[bool]]:
    return (_of(run.tenant), agent_runs.c.rollout_id == run.rollout_id)


def _held_by(owner: str) -> Sequence[sa.ColumnElement[bool]]:
    return (agent_runs.c.owner == owner, agent_runs.c.state == "running")


def _run(row: sa.RowMapping) -> Run:
    return Run(**{name: row[name] for name in Run.__struct_fields__})
