"""The candidate's go at what the live agent has answered already. Nobody sees its answers, and nobody waits for them.

Off the path: an offer costs an entry in a queue that is bounded and drops its oldest. The candidate's tools are the live run's results
over again, where it makes the same calls; any other call is told that nothing was done. So no tool is ever executed. What it costs
stands on cards of their own kind.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec
import structlog
from sqlalchemy import exc

from agent_rft.contracts.agents import Route
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.releases import Turn
from agent_rft.contracts.rollouts import Ending, Rollout, ToolResult
from agent_rft.rollouts.driver import new_rollout_id, run_one
from observability.intake import Away
from observability.records import RecordedCard
from observability.turns import add_turns
from serving import metrics
from serving.gateway.ending import Ran, job_card, release_turn
from serving.gateway.events import opening_of
from serving.gateway.world import World
from serving.threads import in_daemon_thread
from serving.workers import at_work

MOST_WAITING = 200
AT_ONCE = 4
STUB = "This is a rehearsal: the call was not made, and nothing was done. Go on without its result."
SOURCE = "gateway-shadow"
log = structlog.get_logger("serving.gateway")


class _Mirrored(NamedTuple):
    ran: Ran
    route: Route


class ReplayedTools:
    """The live run's results over again. A call that it made twice is answered in the order in which it was answered then."""

    def __init__(self, live: Rollout) -> None:
        self._results: dict[str, deque[ToolResult]] = {}
        self.stubbed = 0
        """Calls that the live run had not made."""
        for turn in live.turns:
            for call in turn.calls:
                if (result := turn.results.get(call.call_id)) is not None:
                    self._results.setdefault(_key(call), deque()).append(result)

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        known = self._results.get(_key(call))
        if not known:
            self.stubbed += 1
            return ToolResult(call.call_id, STUB)
        result = known.popleft() if len(known) > 1 else known[0]
        return msgspec.structs.replace(result, call_id=call.call_id, seconds=0.0, attempts=1)


class Shadow:
    def __init__(
        self,
        world: World,
        *,
        most_waiting: int = MOST_WAITING,
        at_once: int = AT_ONCE,
    ) -> None:
        self._world = world
        self._waiting: deque[_Mirrored] = deque()
        self._most_waiting, self._at_once = most_waiting, at_once
        self._came = asyncio.Event()
        self.dropped = 0

    def offer(self, ran: Ran, route: Route) -> bool:
        """False where there is no candidate to try it on."""
        if not route.candidate or not route.release:
            return False
        if len(self._waiting) >= self._most_waiting:
            self._waiting.popleft()
            self.dropped += 1
            metrics.SHADOW_DROPPED.inc()
            metrics.SHADOW_WAITING.dec()
        self._waiting.append(_Mirrored(ran, route))
        metrics.SHADOW_WAITING.inc()
        self._came.set()
        return True

    def running(self) -> AbstractAsyncContextManager[None]:
        """Left, what waits is forgotten: it was nobody's answer."""
        return at_work(*[self._work] * self._at_once)

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            mirrored = self._waiting.popleft()
            metrics.SHADOW_WAITING.dec()
            try:
                await self._try(mirrored)
            except Exception as error:  # the next one has another chance
                log.error("shadow_failed", tenant=mirrored.ran.tenant, run=mirrored.ran.run_id, exc_info=error)

    async def _try(self, mirrored: _Mirrored) -> None:
        (live, route), world = mirrored, self._world
        try:
            agent = world.routes.agent(live.tenant, route.candidate)
        except UserError as error:
            log.warning("shadow_without_an_agent", tenant=live.tenant, why=error.what)
            return
        opening = opening_of(agent.system_prompt, live.said)
        rollout = Rollout(new_rollout_id(), opening, world.tool_set.specs, agent.limits, random.randrange(2**31))
        tools = ReplayedTools(live.rollout)
        await run_one(rollout, world.sampler_for(agent, "candidate"), tools)
        ran = msgspec.structs.replace(
            live, agent=agent, agent_id=route.candidate, arm="candidate", rollout=rollout, asked_for=(), given_up=""
        )
        now = dt.datetime.now(dt.UTC)
        turn = release_turn(ran, now, shadow=True, graded_share=route.graded_share, watch=world.watch)
        if tools.stubbed:  # without what its tools would have told it, what it came to says nothing of how it answers
            turn = msgspec.structs.replace(turn, to_grade=False, failed=rollout.ending is Ending.INFRA_FAILED)
        await self._record(RecordedCard(job_card(ran, "shadow", world.code, world.tool_set.version), now, source=SOURCE), turn)

    async def _record(self, card: RecordedCard, turn: Turn) -> None:
        """A store that is away costs shadows and nothing else."""
        try:
            outcome = await in_daemon_thread(self._world.intake.submit, card.card.tenant, [card])
            if not outcome.refused:
                await in_daemon_thread(add_turns, self._world.store, [turn])
        except (Away, exc.SQLAlchemyError) as error:
            log.warning("shadow_lost", run=card.card.rollout_id, why=str(error).partition("\n")[0])


def _key(call: ToolCall) -> str:
    return f"{call.name} {json.dumps(call.arguments, sort_keys=True)}"
