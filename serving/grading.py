"""`POST /grade`: the graders of training, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from litestar import post
from litestar.exceptions import ClientException
from litestar.handlers import HTTPRouteHandler

from agent_rft.contracts.errors import did_you_mean
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader
from serving.auth import Bearer
from serving.openapi import BEARER
from serving.threads import in_daemon_thread

log = structlog.get_logger("serving.grading")


class GradeRequest(msgspec.Struct):
    item: dict[str, Any]
    sample: dict[str, Any]
    rollout_id: str = ""
    grader: str | None = None
    """Which; None takes the first."""


def grade_route(graders: Mapping[str, Grader], bearer: Bearer, deadline_seconds: float) -> HTTPRouteHandler:
    @post("/grade", status_code=200, guards=[bearer.guard], security=BEARER, summary="Grade one sample", tags=["graders"])
    async def grade(data: GradeRequest) -> Grade:
        """A grader that failed gives no score: `reward` is null and `errors` says why."""
        name = data.grader or next(iter(graders), "")
        if name not in graders:
            raise ClientException(detail=f"there is no grader named '{name}'; {did_you_mean(name, graders)}")
        grader = graders[name]
        try:
            # In a thread: graders may run code or ask a judge, and tool calls must not wait behind them.
            return await asyncio.wait_for(in_daemon_thread(grader.grade, data.item, data.sample), deadline_seconds)
        except Exception as error:
            log.error("grader_failed", grader=name, rollout_id=data.rollout_id, exc_info=True)
            return Grade(grader.ref, None, errors={"other_error": repr(error)})

    return grade
