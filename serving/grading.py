"""`POST /grade`: the graders of training, over HTTP. And what every route that grades does with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
import structlog
from litestar import post
from litestar.exceptions import ClientException
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body

from agent_rft.contracts.errors import InfraError, UserError, did_you_mean
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.ports import Grader
from agent_rft.graders.apply import checked
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
    async def grade(data: Annotated[GradeRequest, Body()]) -> Grade:
        """A grader that failed gives no score: `reward` is null and `errors` says why."""
        name = data.grader or next(iter(graders), "")
        if name not in graders:
            raise ClientException(detail=f"there is no grader named '{name}'; {did_you_mean(name, graders)}")
        grader = graders[name]
        return await graded(lambda: grader.grade(data.item, data.sample), grader.ref, deadline_seconds, data.rollout_id)

    return grade


async def graded(work: Callable[[], Grade], ref: GraderRef, deadline_seconds: float, rollout_id: str = "") -> Grade:
    """What `work` gives, or no score and the reason: never an exception, and never a reward outside 0 to 1.

    In a thread: graders may run code or ask a judge, and tool calls must not wait behind them.
    """
    try:
        grade = await asyncio.wait_for(in_daemon_thread(work), deadline_seconds)
    except TimeoutError:
        return _failed(ref, f"no grade within {deadline_seconds:g} s", rollout_id)
    except (UserError, InfraError) as error:
        return _failed(ref, str(error), rollout_id)
    except Exception as error:
        return _failed(ref, repr(error), rollout_id, error)
    return checked(grade)


def _failed(ref: GraderRef, what: str, rollout_id: str, error: Exception | None = None) -> Grade:
    log.error("grader_failed", grader=ref.name, rollout_id=rollout_id, what=what, exc_info=error)
    return Grade(ref, None, errors={"other_error": what})
