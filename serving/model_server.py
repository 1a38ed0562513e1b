"""A small OpenAI-compatible model server over our own samplers: what vLLM is in production, on one CPU.

Requests that arrive while a batch is being decoded wait and are the next batch: one forward pass serves them all. They are decoded in
one thread beside the event loop, which goes on answering /health. Faults to try a release with are part of it, off unless asked for.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import msgspec
import structlog
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.response import Stream

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.ports import Sampler
from agent_rft.rollouts.driver import new_rollout_id
from serving.gateway.declined import Declined
from serving.model_requests import ChatAsked, read_chat, streamed, told_of, whole

BATCH = 64
"""Conversations decoded at once, at most."""
WAITING = 256
"""Requests that may wait; the next one is told to come back."""
LARGEST_BODY = 4_000_000
JSON = "application/json"
log = structlog.get_logger("serving.model")

SamplerAt = Callable[[float], Sampler]
"""The same weights, speaking at a temperature."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong on purpose. Shares are of requests, from 0 to 1."""

    latency_seconds: float = 0.0
    """Added to every answer."""
    failure_rate: float = 0.0
    """Answered with 500."""
    hang_rate: float = 0.0
    """Never answered."""
    crash_after: int = 0
    """The process ends, as by kill -9, when it is sent one request more than so many; 0: it does not."""
    leak_rate: float = 0.0
    """Answers that give away what looks like a credential."""

    @property
    def any(self) -> bool:
        return self != Faults()


class Busy(Exception):
    """More wait than may."""


class _Waiting(msgspec.Struct):
    ask: AskModel
    temperature: float
    spoken: asyncio.Future[ModelSpoke | InfraFailed]


