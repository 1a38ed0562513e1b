"""Who calls, for the hot path: a known key costs a look into a dictionary.

While a key is used it is asked for again before its time is up, beside the requests, so that nobody waits for it and one question
is asked however many requests hold the key. A store that is away locks nobody out who was let in a moment ago: for some minutes
what it said last counts. A revoked key is over within seconds while the store can be asked.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import structlog
from sqlalchemy.exc import SQLAlchemyError

from observability.access import Caller, Scope
from serving.gate import HOW, REMEMBERED_SECONDS, Gate
from serving.gateway.declined import Declined
from serving.refusals import Refused

GRACE_SECONDS = 300.0
"""For so long after the store was last asked a key is still good while the store is away."""
TRUST_AFTER_SECONDS = 1.0
"""A store that says nothing for so long counts as away, for a key that may be taken on trust."""
MOST_KNOWN = 10_000
MOST_ASKED = 32
"""Questions that may wait for the store: each holds a thread, and a store that hangs gives none of them back for seconds."""
log = structlog.get_logger("serving.gateway")


class _Known(NamedTuple):
    caller: Caller
    confirmed_at: float
    asked_at: float


class Keys:
    def __init__(self, gate: Gate, scope: Scope = "run") -> None:
        self._gate = gate
        self._scope: Scope = scope
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def caller(self, authorization: bytes | None, address: str) -> Caller:
        """Raises Declined."""
        if not authorization:
            raise Declined(401, "no_key", "no key was sent", HOW)
        known, now = self._known.get(authorization), time.monotonic()
        age = now - known.asked_at if known else REMEMBERED_SECONDS
        if known and age < REMEMBERED_SECONDS:
            if age > REMEMBERED_SECONDS / 2 and len(self._asking) < MOST_ASKED:
                self._ask(authorization, address)
            caller: Caller | None = known.caller
        else:
            caller = await self._told(authorization, address, known)
        if caller is None:
            raise Declined(401, "unknown_key", "this key opens nothing here (any more)", HOW)
        if not caller.may(self._scope):
            cure = f"one whose role or key has '{self._scope}' may; you are {caller.name}, {caller.role}"
            raise Declined(403, "scope", f"this takes the scope '{self._scope}', which this key does not have", cure)
        return caller

    async def _told(self, authorization: bytes, address: str, known: _Known | None) -> Caller | None:
        trusted = known is not None and time.monotonic() - known.confirmed_at < GRACE_SECONDS
        try:
            async with asyncio.timeout(TRUST_AFTER_SECONDS if trusted else None):
                return await asyncio.shield(self._ask(authorization, address))
        except (Refused, SQLAlchemyError, TimeoutError) as error:
            if known is None or not trusted or (isinstance(error, Refused) and error.status_code == 429):
                raise _declined(error) from None
            log.warning("key_taken_on_trust", tenant=known.caller.tenant, key=known.caller.key_id, why=str(error)[:200])
            self._known[authorization] = known._replace(asked_at=time.monotonic())
            return known.caller

    def _ask(self, authorization: bytes, address: str) -> asyncio.Task[Caller | None]:
        """One question at a time for a key, however many wait for the answer, and however long the store takes over it. Raises Refused
        where too many wait."""
        task = self._asking.get(authorization)
        if task is None:
            if len(self._asking) >= MOST_ASKED:
                raise Refused(503, "the store is slow to say whose keys these are", "try again", retry_after=5)
            task = self._asking[authorization] = asyncio.create_task(self._asked(authorization, address))
            task.add_done_callback(lambda done: (self._asking.pop(authorization, None), done.cancelled() or done.exception()))
        return task

    async def _asked(self, authorization: bytes, address: str) -> Caller | None:
        scheme, _, text = authorization.decode("latin-1").partition(" ")
        now = time.monotonic()
        caller = await self._gate.caller_of_text(text.strip() if scheme.lower() == "bearer" else "", address, fresh=True)
        if caller is None:
            self._known.pop(authorization, None)
            return None
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[authorization] = _Known(caller, now, now)
        return caller


def _declined(error: Refused | SQLAlchemyError | TimeoutError) -> Declined:
    if isinstance(error, Refused):
        return Declined(error.status_code, "keys", error.what, error.cure, retry_after=error.retry_after)
    return Declined(503, "store_away", "the store cannot be reached, and your key is not known yet", "try again", retry_after=5)
