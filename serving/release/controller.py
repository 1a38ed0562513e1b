"""Moves releases: looks at each once a second, and writes what their rules decide.

One controller acts, by a lease; another takes over within seconds of its death. Should two act at once all the same, the second's
decision is refused, since the newest event is not the one that it was made on. A controller keeps nothing that it could not read back:
killed between any two lines of it, the next goes on from what is written. What is decided comes before what is counted, so that
nothing that speaks against a candidate is put away unseen.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import structlog
from sqlalchemy import exc

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Event, Release
from agent_rft.release.rules import ON_TRIAL, Decision, decide
from observability import turns
from observability.releases import Move, Stale, events, record, watched
from observability.roots import LedgerFiles
from observability.store import Store
from serving.release.knowing import known_of, moved_by, take_sessions
from serving.release.leadership import Leadership
from serving.release.routing import Routing
from serving.threads import in_daemon_thread

NAME = "@controller"
TICK_SECONDS = 1.0
LATE = dt.timedelta(minutes=10)
"""By which a gateway may be late with a turn."""
PATIENCE = 30.0
HANGS_SECONDS = 2.0
"""After which a rollback that is being written holds in this process all the same: a store that hangs refuses nothing."""
AWAY = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, OSError)
"""Then no release can be looked at, and it is no fault of any."""
log = structlog.get_logger("serving.controller")


class _Seen(NamedTuple):
    """Violations of a release's candidate that were read, and until when."""

    names: frozenset[str]
    until: dt.datetime


class Controller:
    def __init__(self, store: Store, routing: Routing | None, leadership: Leadership, files: LedgerFiles | None = None) -> None:
        """`routing`: of the gateway in this process, which a rollback reaches even without the store. `files`: whose keys sign
        waivers."""
        self._store, self._routing, self._leadership, self._files = store, routing, leadership, files
        self._seen: dict[int, _Seen] = {}
        self._dark: dict[int, dt.datetime] = {}
        """Since when a release could not be looked at."""

    async def run(self) -> None:
        while True:
            if self._leadership.leads:
                try:
                    await asyncio.wait_for(in_daemon_thread(self.tick, dt.datetime.now(dt.UTC)), PATIENCE)
                except (exc.SQLAlchemyError, TimeoutError, OSError) as error:
                    log.warning("controller_cannot_reach_the_store", trouble=str(error).partition("\n")[0])
                except Exception as error:
                    log.error("controller_failed", exc_info=error)
            await asyncio.sleep(TICK_SECONDS)

    def tick(self, now: dt.datetime) -> None:
        """Every release once. One that cannot be looked at holds up no other, and nobody is left with it where that lasts."""
        for release, event in watched(self._store):
            try:
                with self._dark_where_it_fails(release, event, now):
                    self._look_at(release, event, now)
            except UserError as error:
                log.warning("release_not_moved", release=release.id, why=error.what)

    @contextmanager
    def _dark_where_it_fails(self, release: Release, event: Event, now: dt.datetime) -> Generator[None]:
        try:
            yield
        except (Stale, *AWAY):
            raise
        except Exception as error:
            log.error("release_cannot_be_looked_at", release=release.id, exc_info=error)
            seconds = (now - self._dark.setdefault(release.id, now)).total_seconds()
            if event.stage in ON_TRIAL and seconds >= release.policy.rollback_seconds:
                why = f"for {seconds:.0f} s its figures could not be looked at: {type(error).__name__}"
                figures = {"seconds_without_figures": seconds}
                back = Decision(act="rollback", stage="rolled_back", share=0.0, held=False, why=why, figures=figures)
                self._write(release, back, event.id)
        else:
            self._dark.pop(release.id, None)

    def _look_at(self, release: Release, event: Event, now: dt.datetime) -> None:
        if not release.live and event.stage != "full":
            return  # a service's first goes to full by hand
        known = known_of(self._store, release, now, self._violations(release, now), files=self._files)
        over = event.stage == "full" and known.seconds_in_step > release.policy.longest_step_seconds
        decision = None if over else decide(release.policy, known)
        if decision is not None:
            self._write(release, decision, known.event.id)
        step = moved_by(events(self._store, release.tenant, release.id)).id
        turns.close_sessions(self._store, release, step, partial(take_sessions, release), now)

    def _write(self, release: Release, decision: Decision, expected_event: int) -> None:
        move = Move(
            act=decision.act,
            stage=decision.stage,
            share=decision.share,
            held=decision.held,
            cut=decision.cut,
            why=decision.why,
            figures=decision.figures,
        )
        hangs = threading.Timer(HANGS_SECONDS, self._withdraw, (release, decision))
        hangs.daemon = True
        hangs.start()
        try:
            record(self._store, NAME, release.tenant, release.id, move, expected_event)
        except exc.SQLAlchemyError:
            self._withdraw(release, decision)
            raise
        finally:
            hangs.cancel()
        log.info("release_moved", release=release.id, service=release.service, stage=decision.stage, share=decision.share, why=decision.why)

    def _withdraw(self, release: Release, decision: Decision) -> None:
        """In this process, without the store."""
        if decision.stage == "rolled_back" and self._routing is not None:
            self._routing.withdraw(release.tenant, release.id, decision.why, cut=decision.cut, by=NAME)

    def _violations(self, release: Release, now: dt.datetime) -> set[str]:
        seen = self._seen.get(release.id, _Seen(frozenset(), release.at))
        names = seen.names | turns.violations(self._store, release.id, seen.until - LATE)
        self._seen[release.id] = _Seen(names, now)
        return set(names)