class Speaker:
    """Gathers what is asked into batches. To be entered before the first ask."""

    def __init__(self, sampler_at: SamplerAt, temperature: float, batch: int = BATCH, waiting: int = WAITING) -> None:
        self._sampler_at, self._temperature, self._batch, self._most_waiting = sampler_at, temperature, batch, waiting
        self._samplers = {temperature: sampler_at(temperature)}
        self._waiting: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "sampler")

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        task = asyncio.create_task(self._speak_for_ever())
        try:
            yield
        finally:
            task.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def speak(self, ask: AskModel, temperature: float | None) -> ModelSpoke | InfraFailed:
        if len(self._waiting) >= self._most_waiting:
            raise Busy
        spoken = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(ask, self._temperature if temperature is None else temperature, spoken))
        self._more.set()
        return await spoken

    async def _speak_for_ever(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while batch := self._next_batch():
                await self._speak(batch)

    def _next_batch(self) -> list[_Waiting]:
        """In the order in which they came; whoever has gone away meanwhile costs nothing."""
        batch = list[_Waiting]()
        while self._waiting and len(batch) < self._batch:
            if not (one := self._waiting.popleft()).spoken.done():
                batch.append(one)
        return batch

    async def _speak(self, batch: list[_Waiting]) -> None:
        """A sampler has one temperature: a batch of several is decoded in as many goes."""
        batch.sort(key=lambda one: one.temperature)
        for temperature, group in groupby(batch, lambda one: one.temperature):
            members = list(group)
            try:
                loop = asyncio.get_running_loop()
                replies = await loop.run_in_executor(self._thread, self._sampled, temperature, [one.ask for one in members])
            except Exception as error:  # one that a sampler raises is of its whole batch: these are told, the next are asked
                log.error("sampling_failed", batch=len(members), exc_info=None if isinstance(error, UserError) else error)
                replies = [InfraFailed("model", str(error) or repr(error))] * len(members)
            for one, reply in zip(members, replies, strict=True):
                if not one.spoken.done():
                    one.spoken.set_result(reply)

    def _sampled(self, temperature: float, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        if (sampler := self._samplers.get(temperature)) is None:
            sampler = self._samplers[temperature] = self._sampler_at(temperature)
        return asyncio.run(_awaited(sampler, asks))


async def _awaited(sampler: Sampler, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
    return await sampler.sample(asks)


class _Misfortune:
    """Lets the faults befall requests, by a generator of its own: the same share whatever is asked."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults, self._random, self._count = faults, random.Random(seed), 0

    async def befall(self) -> None:
        faults = self._faults
        self._count += 1
        if faults.crash_after and self._count > faults.crash_after:
            os._exit(1)
        drawn = self._random.random()
        if drawn < faults.failure_rate:
            raise Declined(500, "failed_on_purpose", "this request fails on purpose (--failure-rate)", "try again")
        if drawn < faults.failure_rate + faults.hang_rate:
            await asyncio.Event().wait()
        await asyncio.sleep(faults.latency_seconds)

    def leaking(self, spoke: ModelSpoke) -> ModelSpoke:
        if not self._faults.leak_rate or self._random.random() >= self._faults.leak_rate:
            return spoke
        made_up = "sk-" + "".join(self._random.choices("abcdefghijkmnpqrstuvwxyz23456789", k=40))
        return msgspec.structs.replace(spoke, text=f"{spoke.text}\napi_key={made_up}", stop="stop")


def model_app(
    sampler_at: SamplerAt, name: str, *, temperature: float = 1.0, faults: Faults | None = None, seed: int | None = None,
    batch: int = BATCH, waiting: int = WAITING,
) -> Litestar:  # fmt: skip
    """`name`: what clients name as the model. `seed` makes the faults, and turns without a seed of their own, come again the same."""
    misfortune = _Misfortune(faults or Faults(), random.SystemRandom().randrange(2**32) if seed is None else seed)
    draw = random.Random(seed)
    speakers = list[Speaker]()
    began = int(time.time())

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        speakers[:] = [Speaker(sampler_at, temperature, batch, waiting)]
        async with speakers[0].running():
            yield

    @post("/v1/chat/completions", status_code=200, summary="One turn of the model", tags=["model"])
    async def completions(request: Request[Any, Any, Any]) -> Response[bytes] | Stream:
        asked = read_chat(await request.body())
        if asked.model != name:
            raise Declined(404, "model_not_found", f"there is no model {asked.model!r} here", f"name {name!r}", param="model")
        seconds, request_id = int(time.time()), f"chatcmpl-{new_rollout_id()}"

        async def answer() -> ModelSpoke:
            await misfortune.befall()
            return await _spoken(speakers[0], asked, request_id, draw)

        spoke = await _unless_gone(request, answer())
        told = told_of(misfortune.leaking(spoke), request_id, name, seconds)
        if asked.stream:
            return Stream(_pieces(streamed(told, asked.tell_usage)), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return Response(msgspec.json.encode(whole(told)), media_type=JSON)

    @get("/v1/models", summary="The one model that is served", tags=["model"])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": began, "owned_by": "agent-rft"}]}

    @get("/health", summary="Whether it is up", tags=["model"])
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": name}

    return Litestar(
        [completions, models, health],
        lifespan=[lifespan],
        logging_config=None,
        request_max_body_size=LARGEST_BODY,
        exception_handlers={Declined: _declined, HTTPException: _not_such, Exception: _ours},
    )


async def _spoken(speaker: Speaker, asked: ChatAsked, request_id: str, draw: random.Random) -> ModelSpoke:
    seed = draw.getrandbits(62) if asked.seed is None else asked.seed % 2**62
    try:
        spoke = await speaker.speak(asked.as_ask(request_id, seed), asked.temperature)
    except Busy:
        raise Declined(429, "busy", "too many requests wait for this model", "try again", retry_after=1) from None
    if isinstance(spoke, InfraFailed):
        raise Declined(500, "sampler_failed", f"the model could not speak: {spoke.what}")
    if spoke.stop == "no_room":
        what = "the conversation leaves the model no room to answer"
        raise Declined(400, "context_length_exceeded", what, "send a shorter one", param="messages")
    return spoke


async def _unless_gone(request: Request[Any, Any, Any], answer: Coroutine[Any, Any, ModelSpoke]) -> ModelSpoke:
    """Nothing is decoded for a client that has hung up while it waited."""
    answering, hanging_up = asyncio.create_task(answer), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((answering, hanging_up), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise Declined(499, "client_gone", "the client went away")
        return answering.result()
    finally:
        answering.cancel()
        hanging_up.cancel()


async def _hung_up(request: Request[Any, Any, Any]) -> None:
    while True:
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            return


async def _pieces(events: Iterable[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


def _declined(_: Request[Any, Any, Any], declined: Declined) -> Response[bytes]:
    headers = {name.decode(): value.decode() for name, value in declined.headers()}
    return Response(declined.body(), status_code=declined.status, media_type=JSON, headers=headers)


def _not_such(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    return _declined(request, Declined(error.status_code, "http", error.detail))


def _ours(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request_failed", path=request.url.path, exc_info=error)
    return _declined(request, Declined(500, "internal_error", "the model server failed; its log says how"))
