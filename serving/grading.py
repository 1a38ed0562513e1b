"""`POST /grade`: the graders of training, over HTTP. And what every route that grades does with them.

A thread cannot be stopped, so a grading that outlasts its deadline keeps its place among those under way until it ends. When
all places are taken the server answers 503 with Retry-After, and tools and health as ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import structlog
from litestar import post
from litestar.exceptions import ClientException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body

from agent_rft.contracts.errors import InfraError, UserError, did_you_mean
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.ports import Grader
from agent_rft.graders.apply import checked
from agent_rft.graders.deadline import due_within
from serving.auth import Bearer
from serving.openapi import BEARER
from serving.threads import in_daemon_thread

OWN_SHARE = 0.9
"""Of the deadline, for what a grader waits for inside: it then ends first, and the reason told is its own."""
RETRY_AFTER_SECONDS = 5
T = TypeVar("T")
log = structlog.get_logger("serving.grading")


class GradeRequest(msgspec.Struct):
    item: dict[str, Any]
    sample: dict[str, Any]
    rollout_id: str = ""
    grader: str | None = None
    """Which; None takes the first."""


class Gradings:
    """All gradings of a server, so many at once. In threads: graders may run code or ask a judge, and tool calls must not wait
    behind them."""

    def __init__(self, deadline_seconds: float, most: int) -> None:
        self._deadline_seconds, self._most = deadline_seconds, most
        self._places = threading.BoundedSemaphore(most)

    async def grade(self, work: Callable[[], Grade], ref: GraderRef, rollout_id: str = "") -> Grade:
        """What `work` gives, or no score and the reason: never a grader's exception, and never a reward outside 0 to 1."""
        try:
            grade = await self.run(work)
        except ServiceUnavailableException:
            raise
        except TimeoutError:
            return _failed(ref, f"no grade within {self._deadline_seconds:g} s", rollout_id, flag="unresponsive_reward_error")
        except (UserError, InfraError) as error:
            return _failed(ref, str(error), rollout_id)
        except Exception as error:
            return _failed(ref, repr(error), rollout_id, error)
        return checked(grade)

    async def run(self, work: Callable[[], T]) -> T:
        """Raises TimeoutError where it takes longer than the deadline, and 503 where there is no place for it."""
        if not self._places.acquire(blocking=False):
            busy = f"{self._most} gradings are under way, as many as serving.grades_in_flight allows"
            raise ServiceUnavailableException(detail=busy, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})

        def in_its_place() -> T:
            try:
                with due_within(OWN_SHARE * self._deadline_seconds):
                    return work()
            finally:
                self._places.release()

        return await asyncio.wait_for(in_daemon_thread(in_its_place), self._deadline_seconds)


def grade_route(graders: Mapping[str, Grader], bearer: Bearer, gradings: Gradings) -> HTTPRouteHandler:
    @post("/grade", status_code=200, guards=[bearer.guard], security=BEARER, summary="Grade one sample", tags=["graders"])
    async def grade(data: Annotated[GradeRequest, Body()]) -> Grade:
        """A grader that failed gives no score: `reward` is null and `errors` says why."""
        name = data.grader or next(iter(graders), "")
        if name not in graders:
            raise ClientException(detail=f"there is no grader named '{name}'; {did_you_mean(name, graders)}")
        grader = graders[name]
        return await gradings.grade(lambda: grader.grade(data.item, data.sample), grader.ref, data.rollout_id)

    return grade


def _failed(ref: GraderRef, what: str, rollout_id: str, error: Exception | None = None, flag: str = "other_error") -> Grade:
    log.error("grader_failed", grader=ref.name, rollout_id=rollout_id, what=what, exc_info=error)
    return Grade(ref, None, errors={flag: what})
