"""Tells people's systems what happened: words from the outbox, signed, until somebody takes them.

The address comes from the server's settings and from nowhere else, and no answer leads to another one. Who receives a word can check that
it is ours and how old it is, and by its number whether it came before.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import time
from collections.abc import Mapping

import aiohttp
import msgspec
import structlog
from sqlalchemy import exc

from observability import outbox
from observability.outbox import Word
from observability.store import Store
from serving.release.leadership import Leadership
from serving.threads import in_daemon_thread

LOOK_SECONDS = 0.5
FORGET_SECONDS = 60.0
TIMEOUT = aiohttp.ClientTimeout(total=10)
log = structlog.get_logger("serving.webhooks")


class Webhooks:
    def __init__(self, store: Store, url: str, secret: str, leadership: Leadership) -> None:
        self._store, self._url, self._secret, self._leadership = store, url, secret, leadership

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            while True:
                if self._leadership.leads:
                    await self.look(session)
                await asyncio.sleep(LOOK_SECONDS)

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Sends what is due, oldest first. Never raises."""
        try:
            for word in await in_daemon_thread(outbox.due, self._store, _now()):
                await self._send(session, word)
        except (exc.SQLAlchemyError, OSError) as error:
            log.warning("webhooks_cannot_reach_the_store", trouble=str(error).partition("\n")[0])

    async def _send(self, session: aiohttp.ClientSession, word: Word) -> None:
        body = body_of(word)
        try:
            async with session.post(
                self._url, data=body, headers=headers_of(word, body, self._secret, int(time.time())), allow_redirects=False
            ) as answer:
                trouble = "" if answer.status < 300 else f"it answered {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            trouble = f"{type(error).__name__}: {error}"
        if not trouble:
            await in_daemon_thread(outbox.sent, self._store, word, _now())
            return
        again = await in_daemon_thread(outbox.failed, self._store, word, trouble, _now())
        log.warning("webhook_failed", id=word.id, tries=word.tries + 1, trouble=trouble, again=again.isoformat(timespec="seconds"))


class OldWords:
    """Forgets what was said long ago, a few words at a time, whether or not there is anybody to be told."""

    def __init__(self, store: Store, leadership: Leadership) -> None:
        self._store, self._leadership = store, leadership

    async def run(self) -> None:
        while True:
            if self._leadership.leads:
                try:
                    await in_daemon_thread(outbox.forget_old, self._store, _now())
                except (exc.SQLAlchemyError, OSError) as error:
                    log.warning("old_words_not_forgotten", trouble=str(error).partition("\n")[0])
            await asyncio.sleep(FORGET_SECONDS)


def body_of(word: Word) -> bytes:
    told = {"id": word.id, "tenant": word.tenant, "kind": word.kind, "subject": word.subject, "at": word.at.isoformat(), "body": word.body}
    return msgspec.json.encode(told)


def headers_of(word: Word, body: bytes, secret: str, now: int) -> Mapping[str, str]:
    return {
        "content-type": "application/json",
        "x-rft-id": str(word.id),
        "x-rft-timestamp": str(now),
        "x-rft-signature": f"sha256={signature_of(secret, word.id, now, body)}",
    }


def signature_of(secret: str, number: int, now: int, body: bytes) -> str:
    """HMAC-SHA256 over `number.timestamp.body`: a word that was heard cannot be said again later, nor as another."""
    return hmac.new(secret.encode(), f"{number}.{now}.".encode() + body, hashlib.sha256).hexdigest()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
