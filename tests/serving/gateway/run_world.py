"""Agents, models and tools for runs, scripted: what tests of the runner and the server that they kill are made of."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from agent_rft.contracts.agents import Agent, Route
from agent_rft.contracts.errors import NeedsApproval
from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.releases import Policy
from agent_rft.contracts.rollouts import ToolResult
from agent_rft.rollouts.in_process import ScriptedSampler
from observability import approvals, releases, users
from observability.access import ROLES, Caller, person_at_the_machine
from observability.book import Book
from observability.dossier import NotThere
from observability.intake import Intake
from observability.registry import register_agent
from observability.release_tables import approval_decisions
from observability.releases import Move
from observability.store import Store
from serving.gateway.driving import Accepted, Pace
from serving.gateway.ending import ToolSet
from serving.gateway.world import World

LIVE = Agent(checkpoint="live-weights", tool_set="tools-1", system_prompt="Answer briefly.")
CANDIDATE = Agent(checkpoint="candidate-weights", tool_set="tools-1")
AGENTS = {LIVE.id: LIVE, CANDIDATE.id: CANDIDATE}
ROUTE = Route(tenant="acme", service="research", live=LIVE.id)
TRIAL = Route(tenant="acme", service="research", live=LIVE.id, candidate=CANDIDATE.id, release=7, share=1.0)
TOOLS = ToolSet((ToolSpec("search"), ToolSpec("publish")), "tools-1", frozenset({"publish"}))
FAST = Pace(lease_seconds=0.6, renew_seconds=0.1, look_seconds=0.05, cut_seconds=0.05, accept_seconds=2.0)
Script = Callable[[AskModel], str | ModelSpoke | InfraFailed]


def call_of(name: str, **arguments: Any) -> ModelSpoke:
    return ModelSpoke("", calls=((name, arguments),), context_tokens=5, sampled_tokens=3)


def search_then_answer(ask: AskModel) -> str | ModelSpoke:
    return call_of("search", query="x") if ask.turn == 0 else f"The answer of turn {ask.turn}."


class Routes:
    """Routes that a test sets."""

    def __init__(self, route: Route = ROUTE) -> None:
        self.now = route

    def route(self, tenant: str, service: str) -> Route | None:
        return self.now if (tenant, service) == (self.now.tenant, self.now.service) else None

    def agent(self, tenant: str, agent_id: str) -> Agent:
        if agent_id not in AGENTS:
            raise NotThere(f"no agent {agent_id}")
        return AGENTS[agent_id]


class Hanging(ScriptedSampler):
    def __init__(self) -> None:
        super().__init__(lambda _: "never")

    async def sample(self, asks: Any) -> Any:
        await asyncio.Event().wait()


class Tools:
    """What they are asked is noted. `high_impact` ones want an approval in the store, as a tool server does."""

    def __init__(self, store: Store, high_impact: frozenset[str] = frozenset(), seconds: float = 0.0, minutes: float = 15.0) -> None:
        self.store, self.high_impact, self.seconds, self.minutes = store, high_impact, seconds, minutes
        self.called, self.ran = list[tuple[str, str]](), list[tuple[str, str]]()
        self.fails: Exception | None = None

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        self.called.append((rollout_id, call.call_id))
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise self.fails
        if call.name in self.high_impact and not await asyncio.to_thread(self._allowed, rollout_id, call):
            raise NeedsApproval(self.asked.id, self.asked.expires_at)
        self.ran.append((rollout_id, call.call_id))
        return ToolResult(call.call_id, f"{call.name} did it")

    def _allowed(self, rollout_id: str, call: ToolCall) -> bool:
        now = dt.datetime.now(dt.UTC)
        with self.store.writing() as connection:
            self.asked = approvals.of_call(connection, "acme", rollout_id, call.call_id)
            if self.asked is None:
                book = Book(connection, ["acme"])
                wanted = approvals.Call(
                    tenant="acme", rollout_id=rollout_id, call_id=call.call_id, tool=call.name, arguments=call.arguments
                )
                expires = now + dt.timedelta(minutes=self.minutes)
                self.asked = approvals.ask(connection, book, wanted, "sam", expires, now)
                book.close()
            approved = sa.select(approval_decisions.c.decision).where(approval_decisions.c.approval == self.asked.id)
            return connection.scalar(approved) == "approve"


def decide(store: Store, approval: int, decision: str, note: str = "") -> None:
    approver = Caller("acme", "ann", "approver", ROLES["approver"], "")
    approvals.decide(store, approver, approval, decision, note, dt.datetime.now(dt.UTC))


class Mirror:
    def __init__(self) -> None:
        self.offered = list[Any]()

    def offer(self, ran: Any, route: Route) -> bool:
        self.offered.append(ran)
        return True


def world_of(store: Store, intake: Intake, routes: Routes, tools: Tools, live: Script, candidate: Any = None) -> World:
    def sampler_for(agent: Agent, arm: str) -> ScriptedSampler:
        if arm == "live":
            return ScriptedSampler(live)
        return candidate if isinstance(candidate, ScriptedSampler) else ScriptedSampler(candidate or live)

    return World(
        store=store, intake=intake, routes=routes, sampler_for=sampler_for, tools_for=lambda tenant, caller: tools, tool_set=TOOLS, code="t"
    )


def asked(client_id: str | None = None, session: str = "s-1", question: str = "Q?", **item: Any) -> Accepted:
    return Accepted(
        tenant="acme",
        caller="sam",
        service="research",
        session=session,
        said=(Message("user", question),),
        item=item,
        metadata={},
        client_id=client_id,
        hash=question,
    )


# --- in a store ------------------------------------------------------------------------------------------------------------

SERVED = Agent(checkpoint="weights-live", tool_set="t1", system_prompt="Be brief.")
TRIED = Agent(checkpoint="weights-new", tool_set="t1")


def new_key(store: Store, tenant: str, name: str = "ann", role: str = "agent") -> str:
    me, now = person_at_the_machine(tenant, "root"), dt.datetime.now(dt.UTC)
    users.add_user(store, me, name, role, now)
    return users.new_key(store, me, name, now).text


def release_first(store: Store, tenant: str, service: str) -> None:
    _released(store, tenant, service, SERVED, "", Move(act="advance", stage="full", share=1.0, why="first"))


def release_trial(store: Store, tenant: str, service: str, share: float) -> None:
    _released(store, tenant, service, TRIED, SERVED.id, Move(act="advance", stage="canary", share=share, why="a test"))


def _released(store: Store, tenant: str, service: str, agent: Agent, live: str, move: Move) -> None:
    register_agent(store, tenant, agent, "an agent")
    release = releases.create(store, "ann", tenant, service, agent.id, live, Policy())
    releases.record(store, "ann", tenant, release.id, move, releases.events(store, tenant, release.id)[-1].id)
