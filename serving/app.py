"""The app factory: tools and graders in, one ASGI app out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import structlog
from litestar import Litestar, Router, get
from litestar.handlers import ASGIRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.types import Scope

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.ports import Grader, ToolProvider
from agent_rft.graders.pure import Build
from observability.intake import Intake
from observability.roots import LedgerFiles
from observability.store import Store, answers
from serving.access_api import access_routes
from serving.approvals_api import approval_routes
from serving.auth import Bearer
from serving.azure import azure_routes
from serving.cards_api import cards_routes
from serving.gate import Gate
from serving.gateway.agents import Agents
from serving.gateway.app import Gateway, promises_of
from serving.grading import Gradings, grade_route
from serving.ingest import ingest_routes
from serving.keeping_api import keeping_routes
from serving.labels import DeskOf, label_routes
from serving.metrics import metrics_route
from serving.openai_graders import openai_routes, pure_only
from serving.openapi import COMPONENTS, document_gateway, document_tools
from serving.ops_api import ops_routes
from serving.pages.login import login_routes
from serving.pages.routes import pages_routes
from serving.production_tools import ProductionDesk, Rules
from serving.refusals import REFUSALS
from serving.release.api import release_routes
from serving.release.control import ReleaseControl
from serving.release.looking import Promises
from serving.threads import in_daemon_thread
from serving.tool_calls import ToolEndpoint, ToolRunner, TrainingDesk

TOOL_PATHS = ("/tools",)
SHORT_FORMS = ("/search", "/list", "/read")
HEALTH_SECONDS = 1.0
"""By when the store has to say that it is there."""
QUESTION_SECONDS = 30.0
"""What PostgreSQL may take over one question of a caller's."""
BUSY = 503
"""Answered on purpose; thousands of these need no stack trace each."""
log = structlog.get_logger("serving")


def create_app(
    tools: ToolProvider,
    graders: Mapping[str, Grader],
    bearer: str | None,
    *,
    build: Build = pure_only,
    desk_of: DeskOf | None = None,
    store: Store | None = None,
    intake: Intake | None = None,
    ledger_folder: str | None = None,
    call_deadline_seconds: float = 15.0,
    grade_deadline_seconds: float = 150.0,
    grades_in_flight: int = 256,
    max_body_bytes: int = 1_000_000,
    gateway: Gateway | None = None,
    agents: Agents | None = None,
    production: Rules | None = None,
    control: ReleaseControl | None = None,
    release_policy: Mapping[str, Any] | None = None,
) -> Litestar:
    """Everything but /health and /schema asks for the bearer; None lets everybody in.

    `graders` are served by their names; `build` makes those that come in as JSON. With a `store`, `desk_of`, `intake` and `gateway`
    people and programs come in, each with a key; with `production` tools too are called so. `control` moves releases."""
    gate = Bearer(bearer)
    runner = ToolRunner(tools, call_deadline_seconds)
    gradings = Gradings(grade_deadline_seconds, grades_in_flight)
    desk = TrainingDesk(gate, runner)
    if production and store:
        keys = Gate(store.ending_questions_after(QUESTION_SECONDS))
        desk = ProductionDesk(tools, runner, keys, bearer, production, call_deadline_seconds)
    endpoint = ToolEndpoint(tools, desk, max_body_bytes)

    @get("/health", summary="Whether it is up, and what it serves", tags=["server"])
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "store": await _state_of(store),
            "tools": {"version": tools.version, "names": [spec.name for spec in tools.specs]},
            "graders": {name: {"version": grader.ref.version, "hash": grader.ref.hash} for name, grader in graders.items()},
        }

    app = Litestar(
        [
            ASGIRouteHandler("/tools", is_mount=True, copy_scope=False)(endpoint.__call__),
            ASGIRouteHandler(list(SHORT_FORMS), copy_scope=False)(endpoint.__call__),
            grade_route(graders, gate, gradings),
            *openai_routes(build, gate, gradings),
            *azure_routes(graders, None if production else runner, gate, gradings),
            *(
                [
                    store_routes(
                        store,
                        LedgerFiles.of(store, ledger_folder),
                        intake,
                        desk_of,
                        release_policy,
                        promises_of(gateway.plan) if gateway else Promises(),
                    )
                ]
                if store
                else []
            ),
            *(gateway.routes() if gateway else []),
            *(agents.routes() if agents else []),
            metrics_route(gate),
            health,
        ],
        lifespan=[part.running for part in (gateway, agents, control) if part],
        logging_config=None,  # Litestar's own logs each request; what fails is logged below instead
        after_exception=[log_if_ours],
        request_max_body_size=max_body_bytes,
        openapi_config=OpenAPIConfig(
            "agent-rft: tools and graders", "1", components=COMPONENTS, render_plugins=[SwaggerRenderPlugin(), JsonRenderPlugin()]
        ),
    )
    document_tools(app.openapi_schema, tools.specs, SHORT_FORMS)
    if gateway:
        document_gateway(app.openapi_schema)
    return app


async def _state_of(store: Store | None) -> Literal["none", "ok", "away"]:
    if store is None:
        return "none"
    try:
        return "ok" if await asyncio.wait_for(in_daemon_thread(answers, store), HEALTH_SECONDS) else "away"
    except TimeoutError:
        return "away"


def store_routes(
    store: Store,
    files: LedgerFiles,
    intake: Intake | None,
    desk_of: DeskOf | None = None,
    policy: Mapping[str, Any] | None = None,
    promises: Promises | None = None,
) -> Router:
    """Every one of them asks the gate who it is, and answers for their tenant only."""
    gate = Gate(store.ending_questions_after(QUESTION_SECONDS))
    ingest = ingest_routes(intake, gate) if intake else []
    return Router(
        "/",
        route_handlers=[
            *login_routes(gate),
            *access_routes(gate),
            *(cards_routes(gate, intake.detectors) if intake else cards_routes(gate)),
            *keeping_routes(gate),
            *approval_routes(gate),
            *release_routes(gate, files, policy),
            *ops_routes(gate, promises or Promises()),
            *pages_routes(gate, files, promises),
            *(label_routes(gate, desk_of) if desk_of else []),
            *ingest,
        ],
        exception_handlers=REFUSALS,
    )


async def log_if_ours(error: Exception, scope: Scope) -> None:
    if isinstance(error, UserError | RecursionError | UnicodeDecodeError):  # the caller's
        return
    status = getattr(error, "status_code", 500)
    if status >= 500 and status != BUSY:
        log.error("request_failed", path=scope["path"], exc_info=error)
