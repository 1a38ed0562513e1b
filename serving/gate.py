"""Who may come in: keys and sessions of the store's users, for the API and the pages.

A program sends `Authorization: Bearer KEY`. A browser holds a session in a cookie, which no script reads and no other site's
request carries; a form that is sent from elsewhere is refused all the same, by its origin.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from observability.access import Caller, Scope
from observability.store import Store
from observability.users import caller_of_key
from serving.refusals import Refused
from serving.threads import in_daemon_thread

COOKIE = "rft_session"
REMEMBERED_SECONDS = 5.0
"""A revoked key opens doors for so long at most."""
KNOWN_KEYS = 10_000
TRIES, TRIES_SECONDS = 10, 60.0
"""Wrong keys that an address may send, and within which time."""
PATIENCE = 10.0
"""Seconds that a caller waits for the store to say who they are."""
SAFE = ("GET", "HEAD")
LOGIN = "/login"
HOW = "send 'Authorization: Bearer rft_...'; `rft key new NAME` makes a key"
Connection = ASGIConnection[Any, Any, Any, Any]
Guard = Callable[[Connection, BaseRouteHandler], Awaitable[None]]


class _Known(NamedTuple):
    caller: Caller
    asked_at: float


class Gate:
    def __init__(self, store: Store) -> None:
        self.store = store
        self._known: dict[bytes, _Known] = {}
        self._failed: dict[str, deque[float]] = {}

    def needs(self, scope: Scope, *, page: bool = False) -> Guard:
        """A guard for a route's handlers. On a page, who is nobody yet is sent to sign in first."""

        async def guard(connection: Connection, _: BaseRouteHandler) -> None:
            _refuse_nul(connection, page)
            caller = await self._let_in(connection, page)
            if not caller.may(scope):
                cure = f"one whose role or key has '{scope}' may; you are {caller.name}, {caller.role}"
                raise Refused(403, f"this takes the scope '{scope}', which this key does not have", cure, page=page)
            connection.state.caller = caller

        return guard

    async def caller_of_text(self, text: str, address: str, *, cookie: bool = False, fresh: bool = False) -> Caller | None:
        """Whose key it is. Wrong ones are counted by address; above the limit only keys are looked up that were good before, so that
        whoever tries keys does not lock out others behind the same address. A cookie is not counted: sessions end, and the browser
        that holds an ended one sends it with every page and picture. `fresh`: the store is asked whatever is remembered."""
        digest, now = hashlib.sha256(text.encode("utf-8", "replace")).digest(), time.monotonic()
        known = self._known.get(digest)
        if known and not fresh and now - known.asked_at < REMEMBERED_SECONDS:
            return known.caller
        if known is None and (wait := self._wait(address, now)):
            raise Refused(429, f"{TRIES} wrong keys came from {address} within a minute", "wait, then try again", retry_after=wait)
        caller = await self._looked_up(text)
        if caller is None:
            self._known.pop(digest, None)
            if cookie:
                return None
            self._failed.setdefault(address, deque(maxlen=TRIES)).append(now)
        else:
            if len(self._known) >= KNOWN_KEYS:
                self._known.clear()
            self._known[digest] = _Known(caller, now)
        return caller

    def forget(self, text: str) -> None:
        """A session that was closed is over at once."""
        self._known.pop(hashlib.sha256(text.encode("utf-8", "replace")).digest(), None)

    async def _let_in(self, connection: Connection, page: bool) -> Caller:
        sent = _bearer(connection)
        by_cookie = sent is None
        text = connection.cookies.get(COOKIE) if by_cookie else sent
        if text is None:
            raise _unknown(connection, page, "no key was sent")
        if by_cookie and _method(connection) not in SAFE and not sent_from_here(connection):
            cure = "open the page on this server and go on there; a program sends its key as a bearer"
            raise Refused(403, "this was not sent from this server's own page", cure, page=page)
        caller = await self.caller_of_text(text, address_of(connection), cookie=by_cookie)
        if caller is None:
            raise _unknown(connection, page, "this session is over" if by_cookie else "this key opens nothing here (any more)")
        return caller

    async def _looked_up(self, text: str) -> Caller | None:
        try:
            return await asyncio.wait_for(in_daemon_thread(caller_of_key, self.store, text, dt.datetime.now(dt.UTC)), PATIENCE)
        except TimeoutError:
            raise Refused(503, f"the store gave no answer within {PATIENCE:g} s", "try again", retry_after=5) from None

    def _wait(self, address: str, now: float) -> int:
        """Whole seconds until this address may try again; 0: now."""
        for other in [one for one, tries in self._failed.items() if now - tries[-1] >= TRIES_SECONDS]:
            del self._failed[other]
        tries = self._failed.get(address, deque())
        return 0 if len(tries) < TRIES else max(0, int(TRIES_SECONDS - (now - tries[0])) + 1)


def caller_of(connection: Connection) -> Caller:
    """Who sent the request, in a handler that a guard of the gate stands before."""
    return connection.state.caller


def sent_from_here(connection: Connection) -> bool:
    """A browser says where a form comes from."""
    origin, host = connection.headers.get("origin", ""), connection.headers.get("host", "")
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:  # such as a bracket that nothing closes
        return False


def address_of(connection: Connection) -> str:
    """Behind a proxy that of the proxy: what its headers say, anybody can say."""
    return connection.client.host if connection.client else ""


def _refuse_nul(connection: Connection, page: bool) -> None:
    """No text that is stored has it, and PostgreSQL fails at being asked for it."""
    if "\0" in connection.scope["path"] or b"%00" in connection.scope["query_string"] or b"\0" in connection.scope["query_string"]:
        raise Refused(400, "the address holds a NUL character (%00), which nothing stored has", "leave it out", page=page)


def _method(connection: Connection) -> str:
    return str(connection.scope.get("method", ""))


def _bearer(connection: Connection) -> str | None:
    sent = connection.headers.get("authorization")
    if sent is None:
        return None
    scheme, _, text = sent.partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _unknown(connection: Connection, page: bool, what: str) -> Refused:
    if not page:
        return Refused(401, what, HOW)
    query = connection.scope["query_string"].decode("latin-1")
    back = connection.scope["path"] + (f"?{query}" if query else "") if _method(connection) in SAFE else "/"
    return Refused(401, what, page=True, login=f"{LOGIN}?next={quote(back, safe='')}")
