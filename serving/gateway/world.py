"""What runs of agents need of everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agent_rft.contracts.agents import Agent, Arm, Route
from agent_rft.contracts.ports import Sampler, ToolBox
from agent_rft.release.violations import Watch
from observability.intake import Intake
from observability.store import Store
from serving.gateway.ending import ToolSet


class Routes(Protocol):
    def route(self, tenant: str, service: str) -> Route | None: ...
    def agent(self, tenant: str, agent_id: str) -> Agent: ...


@dataclass(frozen=True, kw_only=True)
class World:
    store: Store
    intake: Intake
    routes: Routes
    sampler_for: Callable[[Agent, Arm], Sampler]
    tools_for: Callable[[str, str], ToolBox]
    """By tenant, and by the name of whoever has the agent run."""
    tool_set: ToolSet
    code: str
    watch: Watch = field(default_factory=Watch)
