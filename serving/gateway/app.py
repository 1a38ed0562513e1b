"""The gateway, put together: its routes, and what runs beside them as long as the server does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog
from litestar import Litestar
from litestar.handlers import ASGIRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from observability.spool import Spool
from observability.store import Store
from serving.gate import Gate
from serving.gateway.chat import ChatEndpoint, ChatLimits, Tenants
from serving.gateway.keys import Keys
from serving.gateway.mirroring import ChatShadow
from serving.gateway.quotas import Quotas, Slo
from serving.gateway.recording import Recorder
from serving.gateway.upstreams import Upstreams, UpstreamSpec
from serving.gateway.writing import Plan, WriterProcess
from serving.release.looking import Promises
from serving.release.routing import Routing

CHAT_PATH, MODELS_PATH = "/v1/chat/completions", "/v1/models"
LOOK_SECONDS = 0.25
"""Between two looks at whether something is to be cut, or a caller went away ..."""
LOOKS_PER_FIGURE = 4
"""... and after so many a look at how far the cards are, which reads a file."""

log = structlog.get_logger("serving.gateway")


class GatewayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of it."""

    upstreams: tuple[UpstreamSpec, ...]
    quotas: Quotas = Quotas()
    slo: Slo = Slo()
    tenant_quotas: Mapping[str, Quotas] = msgspec.field(default_factory=dict[str, Quotas])
    tenant_slos: Mapping[str, Slo] = msgspec.field(default_factory=dict[str, Slo])
    limits: ChatLimits = ChatLimits()
    cards: Plan


def promises_of(plan: GatewayPlan) -> Promises:
    return Promises(slo=plan.slo, quotas=plan.quotas, tenant_slos=plan.tenant_slos, tenant_quotas=plan.tenant_quotas)


class Gateway:
    """Takes its routing, which others act on too. `running` surrounds the time in which it answers."""

    def __init__(self, plan: GatewayPlan, store: Store, routing: Routing) -> None:
        self.plan, self.store, self.routing, self.gate = plan, store, routing, Gate(store)
        self.upstreams = Upstreams(plan.upstreams)
        self.tenants = Tenants(plan.quotas, plan.slo, plan.tenant_quotas, plan.tenant_slos)
        self.keys = Keys(self.gate)
        self.recorder = Recorder(Spool(Path(plan.cards.folder), plan.cards.most_bytes))
        self.shadow = ChatShadow(routing, self.upstreams, self.recorder)
        self.chat = ChatEndpoint(self.keys, routing, self.upstreams, self.tenants, self.recorder, self.shadow, plan.limits)

    def routes(self) -> Sequence[ASGIRouteHandler]:
        return [
            ASGIRouteHandler(CHAT_PATH, copy_scope=False)(self.chat.__call__),
            ASGIRouteHandler(MODELS_PATH, copy_scope=False)(self.chat.models),
        ]

    def before(self, app: ASGIApp) -> ASGIApp:
        """The same, with a short way to what is asked most: the whole app's router takes a tenth of such a request."""

        async def shortest(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == CHAT_PATH:
                await self.chat(scope, receive, send)
            else:
                await app(scope, receive, send)

        return shortest

    @contextlib.asynccontextmanager
    async def running(self, _: Litestar) -> AsyncGenerator[None]:
        """Knows its routes before the first request, and has written down every answer after the last."""
        await self.routing.refresh()
        writer = WriterProcess(self.plan.cards)
        async with self.upstreams.running(), self.shadow.running():
            tasks = [asyncio.create_task(self.routing.run()), asyncio.create_task(self._look())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                self.close()
                await asyncio.to_thread(writer.close)

    def close(self) -> None:
        """What was answered is on the disk then."""
        self.recorder.close()

    async def _look(self) -> None:
        for look in itertools.count():
            self.chat.look()
            try:
                if look % LOOKS_PER_FIGURE == 0:
                    await asyncio.to_thread(self.recorder.observe)
            except OSError as error:  # a figure is missing for a moment; what has to be cut is not
                log.warning("cards_not_looked_at", why=str(error))
            await asyncio.sleep(LOOK_SECONDS)
