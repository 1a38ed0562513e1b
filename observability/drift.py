"""What the monitors of live traffic read and write: samples of cards, what each knows, and alarms.

A monitor follows the ledger, as the index of words does: every card and every grade is in it once, in the order in which it was
recorded, so none is missed that came late and none is counted twice. How far a monitor has read, what it knows, its alarms and the
words for those who have to be told are written in one transaction.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from observability.book import newest_seq
from observability.cards import cards_by_id
from observability.outbox import put
from observability.records import StoredCard
from observability.release_tables import alarms, monitor_states
from observability.store import Store, take_turns
from observability.tables import artifacts, job_cards, ledger

READING = "reading"
"""Under which name there stands how far a service's monitors have read."""
MOST_IDS = 500_000
State = dict[str, Any]


class Fresh(msgspec.Struct, frozen=True):
    """What came since the last look, oldest first."""

    cards: list[StoredCard]
    graded: list[StoredCard]
    until: int
    """The ledger's newest entry."""
    skipped: bool
    """More came than are looked at: the oldest of them go without."""


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """That one began, or ended."""

    service: str
    monitor: str
    alarmed: bool
    why: str
    figures: State
    at: dt.datetime


# --- samples ----------------------------------------------------------------------------------------------------------------


def fresh(store: Store, tenant: str, service: str, after: int, most: int) -> Fresh:
    """Cards of the service's runs that were recorded or graded after an entry of the ledger."""
    with store.reading() as connection:
        until = newest_seq(connection, tenant)
        mine = (job_cards.c.tenant == tenant, job_cards.c.run_id == service, job_cards.c.kind == "production")
        came = (ledger.c.tenant == tenant, ledger.c.seq > after, ledger.c.seq <= until, ledger.c.kind.in_(("card", "grade")))
        select = (
            sa.select(ledger.c.kind, ledger.c.subject)
            .join(job_cards, job_cards.c.rollout_id == ledger.c.subject)
            .where(*came, *mine)
            .order_by(ledger.c.seq.desc())
            .limit(most + 1)
        )
        entries = [(row.kind, row.subject) for row in connection.execute(select)]
    shown = list(reversed(entries[:most]))
    found = _live(cards_by_id(store, list(dict.fromkeys(subject for _, subject in shown)), tenant))
    of_kind = {
        kind: list(dict.fromkeys(subject for told, subject in shown if told == kind and subject in found)) for kind in ("card", "grade")
    }
    cards, graded = ([found[subject] for subject in of_kind[kind]] for kind in ("card", "grade"))
    return Fresh(cards, graded, until, len(entries) > most)


def of_training(store: Store, tenant: str, checkpoint: str, run_id: str, least: int, most: int) -> list[StoredCard]:
    """Of the run that the weights come from: what they answered in its evaluations or, where that is too little, its newest rollouts."""
    run_id = run_id or _run_of(store, tenant, checkpoint)
    if not run_id:
        return []
    evaluated = _sample(
        store, tenant, (job_cards.c.run_id == run_id, job_cards.c.kind == "eval", job_cards.c.checkpoint == checkpoint), most
    )
    if len(evaluated) >= least:
        return evaluated
    with store.reading() as connection:
        tried = (job_cards.c.tenant == tenant, job_cards.c.run_id == run_id, job_cards.c.kind == "train")
        newest = sa.select(job_cards.c.rollout_id).where(*tried).order_by(job_cards.c.started_at.desc(), job_cards.c.rollout_id).limit(most)
        ids = list(connection.scalars(newest))
    return list(_live(cards_by_id(store, ids, tenant)).values())


def of_days(store: Store, tenant: str, service: str, start: dt.datetime, end: dt.datetime, most: int) -> list[StoredCard]:
    """Of the service's runs that began then: spread evenly over them."""
    then = (job_cards.c.started_at >= start, job_cards.c.started_at < end)
    return _sample(store, tenant, (job_cards.c.run_id == service, job_cards.c.kind == "production", *then), most)


