"""What the live agent answered in a chat, asked of a candidate in the shadow too. Nobody sees its answer, and nobody waits for it.

An offer costs an entry in a queue that is bounded, in entries and in bytes, and drops its oldest. The candidate gets the conversation as
the live agent got it, with its own instructions, for one answer: the tools in a chat are the caller's, so none is ever called here.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

import msgspec
import structlog

from agent_rft.contracts.agents import Agent, Route
from agent_rft.contracts.errors import UserError
from agent_rft.rollouts.driver import new_rollout_id
from serving import metrics
from serving.gateway.cardmaking import Kept
from serving.gateway.declined import Declined
from serving.gateway.reading import Asked, Prompt
from serving.gateway.recording import Recorder
from serving.gateway.upstreams import UpstreamFailed, Upstreams
from serving.workers import at_work

MOST_WAITING, MOST_BYTES, AT_ONCE = 200, 64_000_000, 4
ONLY_OF_STREAMS = ("stream", "stream_options")
log = structlog.get_logger("serving.gateway")


class Routes(Protocol):
    def route(self, tenant: str, service: str) -> Route | None: ...
    def agent(self, tenant: str, agent_id: str) -> Agent: ...


class _Mirrored(NamedTuple):
    asked: Asked
    live: Kept
    candidate: str


class ChatShadow:
    def __init__(self, routes: Routes, upstreams: Upstreams, recorder: Recorder, most_waiting: int = MOST_WAITING) -> None:
        self._routes, self._upstreams, self._recorder = routes, upstreams, recorder
        self._waiting: deque[_Mirrored] = deque()
        self._most_waiting, self._bytes = most_waiting, 0
        self._came = asyncio.Event()

    def offer(self, asked: Asked, live: Kept, candidate: str) -> None:
        while self._waiting and (len(self._waiting) >= self._most_waiting or self._bytes + len(live.asked) > MOST_BYTES):
            self._next()
            metrics.SHADOW_DROPPED.inc()
        self._waiting.append(_Mirrored(asked, live, candidate))
        self._bytes += len(live.asked)
        metrics.SHADOW_WAITING.inc()
        self._came.set()

    def running(self) -> AbstractAsyncContextManager[None]:
        """Left, what waits is forgotten: it was nobody's answer."""
        return at_work(*[self._work] * AT_ONCE)

    def _next(self) -> _Mirrored:
        mirrored = self._waiting.popleft()
        self._bytes -= len(mirrored.live.asked)
        metrics.SHADOW_WAITING.dec()
        return mirrored

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            mirrored = self._next()
            try:
                await self._try(mirrored)
            except Exception as error:  # the next one has another chance
                log.error("shadow_failed", tenant=mirrored.live.tenant, run=mirrored.live.rollout_id, exc_info=error)

    async def _try(self, mirrored: _Mirrored) -> None:
        asked, live, candidate = mirrored
        route = self._routes.route(live.tenant, live.service)
        if route is None or not route.shadow or route.release != live.release or self._recorder.why_not():
            return  # a candidate that was withdrawn meanwhile is asked nothing more
        try:
            agent = self._routes.agent(live.tenant, candidate)
        except UserError as error:
            log.warning("shadow_without_an_agent", tenant=live.tenant, why=error.what)
            return
        parts = {name: part for name, part in Prompt(agent).put_before(asked).items() if name not in ONLY_OF_STREAMS}
        began, at = time.perf_counter(), dt.datetime.now(dt.UTC)
        status, answered, trouble = 0, b"", ""
        try:
            upstream = self._upstreams.for_checkpoint(agent.checkpoint)
            status, answered = await upstream.post(parts, upstream.total_seconds)
            trouble = "" if status == 200 else f"answered HTTP {status} to what the live agent answered"
        except Declined as declined:  # others have its places: that says nothing of how it answers
            log.warning("shadow_without_a_place", tenant=live.tenant, why=declined.what)
            return
        except (UpstreamFailed, TimeoutError) as error:
            trouble = error.what if isinstance(error, UpstreamFailed) else "gave no answer in time"
        told = msgspec.structs.replace(live, rollout_id=new_rollout_id(), agent=candidate, arm="candidate", checkpoint=agent.checkpoint)
        self._recorder.keep(
            msgspec.structs.replace(
                told,
                tool_set=agent.tool_set,
                limits=agent.limits,
                started_at=at.isoformat(),
                seconds=time.perf_counter() - began,
                status=status,
                trouble=trouble,
                failed_part=agent.checkpoint if trouble else "",
                streamed=False,
                asked=msgspec.json.encode(parts),
                answered=answered,
            )
        )
