"""Agents' runs, put together: their routes, and what drives them beside the chat as long as the server does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
from litestar import Litestar, Router

from agent_rft.contracts.agents import Agent, Arm
from agent_rft.contracts.ports import Sampler
from agent_rft.contracts.retries import TryAgain
from agent_rft.release.violations import Watch
from agent_rft.rollouts.chat_sampler import ChatSampler, Reply
from agent_rft.rollouts.tool_client import HttpTools
from observability.intake import Intake
from observability.store import Store
from serving.gate import Gate
from serving.gateway.app import Gateway
from serving.gateway.declined import Declined
from serving.gateway.driving import Pace, Runner, World
from serving.gateway.ending import ToolSet
from serving.gateway.runs import run_routes
from serving.gateway.shadow import Shadow
from serving.gateway.upstreams import UpstreamFailed, Upstreams
from serving.refusals import REFUSALS

LIVE_RETRIES = 4


class AgentsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of them."""

    tools_url: str
    tools_bearer: str
    """That speaks for every tenant."""
    tool_set: ToolSet
    code: str
    watch: Watch = Watch()
    pace: Pace = Pace()
    candidate_seconds: float = 30.0
    """That a candidate's model may take over a turn, before the live agent begins in its place."""
    shadow_waiting: int = 200
    """Mirrored runs that may wait for the candidate; then the oldest goes without."""
    shadow_at_once: int = 4


class Agents:
    """`running` surrounds the time in which they answer, within that of the gateway whose upstreams and routes they use."""

    def __init__(self, plan: AgentsPlan, gateway: Gateway, store: Store, intake: Intake) -> None:
        self.plan, self._gateway, self._gate = plan, gateway, Gate(store)
        # What the server serves is known here: a name that a model made up is its mistake, whatever stands between would answer to it.
        self.tools = HttpTools(plan.tools_url, plan.tools_bearer, names=[spec.name for spec in plan.tool_set.specs])
        sampler_for = sampling_from(gateway.upstreams, plan.candidate_seconds)
        world = World(
            store=store,
            intake=intake,
            routes=gateway.routing,
            sampler_for=sampler_for,
            tools_for=self.tools.on_behalf_of,
            tool_set=plan.tool_set,
            code=plan.code,
            watch=plan.watch,
        )
        self.shadow = Shadow(world, most_waiting=plan.shadow_waiting, at_once=plan.shadow_at_once)
        self.runner = Runner(world, self.shadow, plan.pace)

    def routes(self) -> Sequence[Router]:
        return [
            Router("/", route_handlers=run_routes(self.runner, self._gate, self._gateway.tenants.allowance), exception_handlers=REFUSALS)
        ]

    @contextlib.asynccontextmanager
    async def running(self, _: Litestar) -> AsyncGenerator[None]:
        async with self.tools, self.shadow.running(), self.runner.running():
            yield


def sampling_from(upstreams: Upstreams, candidate_seconds: float) -> Callable[[Agent, Arm], Sampler]:
    """A candidate gets one go and not long: the live agent has to answer in its place yet."""

    def sampler_for(agent: Agent, arm: Arm) -> Sampler:
        async def ask(body: dict[str, Any]) -> Reply:
            try:
                upstream = upstreams.for_checkpoint(agent.checkpoint)
                most = upstream.total_seconds
                return Reply(*await upstream.post(body, min(most, candidate_seconds) if arm == "candidate" else most))
            except UpstreamFailed as error:
                raise TryAgain(str(error)) from error
            except Declined as error:
                raise TryAgain(error.what, error.retry_after or 0.0) from error

        retries = 0 if arm == "candidate" else LIVE_RETRIES
        return ChatSampler(ask, model=agent.checkpoint, checkpoint=agent.checkpoint, temperature=agent.temperature, retries=retries)

    return sampler_for
