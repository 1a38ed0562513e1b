"""Holds what each service lives through against its training and against its last week, once a minute, and says so where they differ.

The server that leads does it. A reference stands until the service is answered by another agent, or until Monday (UTC), when the week
that has ended becomes last week's; then its tests begin anew. The error of an alarm is bounded for each reference by itself.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from sqlalchemy import exc

from agent_rft.contracts.agents import Route
from agent_rft.release.drift import LEAST, MOST_REFERENCE, Comparison, Measured, Seen, Turned, compare_with, graded, measured
from observability import drift
from observability.drift import Alarm, State
from observability.records import StoredCard
from observability.registry import found
from observability.releases import routes
from observability.store import Store
from serving.release.leadership import Leadership
from serving.threads import in_daemon_thread

LOOK_SECONDS = 60.0
PATIENCE = 600.0
AT_ONCE = 500
"""Cards that one look takes in; where more came, the newest."""
WEEK = dt.timedelta(days=7)
TRAINING, LAST_WEEK = "training", "last week"
REFERENCES = (TRAINING, LAST_WEEK)
log = structlog.get_logger("serving.monitors")


class Reading(msgspec.Struct, kw_only=True):
    """How far a service's monitors have come."""

    until: int = 0
    """Of the tenant's ledger."""
    agent: str = ""
    """The live one, when it was last looked."""
    week: str = ""
    """The Monday before which last week ended."""
    sessions: Seen = msgspec.field(default_factory=Seen)
    graded: Seen = msgspec.field(default_factory=Seen)
    runs: int = 0
    """That were counted."""
    skipped: int = 0
    """Looks that took in the newest cards only."""
    at: str = ""


class Monitors:
    def __init__(self, store: Store, leadership: Leadership, each_seconds: float = LOOK_SECONDS) -> None:
        self._store, self._leadership, self._each = store, leadership, each_seconds

    async def run(self) -> None:
        while True:
            if self._leadership.leads:
                try:
                    await asyncio.wait_for(in_daemon_thread(self.look, dt.datetime.now(dt.UTC)), PATIENCE)
                except (exc.SQLAlchemyError, TimeoutError, OSError) as error:
                    log.warning("monitors_cannot_reach_the_store", trouble=str(error).partition("\n")[0])
                except Exception as error:
                    log.error("monitors_failed", exc_info=error)
            await asyncio.sleep(self._each)

    def look(self, now: dt.datetime) -> None:
        """At every service once. One that cannot be looked at holds up no other."""
        for route in routes(self._store):
            try:
                look_at(self._store, route, now)
            except (exc.SQLAlchemyError, OSError):
                raise
            except Exception as error:
                log.error("service_not_monitored", tenant=route.tenant, service=route.service, exc_info=error)


def look_at(store: Store, route: Route, now: dt.datetime) -> list[Alarm]:
    """What has turned. Nothing is remembered but in the store."""
    tenant, service = route.tenant, route.service
    known = {name: state for (_, name), state in drift.states_of(store, tenant, service).items()}
    before = known.get(drift.READING)
    reading = msgspec.convert(before, Reading) if before else Reading()
    comparisons = {name: msgspec.convert(known[name], Comparison) if known.get(name) else None for name in REFERENCES}
    came = drift.fresh(store, tenant, service, reading.until, AT_ONCE)
    turned = _renew(store, route, reading, comparisons, now)
    runs = [
        *_first_of_each(came.cards, reading.sessions, with_grades=False),
        *_first_of_each(came.graded, reading.graded, with_grades=True),
    ]
    for name, comparison in comparisons.items():
        if comparison and runs:
            turned += [_alarm(service, name, comparison, one, now) for one in comparison.take(runs)]
    reading.runs += sum(bool(run.values) for run in runs)
    reading.until, reading.at, reading.skipped = came.until, now.isoformat(), reading.skipped + came.skipped
    states: dict[str, State] = {name: msgspec.to_builtins(one) if one else {} for name, one in comparisons.items()}
    saved = drift.save(store, tenant, service, before, states | {drift.READING: msgspec.to_builtins(reading)}, turned, now)
    return turned if saved else []


def _renew(store: Store, route: Route, reading: Reading, comparisons: dict[str, Comparison | None], now: dt.datetime) -> list[Alarm]:
    """The references that are due; what they take the place of has no alarm any more."""
    monday = (now - dt.timedelta(days=now.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    over: list[Alarm] = []
    if reading.agent != route.live or comparisons[TRAINING] is None:
        agent = found(store, route.tenant, route.live)
        cards = drift.of_training(store, route.tenant, agent.agent.checkpoint, agent.run_id, LEAST, MOST_REFERENCE)
        over += _ended(route.service, TRAINING, comparisons[TRAINING], "another agent answers now", now)
        comparisons[TRAINING] = compare_with(_all_of(cards))
    if (reading.agent, reading.week) != (route.live, monday.isoformat()):
        cards = drift.of_days(store, route.tenant, route.service, monday - WEEK, monday, MOST_REFERENCE)
        over += _ended(route.service, LAST_WEEK, comparisons[LAST_WEEK], "another week is last week's now, or another agent answers", now)
        comparisons[LAST_WEEK] = compare_with(_all_of(cards))
    reading.agent, reading.week = route.live, monday.isoformat()
    return over


def _all_of(cards: Sequence[StoredCard]) -> list[Measured]:
    return [measured(one.card, [dated.grade for dated in one.grades]) for one in cards]


def _first_of_each(cards: Sequence[StoredCard], seen: Seen, *, with_grades: bool) -> list[Measured]:
    """Of each session."""
    fresh = [one for one in cards if not seen.before(str(one.card.metadata.get("session") or one.card.rollout_id))]
    return [graded([dated.grade for dated in one.grades]) if with_grades else measured(one.card, []) for one in fresh]


def _alarm(service: str, reference: str, comparison: Comparison, turned: Turned, now: dt.datetime) -> Alarm:
    figures: dict[str, Any] = comparison.watches[turned.monitor].figures()
    del figures["curve"]
    why = f"against {reference}: {turned.why}"
    return Alarm(service=service, monitor=f"{turned.monitor}, {reference}", alarmed=turned.alarmed, why=why, figures=figures, at=now)


def _ended(service: str, reference: str, comparison: Comparison | None, why: str, now: dt.datetime) -> list[Alarm]:
    standing = [name for name, watch in (comparison.watches.items() if comparison else ()) if watch.alarmed_after is not None]
    return [Alarm(service=service, monitor=f"{name}, {reference}", alarmed=False, why=why, figures={}, at=now) for name in standing]
