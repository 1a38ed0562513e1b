"""From settings to the gateway that `rft serve` opens where it has upstreams."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from agent_rft.commands.parts import code_version
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.ports import ToolProvider
from agent_rft.release.violations import Watch
from agent_rft.settings import Settings
from observability.intake import Intake
from observability.store import Store
from serving.gateway.agents import Agents, AgentsPlan
from serving.gateway.app import Gateway, GatewayPlan
from serving.gateway.chat import ChatLimits
from serving.gateway.driving import Pace
from serving.gateway.ending import ToolSet
from serving.gateway.quotas import Quotas, Slo
from serving.gateway.spans import endpoint_of
from serving.gateway.upstreams import UpstreamSpec
from serving.gateway.writing import Plan
from serving.production_tools import changing
from serving.release.routing import Routing


@contextmanager
def gateway_of(settings: Settings, store: Store | None, routing: Routing | None) -> Generator[Gateway | None]:
    """None without upstreams."""
    if not settings.gateway.upstreams:
        yield None
        return
    if store is None or routing is None:
        raise UserError("a gateway needs the store itself, for its keys and its routes", "name its database: store.url=postgresql://...")
    with closing(Gateway(plan_of(settings, store), store, routing)) as gateway:
        yield gateway


def agents_of(
    settings: Settings, gateway: Gateway | None, store: Store | None, intake: Intake | None, tools: ToolProvider, bearer: str
) -> Agents | None:
    """Whose tools are this server's own, over HTTP as everybody's. None without a gateway."""
    if gateway is None or store is None or intake is None:
        return None
    given, host = settings.gateway.agents, settings.serving.host
    plan = AgentsPlan(
        tools_url=f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{settings.serving.port}",
        tools_bearer=bearer,
        tool_set=ToolSet(tools.specs, tools.version, changing(tools)),
        code=code_version(),
        watch=Watch(given.forbidden_words, frozenset(given.critical)),
        pace=Pace(most=given.most, kept_seconds=given.kept_seconds),
        candidate_seconds=given.candidate_seconds,
        shadow_waiting=given.shadow_waiting,
        shadow_at_once=given.shadow_at_once,
    )
    return Agents(plan, gateway, store, intake)


def plan_of(settings: Settings, store: Store) -> GatewayPlan:
    given = settings.gateway
    return GatewayPlan(
        upstreams=tuple(UpstreamSpec(**upstream.model_dump()) for upstream in given.upstreams),
        quotas=Quotas(**given.quotas.model_dump()),
        slo=Slo(**given.slo.model_dump()),
        tenant_quotas={tenant: Quotas(**quotas.model_dump()) for tenant, quotas in given.tenant_quotas.items()},
        tenant_slos={tenant: Slo(**slo.model_dump()) for tenant, slo in given.tenant_slos.items()},
        limits=ChatLimits(
            max_body_bytes=given.max_body_bytes,
            max_answer_bytes=given.max_answer_bytes,
            body_seconds=given.body_seconds,
            deadline_seconds=given.deadline_seconds,
        ),
        cards=Plan(
            store=store.address,
            folder=str(Path(given.spool, "answers").absolute()),
            most_bytes=given.spool_bytes,
            redact=settings.store.redact,
            patterns=settings.store.patterns,
            tenant_patterns=settings.store.tenant_patterns,
            code=code_version(),
            collector=endpoint_of(os.environ),
        ),
    )
