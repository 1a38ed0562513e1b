"""Where a gateway sends sessions, by what the store says of releases; and how a release is withdrawn while the store is away.

Routes are read each half second and kept when the store does not answer: whoever was served is served on. A withdrawal that cannot be
written into the store is written into a file first, and flushed to the disk; then it holds here at once. It holds after a restart, and
becomes an event of the release as soon as the store takes it. The files are looked for at each reading too: so a person at the machine
can withdraw a release without the store, and without the server's help.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import structlog
from sqlalchemy import exc

from agent_rft.contracts.agents import Agent, Route
from agent_rft.contracts.errors import UserError
from observability.dossier import NotThere
from observability.registry import agents_in
from observability.releases import Standing, newest_event, routes_of, standings
from observability.store import Store
from serving.release.acts import LONGEST_WHY, roll_back
from serving.threads import in_daemon_thread

READ_EACH = 0.5
PATIENCE = 5.0
"""Seconds that a reading may take, before it counts as failed."""
SUFFIX = ".withdrawn.json"
log = structlog.get_logger("serving.routing")


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's will that a release is rolled back, until the store knows it."""

    tenant: str
    release: int
    why: str
    cut: bool
    by: str


class Routing:
    """`run` keeps it fresh. All else answers at once, from memory."""

    def __init__(self, store: Store, folder: Path) -> None:
        """The folder holds what could not be told to the store."""
        self._store, self._folder = store, folder
        self._standing: list[Standing] = []
        self._event = -1
        self._routes: dict[tuple[str, str], Route] = {}
        self._agents: dict[tuple[str, str], Agent] = {}
        self._intents = read_intents(folder)
        self.away = False
        """Whether the newest reading failed."""

    def route(self, tenant: str, service: str) -> Route | None:
        return self._routes.get((tenant, service))

    def routes(self, tenant: str) -> list[Route]:
        return [route for (whose, _), route in self._routes.items() if whose == tenant]

    def agent(self, tenant: str, agent_id: str) -> Agent:
        """One that is routed to, or was since this began."""
        if (found := self._agents.get((tenant, agent_id))) is None:
            raise NotThere(f"no release of tenant {tenant} names the agent {agent_id[:60]}", "`rft release status` shows those that do")
        return found

    def withdraw(self, tenant: str, release: int, why: str, *, cut: bool, by: str = "@controller") -> None:
        """At once, and durably, without the store. Withdrawn twice is withdrawn once."""
        if release in self._intents:
            return
        intent = Intent(tenant=tenant, release=release, why=why, cut=cut, by=by)
        try:
            write_intent(self._folder, intent)
        except OSError as error:  # then it holds for as long as this process does, which is better than not at all
            log.error("withdrawal_not_on_disk", release=release, trouble=str(error))
        self._intents = {**self._intents, release: intent}
        self._flip()
        log.warning("release_withdrawn_without_the_store", release=release, why=why)

    async def run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(READ_EACH)

    async def refresh(self) -> None:
        """What the store says now; what it says no more stays as it was. Never raises."""
        try:
            await asyncio.wait_for(in_daemon_thread(self.read), PATIENCE)
            self.away = False
        except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
            if not self.away:
                log.warning("routing_cannot_read_the_store", trouble=str(error).partition("\n")[0])
            self.away = True
        except Exception as error:  # such as an agent that somebody changed: the routes that are known still hold
            log.error("routing_failed", exc_info=error)
        self._flip()

    def read(self) -> None:
        """In a thread: it waits for the disk and for the store. A withdrawal is forgotten only when what the store says of it is read."""
        self._intents = {**read_intents(self._folder), **self._intents}
        known = list(self._intents.values())
        for intent in known:
            self._persist(intent)
        if (event := newest_event(self._store)) != self._event:
            standing = standings(self._store)
            named = {(one.tenant, agent) for one in standing for agent in (one.candidate, one.live) if agent}
            self._agents = self._agents | self._read_agents(named - self._agents.keys())
            self._standing, self._event = standing, event
        for intent in known:
            forget_intent(self._folder, intent)
        self._intents = {release: intent for release, intent in self._intents.items() if intent not in known}

    def _read_agents(self, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Agent]:
        """One that cannot be read is told of and left out: it must not keep all other services where they were."""
        found: dict[tuple[str, str], Agent] = {}
        with self._store.reading() as connection:
            for tenant, agent in sorted(wanted):
                try:
                    found |= agents_in(connection, [(tenant, agent)])
                except UserError as error:
                    log.error("agent_unreadable", tenant=tenant, agent=agent, why=error.what)
        return found

    def _persist(self, intent: Intent) -> None:
        """Into the store, whose event then says the same as the file did. A release that is not there, or over, needs no more."""
        try:
            roll_back(self._store, intent.by, intent.tenant, intent.release, intent.why[:LONGEST_WHY], cut=intent.cut)
        except UserError as error:
            log.warning("withdrawal_not_needed", release=intent.release, why=error.what)

    def _flip(self) -> None:
        made = routes_of(self._standing, {release: intent.cut for release, intent in self._intents.items()})
        self._routes = {(route.tenant, route.service): route for route in made}


# --- intents on the disk -----------------------------------------------------------------------------------------------------


def write_intent(folder: Path, intent: Intent) -> None:
    """Durable when it returns, the name in its folder included."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{intent.release}{SUFFIX}"
    draft = path.with_suffix(f".{os.getpid()}.new")
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(intent))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_intents(folder: Path) -> Mapping[int, Intent]:
    """By release. What is no intent is told and left alone."""
    found: dict[int, Intent] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
        try:
            intent = msgspec.json.decode(path.read_bytes(), type=Intent)
            found[intent.release] = intent
        except FileNotFoundError:  # it was persisted by somebody else meanwhile
            continue
        except (msgspec.MsgspecError, OSError) as error:
            log.error("withdrawal_unreadable", file=str(path), trouble=str(error))
    return found


def forget_intent(folder: Path, intent: Intent) -> None:
    (folder / f"{intent.release}{SUFFIX}").unlink(missing_ok=True)
