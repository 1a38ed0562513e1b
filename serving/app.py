"""The app factory: tools and graders in, one ASGI app out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from litestar import Litestar, get
from litestar.handlers import ASGIRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.types import Scope

from agent_rft.contracts.ports import Grader, ToolProvider
from agent_rft.graders.labelling import Desk
from agent_rft.graders.pure import Build
from serving.auth import Bearer
from serving.azure import azure_routes
from serving.grading import Gradings, grade_route
from serving.labels import label_routes
from serving.openai_graders import openai_routes, pure_only
from serving.openapi import COMPONENTS, document_tools
from serving.tool_calls import ToolEndpoint, ToolRunner

TOOL_PATHS = ("/tools",)
SHORT_FORMS = ("/search", "/list", "/read")
BUSY = 503
"""Answered on purpose; thousands of these need no stack trace each."""
log = structlog.get_logger("serving")


def create_app(
    tools: ToolProvider,
    graders: Mapping[str, Grader],
    bearer: str | None,
    *,
    build: Build = pure_only,
    desk: Desk | None = None,
    call_deadline_seconds: float = 15.0,
    grade_deadline_seconds: float = 150.0,
    grades_in_flight: int = 256,
    max_body_bytes: int = 1_000_000,
) -> Litestar:
    """Everything but /health and /schema asks for the bearer; None lets everybody in.

    `graders` are served by their names; `build` makes those that come in as JSON. With a `desk` people label at /labels.
    """
    gate = Bearer(bearer)
    runner = ToolRunner(tools, call_deadline_seconds)
    gradings = Gradings(grade_deadline_seconds, grades_in_flight)
    endpoint = ToolEndpoint(tools, gate, runner, max_body_bytes)

    @get("/health", summary="Whether it is up, and what it serves", tags=["server"])
    async def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "tools": {"version": tools.version, "names": [spec.name for spec in tools.specs]},
            "graders": {name: {"version": grader.ref.version, "hash": grader.ref.hash} for name, grader in graders.items()},
        }

    app = Litestar(
        [
            ASGIRouteHandler("/tools", is_mount=True, copy_scope=False)(endpoint.__call__),
            ASGIRouteHandler(list(SHORT_FORMS), copy_scope=False)(endpoint.__call__),
            grade_route(graders, gate, gradings),
            *openai_routes(build, gate, gradings),
            *azure_routes(graders, runner, gate, gradings),
            *(label_routes(desk, gate) if desk else []),
            health,
        ],
        logging_config=None,  # Litestar's own logs each request; what fails is logged below instead
        after_exception=[log_if_ours],
        request_max_body_size=max_body_bytes,
        openapi_config=OpenAPIConfig(
            "agent-rft: tools and graders", "1", components=COMPONENTS, render_plugins=[SwaggerRenderPlugin(), JsonRenderPlugin()]
        ),
    )
    document_tools(app.openapi_schema, tools.specs, SHORT_FORMS)
    return app


async def log_if_ours(error: Exception, scope: Scope) -> None:
    status = getattr(error, "status_code", 500)
    if status >= 500 and status != BUSY:
        log.error("request_failed", path=scope["path"], exc_info=error)