def first_of_sessions(store: Store, tenant: str, service: str, start: dt.datetime, end: dt.datetime, most: int) -> list[StoredCard]:
    """What opened each session that the live agent had then. Of more sessions that many are drawn by lot: of runs spread evenly few
    would have opened their session, and long sessions would be drawn most often."""
    session, arm = (job_cards.c.metadata[name].as_string() for name in ("session", "arm"))
    mine = (job_cards.c.tenant == tenant, job_cards.c.run_id == service, job_cards.c.kind == "production")
    then = (job_cards.c.started_at >= start, job_cards.c.started_at < end, sa.func.coalesce(arm, "live") == "live")
    ordered = (job_cards.c.started_at, job_cards.c.rollout_id)
    select = sa.select(job_cards.c.rollout_id, session.label("session")).where(*mine, *then).order_by(*ordered).limit(MOST_IDS)
    first: dict[str, str] = {}
    with store.reading() as connection:
        for run in connection.execute(select):
            first.setdefault(run.session or run.rollout_id, run.rollout_id)
    ids = list(first.values())
    drawn = sorted(random.Random(0).sample(range(len(ids)), min(most, len(ids))))
    return list(_live(cards_by_id(store, [ids[place] for place in drawn], tenant)).values())


def _sample(store: Store, tenant: str, asked: Sequence[sa.ColumnElement[bool]], most: int) -> list[StoredCard]:
    ordered = (job_cards.c.started_at, job_cards.c.rollout_id)
    select = sa.select(job_cards.c.rollout_id).where(job_cards.c.tenant == tenant, *asked).order_by(*ordered).limit(MOST_IDS)
    with store.reading() as connection:
        ids = list(connection.scalars(select))
    step = max(1, -(-len(ids) // most))
    return list(_live(cards_by_id(store, ids[::step], tenant)).values())


def _live(cards: Any) -> dict[str, StoredCard]:
    """Those that still have their words, and that no candidate answered: it may well be unlike."""
    return {one.card.rollout_id: one for one in cards if one.erased is None and one.card.metadata.get("arm", "live") == "live"}


def _run_of(store: Store, tenant: str, checkpoint: str) -> str:
    mine = (artifacts.c.tenant == tenant, artifacts.c.kind == "checkpoint", artifacts.c.id == checkpoint)
    with store.reading() as connection:
        return connection.scalar(sa.select(artifacts.c.run_id).where(*mine)) or ""


# --- what is known ----------------------------------------------------------------------------------------------------------


def states_of(store: Store, tenant: str, service: str | None = None) -> dict[tuple[str, str], State]:
    """By service and name."""
    mine = [monitor_states.c.tenant == tenant, *([monitor_states.c.service == service] if service else [])]
    with store.reading() as connection:
        rows = connection.execute(sa.select(monitor_states).where(*mine).order_by(monitor_states.c.service, monitor_states.c.monitor))
        return {(row.service, row.monitor): row.state for row in rows}


def save(
    store: Store,
    tenant: str,
    service: str,
    before: State | None,
    states: Mapping[str, State],
    turned: Sequence[Alarm],
    now: dt.datetime,
) -> bool:
    """False where another looked meanwhile: `before` is what was read under READING."""
    with store.writing() as connection:
        take_turns(connection, f"monitors {tenant} {service}")
        mine = (monitor_states.c.tenant == tenant, monitor_states.c.service == service)
        known = {row.monitor: row.state for row in connection.execute(sa.select(monitor_states).where(*mine))}
        if known.get(READING) != before:
            return False
        for name, state in states.items():
            values = {"state": state, "at": now}
            if name in known:
                connection.execute(sa.update(monitor_states).where(*mine, monitor_states.c.monitor == name).values(**values))
            else:
                connection.execute(
                    sa.insert(monitor_states), [values | {"tenant": tenant, "service": service, "monitor": name}]
                )  # fmt: skip
        for alarm in turned:
            row = msgspec.structs.asdict(alarm) | {"tenant": tenant}
            connection.execute(sa.insert(alarms), [row])
            word = "alarm" if alarm.alarmed else "alarm over"
            put(connection, tenant, "alarm", f"{service}: {word}, {alarm.monitor}", msgspec.to_builtins(alarm))
    return True


def alarms_of(store: Store, tenant: str, service: str | None = None, limit: int = 50) -> list[Alarm]:
    """The newest first."""
    mine = [alarms.c.tenant == tenant, *([alarms.c.service == service] if service else [])]
    with store.reading() as connection:
        rows = connection.execute(sa.select(alarms).where(*mine).order_by(alarms.c.id.desc()).limit(limit)).mappings()
        return [Alarm(**{name: row[name] for name in Alarm.__struct_fields__}) for row in rows]
