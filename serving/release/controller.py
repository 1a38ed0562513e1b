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

import structlog
from sqlalchemy import exc

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.releases import Event, Release
from agent_rft.release.rules import ON_TRIAL, Decision, decide
from observability import turns
from observability.releases import Move, Stale, newest_event, record, release_of, watched
from observability.roots import LedgerFiles
from observability.store import Store
from serving.release.knowing import Memory, known_of, moved_by, resumed_by, take_sessions
from serving.release.leadership import Leadership
from serving.release.routing import Routing
from serving.threads import in_daemon_thread

NAME = "@controller"
TICK_SECONDS = 1.0
PATIENCE = 30.0
HANGS_SECONDS = 2.0
"""After which a rollback that is being written holds in this process all the same: a store that hangs refuses nothing."""
AWAY = (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, OSError)
"""Then no release can be looked at, and it is no fault of any."""
log = structlog.get_logger("serving.controller")


class Controller:
    def __init__(self, store: Store, routing: Routing | None, leadership: Leadership, files: LedgerFiles | None = None) -> None:
        """`routing`: of the gateway in this process, which a rollback reaches even without the store. `files`: whose keys sign
        waivers."""
        self._store, self._routing, self._leadership, self._files = store, routing, leadership, files
        self._newest_event = -1
        self._watched: list[tuple[Release, Event]] = []
        """As of that event: while there is no newer one, nothing of it has changed."""
        self._memories: dict[int, Memory] = {}
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
        if (newest := newest_event(self._store)) != self._newest_event:
            self._watched, self._newest_event = watched(self._store), newest
            ids = {release.id for release, _ in self._watched}
            self._memories = {number: memory for number, memory in self._memories.items() if number in ids}
        for release, event in self._watched:
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
            what, of_ours = (error.what, None) if isinstance(error, UserError) else (type(error).__name__, error)
            if release.id not in self._dark:
                log.error("release_cannot_be_looked_at", release=release.id, service=release.service, why=what, exc_info=of_ours)
            seconds = (now - self._dark.setdefault(release.id, now)).total_seconds()
            if event.stage in ON_TRIAL and seconds >= release.policy.rollback_seconds:
                why = f"for {seconds:.0f} s its figures could not be looked at: {what}"
                figures = {"seconds_without_figures": seconds}
                back = Decision(act="rollback", stage="rolled_back", share=0.0, held=False, why=why, figures=figures)
                self._write(release, back, event.id)
        else:
            self._dark.pop(release.id, None)

    def _look_at(self, release: Release, event: Event, now: dt.datetime) -> None:
        if not release.live and event.stage != "full":
            return  # a service's first goes to full by hand
        if (memory := self._memories.get(release.id)) is None:
            release_of(self._store, release.tenant, release.id)  # whose policy is not known to its end is moved by nothing
            memory = self._memories[release.id] = Memory()
        told = memory.events(self._store, release, event.id)
        over = event.stage == "full" and (now - resumed_by(told).at).total_seconds() > release.policy.longest_step_seconds
        if not over:
            known = known_of(self._store, release, now, memory, newest_event=event.id, files=self._files)
            if (decision := decide(release.policy, known)) is not None:
                told = [*told, self._write(release, decision, known.event.id)]
        turns.close_sessions(self._store, release, moved_by(told).id, partial(take_sessions, release), now)

    def _write(self, release: Release, decision: Decision, expected_event: int) -> Event:
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
            made = record(self._store, NAME, release.tenant, release.id, move, expected_event)
        except exc.SQLAlchemyError:
            self._withdraw(release, decision)
            raise
        finally:
            hangs.cancel()
        log.info("release_moved", release=release.id, service=release.service, stage=decision.stage, share=decision.share, why=decision.why)
        return made

    def _withdraw(self, release: Release, decision: Decision) -> None:
        """In this process, without the store."""
        if decision.stage == "rolled_back" and self._routing is not None:
            self._routing.withdraw(release.tenant, release.id, decision.why, cut=decision.cut, by=NAME)
