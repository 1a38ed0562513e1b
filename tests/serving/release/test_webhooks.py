"""Who has to be told is told, signed, once it can be, and from nowhere but our settings."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import hmac
import json
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa
from litestar import Litestar, Request, Response, post

from observability import outbox
from observability import release_tables as of_releases
from observability.store import Store
from serving.release.leadership import Leadership
from serving.release.webhooks import OldWords, Webhooks

SECRET = "s3cret of the receiver"


@pytest.fixture
def receiver(in_thread):
    """Answers with what the test puts into `answers`, and keeps what came."""
    came: list[tuple[dict[str, str], bytes]] = []
    answers: list[tuple[int, dict[str, str]]] = []

    @post("/", status_code=200)
    async def take(request: Request[Any, Any, Any]) -> Response[str]:
        came.append((dict(request.headers), await request.body()))
        status, headers = answers.pop(0) if answers else (200, {})
        return Response("", status_code=status, headers=headers)

    with in_thread(Litestar([take], logging_config=None)) as url:
        yield url, came, answers


async def told(store: Store, url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await Webhooks(store, url, SECRET, Leadership(store)).look(session)


def due_now(store: Store, seconds: float = 0) -> list[Any]:
    return outbox.due(store, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds))


async def test_a_word_is_sent_once_and_its_signature_holds(world, receiver):
    url, came, _ = receiver
    outbox.put(world.store, "acme", "release", "release 7", {"act": "rollback"})
    await told(world.store, url)
    await told(world.store, url)
    ((headers, body),) = came
    assert json.loads(body)["body"] == {"act": "rollback"} and json.loads(body)["tenant"] == "acme"
    signed = f"{headers['x-rft-id']}.{headers['x-rft-timestamp']}.".encode() + body
    assert headers["x-rft-signature"] == "sha256=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert outbox.of_tenant(world.store, "acme")[0].sent_at


async def test_who_does_not_take_it_is_asked_again_later_for_a_day(world, receiver):
    url, came, answers = receiver
    answers += [(503, {}), (302, {"location": "http://169.254.169.254/"})]
    outbox.put(world.store, "acme", "release", "release 7", {})
    await told(world.store, url)
    assert outbox.of_tenant(world.store, "acme")[0].trouble == "it answered 503"
    assert due_now(world.store) == [] and len(due_now(world.store, 5.1)) == 1
    (word,) = due_now(world.store, 5.1)
    assert outbox.failed(world.store, word, "x", dt.datetime.now(dt.UTC)) > dt.datetime.now(dt.UTC) + dt.timedelta(seconds=9)
    assert len(due_now(world.store, 86_000)) == 1 and due_now(world.store, 86_401) == []
    assert len(came) == 1


async def test_no_answer_leads_to_another_address(world, receiver):
    url, came, answers = receiver
    answers += [(307, {"location": f"{url}/"})]
    outbox.put(world.store, "acme", "release", "release 7", {})
    await told(world.store, url)
    assert len(came) == 1 and outbox.of_tenant(world.store, "acme")[0].trouble == "it answered 307"


async def test_nobody_there_is_no_failure_of_ours(world):
    outbox.put(world.store, "acme", "release", "release 7", {})
    await told(world.store, "http://127.0.0.1:9")
    assert "Connect" in outbox.of_tenant(world.store, "acme")[0].trouble


async def test_what_was_said_long_ago_is_forgotten_a_few_words_at_a_time_whether_or_not_anybody_took_it(world):
    now = dt.datetime.now(dt.UTC)
    for number in range(5):
        outbox.put(world.store, "acme", "release", f"word {number}", {})
    newest_first = outbox.of_tenant(world.store, "acme")
    outbox.sent(world.store, newest_first[-1], now)
    with world.store.writing() as connection:  # the last two stay young
        old = sa.update(of_releases.outbox).where(of_releases.outbox.c.id <= newest_first[2].id)
        connection.execute(old.values(at=now - dt.timedelta(days=30, seconds=1)))
    assert outbox.forget_old(world.store, now, most=2) == 2
    assert [word.subject for word in outbox.of_tenant(world.store, "acme")] == ["word 4", "word 3", "word 2"]
    part = asyncio.create_task(OldWords(world.store, SimpleNamespace(leads=True)).run())
    for _ in range(200):
        if len(outbox.of_tenant(world.store, "acme")) == 2:
            break
        await asyncio.sleep(0.02)
    part.cancel()
    assert [word.subject for word in outbox.of_tenant(world.store, "acme")] == ["word 4", "word 3"]
    outbox.put(world.store, "acme", "release", "word 5", {})
    assert outbox.of_tenant(world.store, "acme")[0].id > newest_first[0].id, "a number is never given again"
