"""Azure's two protocols, served: its endpoint grader and its tool calls. A trainer made for them changes its URLs only.

In both, `trace_id` is the rollout's id. Whoever asks knows three outcomes. A 200 is the result. A 4xx without `output` is shown
to the model: here 422, for what the model did wrong. A 5xx is asked again, up to three times, and then the rollout is thrown
away: here 503, where a tool or a grader failed, or too much is being graded. So a failure of ours never becomes a score or
something that the model reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, post
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body, Parameter

from agent_rft.contracts.errors import InfraError, did_you_mean
from agent_rft.contracts.ports import Grader
from agent_rft.graders.samples import NOT_JSON, json_of
from serving.auth import Bearer
from serving.grading import Gradings
from serving.openapi import BEARER, response
from serving.tool_calls import ToolRunner
from serving.tools.context import CallKey, current_call


class EndpointSample(msgspec.Struct):
    sample: dict[str, Any]
    item: dict[str, Any] = {}
    trace_id: str = ""


class Score(msgspec.Struct):
    score: float
    """0 to 1."""


class FunctionCall(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    """As the model wrote them: not an object in JSON is the model's mistake, and answered as one."""
    id: str = ""
    trace_id: str = ""
    item: Any = None
    type: Literal["function_call"] = "function_call"


class FunctionCallOutput(msgspec.Struct):
    call_id: str
    id: str
    output: str
    type: Literal["function_call_output"] = "function_call_output"


class ToolError(msgspec.Struct):
    type: str
    """model_error or policy_denied."""
    message: str


class ToolErrorResponse(msgspec.Struct):
    error: ToolError


class Failure(msgspec.Struct):
    part: str
    what: str


class FailureResponse(msgspec.Struct):
    infra_error: Failure


SHOWN = response(ToolErrorResponse, "The model's mistake, for it to read")
FAILED = response(FailureResponse, "Not the model's fault: ask again, then throw the rollout away")


def azure_routes(graders: Mapping[str, Grader], runner: ToolRunner | None, bearer: Bearer, gradings: Gradings) -> list[HTTPRouteHandler]:
    """Without a runner no tools: in production a call is a tenant's, and these calls say of none whose they are."""
    common: dict[str, Any] = {
        "status_code": 200,
        "guards": [bearer.guard],
        "security": BEARER,
        "tags": ["as Azure's"],
    }

    @post("/azure/graders/{name:str}", summary="Grade one sample", responses={503: FAILED}, **common)
    async def grade(name: Annotated[str, Parameter()], data: Annotated[EndpointSample, Body()]) -> Response[Score]:
        if name not in graders:
            raise NotFoundException(detail=f"there is no grader named '{name}'; {did_you_mean(name, graders)}")
        sample = {"rollout_id": data.trace_id, **data.sample}
        grade = await gradings.grade(lambda: graders[name].grade(data.item, sample), graders[name].ref, data.trace_id)
        if grade.reward is None:
            return _failed(f"grader:{name}", "; ".join(f"{flag}: {what}" for flag, what in grade.errors.items()))
        return _answer(200, Score(grade.reward))

    return [grade, *([_tool_route(runner, common)] if runner else [])]


def _tool_route(runner: ToolRunner, common: dict[str, Any]) -> HTTPRouteHandler:
    @post("/azure/tools", summary="Call a tool", responses={422: SHOWN, 503: FAILED}, **common)
    async def call(data: Annotated[FunctionCall, Body()]) -> Response[FunctionCallOutput]:
        current_call.set(CallKey(data.trace_id, data.call_id))  # each request is a task with a context of its own
        arguments = json_of(data.arguments)
        try:
            output, error = await runner.run(data.name, None if arguments is NOT_JSON else arguments)
        except InfraError as failure:
            return _failed(failure.part, failure.what)
        if error is not None:
            return _answer(422, ToolErrorResponse(ToolError(error, output)))
        return _answer(200, FunctionCallOutput(data.call_id, data.id, output))

    return call


def _failed(part: str, what: str) -> Response[Any]:
    return _answer(503, FailureResponse(Failure(part, what)))


def _answer(status: int, body: msgspec.Struct) -> Response[Any]:
    return Response(body, status_code=status)
