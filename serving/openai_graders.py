"""OpenAI's grader endpoints: validate one and run one, in the published shapes, so that its clients change their base URL only.

Where we differ, and why:

- a grader that failed has `reward` null with its flag, and never a 0: a broken grader must not look like a bad answer;
- `reward` is from 0 to 1 whatever the `range` of a judge; its score as it was given is `metadata.scores.score`;
- `metadata.error_details` says what is behind each flag, for several graders under their keys; the published flags have room
  for three of them;
- `model_sample` may be an object, which is then the whole `sample`: a text alone cannot hold tool calls.

A grader that does not fit the published schema is refused with 400 and every fault. One that fits, but whose formula or
templates cannot be read, can be run, and fails with its flag: the schema does not know of these.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

import msgspec
from litestar import Request, Response, post
from litestar.exceptions import HTTPException, NotAuthorizedException, ServiceUnavailableException
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body

from agent_rft.contracts.errors import Fault, FaultsFound, InfraError, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.ports import Grader
from agent_rft.graders import spec as specs
from agent_rft.graders.pure import Build, build_pure
from agent_rft.graders.python_grader import PythonGrader
from agent_rft.graders.samples import sample_of_text
from agent_rft.graders.spec import GraderSpec, flags_of, read_spec
from serving.auth import CHALLENGE, Bearer
from serving.grading import Gradings
from serving.openapi import BEARER, response
from serving.threads import in_daemon_thread

FOLDER = "/fine_tuning/alpha/graders"
PREFIXES = ("", "/v1")
"""Clients' base URLs end in /v1, or do not."""
BODY = "data"
"""Litestar's name for the body as a whole."""


class ValidateRequest(msgspec.Struct):
    grader: dict[str, Any]


class ValidateResponse(msgspec.Struct):
    grader: dict[str, Any]
    """As it came."""


class RunRequest(msgspec.Struct):
    grader: dict[str, Any]
    model_sample: str | dict[str, Any]
    """The model's answer; `sample.output_json` is there when it is valid JSON. Or the whole `sample`."""
    item: dict[str, Any] | None = None


class ErrorFlags(msgspec.Struct):
    formula_parse_error: bool = False
    sample_parse_error: bool = False
    truncated_observation_error: bool = False
    unresponsive_reward_error: bool = False
    invalid_variable_error: bool = False
    other_error: bool = False
    python_grader_server_error: bool = False
    python_grader_server_error_type: str | None = None
    python_grader_runtime_error: bool = False
    python_grader_runtime_error_details: str | None = None
    model_grader_server_error: bool = False
    model_grader_refusal_error: bool = False
    model_grader_parse_error: bool = False
    model_grader_server_error_details: str | None = None


DETAILS = {
    "python_grader_server_error": "python_grader_server_error_type",
    "python_grader_runtime_error": "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}
FLAGS = set(ErrorFlags.__struct_fields__) - set(DETAILS.values())

UNBUILT: dict[type[Any], str] = {
    specs.Python: "python_grader_server_error",
    specs.CodeRun: "python_grader_server_error",
    specs.ScoreModel: "model_grader_server_error",
    specs.LabelModel: "model_grader_server_error",
    specs.TextSimilarity: "model_grader_server_error",
}
"""The flag of a type whose service is missing here: the sandbox, a judge, a model that embeds texts."""

NEEDS: dict[type[Any], str] = {
    specs.Python: "configure a sandbox: it needs bubblewrap",
    specs.CodeRun: "configure a sandbox: it needs bubblewrap",
    specs.ScoreModel: "configure a judge: the address of an OpenAI-compatible server",
    specs.LabelModel: "configure a judge: the address of an OpenAI-compatible server",
    specs.Endpoint: "start a server that may call the endpoints of others",
}


class Metadata(msgspec.Struct):
    name: str
    type: str
    errors: ErrorFlags
    execution_time: float
    """Seconds."""
    scores: dict[str, Any]
    """`score`: in the grader's own units, where it has any."""
    token_usage: int | None
    """All tokens of all models; null where none was asked."""
    sampled_model_name: str | None
    """Null where none was asked, or several."""
    error_details: dict[str, Any]


class RunResponse(msgspec.Struct):
    reward: float | None
    """0 to 1; null where the grader failed."""
    metadata: Metadata
    sub_rewards: dict[str, Any]
    """Of a multi or stack: the score of each of its graders."""
    model_grader_token_usage_per_model: dict[str, dict[str, int]]


class ApiError(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct):
    error: ApiError


REFUSED = {
    400: response(ErrorResponse, "No usable grader, with every fault, or no such request"),
    401: response(ErrorResponse, "Missing or wrong bearer"),
}


def openai_routes(build: Build, bearer: Bearer, gradings: Gradings) -> list[HTTPRouteHandler]:
    common: dict[str, Any] = {
        "status_code": 200,
        "guards": [bearer.guard],
        "security": BEARER,
        "tags": ["graders, as OpenAI's"],
        "responses": REFUSED,
        "exception_handlers": {HTTPException: _no_request, RecursionError: _too_deep},
    }

    @post([f"{prefix}{FOLDER}/validate" for prefix in PREFIXES], summary="Validate a grader", **common)
    async def validate(data: Annotated[ValidateRequest, Body()]) -> Response[ValidateResponse]:
        try:
            await gradings.run(lambda: _check(data.grader, build))
        except FaultsFound as found:
            return _no_grader(found)
        except TimeoutError:
            return _refused(503, "the grader's sources did not end in time", None, None)
        return Response(ValidateResponse(data.grader))

    @post([f"{prefix}{FOLDER}/run" for prefix in PREFIXES], summary="Run a grader on one sample", **common)
    async def run(data: Annotated[RunRequest, Body()]) -> Response[RunResponse]:
        """A grader that failed gives no score: `reward` is null and `metadata.errors` says why."""
        began = time.perf_counter()
        try:
            grade = await _run(build, data, gradings)
        except FaultsFound as found:
            return _no_grader(found)
        return Response(_told(grade, data.grader, time.perf_counter() - began))

    return [validate, run]


async def _run(build: Build, data: RunRequest, gradings: Gradings) -> Grade:
    nameless = GraderRef(str(data.grader.get("type")), "", "")
    try:
        spec = await in_daemon_thread(_read, data.grader)
    except FaultsFound as found:
        flags = flags_of(found)
        if "other_error" in flags:
            raise
        return Grade(nameless, None, errors=flags)
    sample = sample_of_text(data.model_sample) if isinstance(data.model_sample, str) else data.model_sample

    def build_and_grade() -> Grade:
        try:
            grader = build(spec)
        except (UserError, InfraError) as error:
            return Grade(nameless, None, errors=_unbuilt(spec, build) or {"other_error": _said(error)})
        return grader.grade(data.item or {}, sample)

    return await gradings.grade(build_and_grade, nameless)


def _read(grader: dict[str, Any]) -> GraderSpec:
    try:
        return read_spec(grader)
    except RecursionError:
        raise FaultsFound("grader is no usable grader", [Fault("grader", "is nested too deep")]) from None


def _check(grader: dict[str, Any], build: Build) -> None:
    if faults := _source_faults(_read(grader), build, "grader"):
        raise FaultsFound("grader is no usable grader", faults)


def _source_faults(spec: GraderSpec, build: Build, where: str) -> list[Fault]:
    """Of each python source, run in the sandbox without anything to grade. A server without a sandbox cannot tell."""
    if parts := _parts(spec):
        return [fault for key, part in parts.items() for fault in _source_faults(part, build, f"{where}.{_path(spec, key)}")]
    if not isinstance(spec, specs.Python):
        return []
    try:
        grader = build(spec)
    except (UserError, InfraError):
        return []
    return grader.faults(f"{where}.source") if isinstance(grader, PythonGrader) else []


def pure_only(spec: GraderSpec) -> Grader:
    """For a server that was given neither judge nor sandbox, and that calls no endpoints."""
    grader = build_pure(spec, pure_only)
    if grader is None:
        raise UserError(f"this server was not given what '{spec.name}' needs", NEEDS[type(spec)])
    return grader


def _unbuilt(spec: GraderSpec, build: Build) -> dict[str, str]:
    """What is missing, of each part under its key. Built once more, part by part: the whole stops at the first that cannot be."""
    parts = _parts(spec)
    told = {f"{key}.{flag}": what for key, part in parts.items() for flag, what in _unbuilt(part, build).items()}
    if parts:
        return told
    try:
        build(spec)
    except (UserError, InfraError) as error:
        return {UNBUILT.get(type(spec), "other_error"): _said(error)}
    return {}


def _said(error: UserError | InfraError) -> str:
    return f"{error.what}: {error.cure}" if error.cure else error.what


def _parts(spec: GraderSpec) -> Mapping[str, GraderSpec]:
    match spec:
        case specs.Multi():
            return spec.graders
        case specs.Stack():
            return {role: part.grader for role, part in spec.parts().items()}
        case _:
            return {}


def _path(spec: GraderSpec, key: str) -> str:
    """Where a part stands in the JSON of its multi or stack."""
    return f"graders.{key}" if isinstance(spec, specs.Multi) else f"{key}.grader"


def _told(grade: Grade, grader: Mapping[str, Any], seconds: float) -> RunResponse:
    per_model: dict[str, Counter[str]] = {}
    for model, used in _usages(grade.parts):
        per_model.setdefault(model, Counter()).update(used)
    score = grade.parts.get("score")
    metadata = Metadata(
        name=str(grader.get("name") or grader["type"]),
        type=str(grader["type"]),
        errors=_flags(grade.errors),
        execution_time=seconds,
        scores={} if score is None else {"score": score},
        token_usage=sum(used["total_tokens"] for used in per_model.values()) if per_model else None,
        sampled_model_name=next(iter(per_model)) if len(per_model) == 1 else None,
        error_details=grade.errors,
    )
    return RunResponse(grade.reward, metadata, grade.parts.get("sub_rewards", {}), {model: dict(used) for model, used in per_model.items()})


def _flags(errors: Mapping[str, Any]) -> ErrorFlags:
    """A flag of a part stands under its key: accuracy.invalid_variable_error. A flag that OpenAI has not is another error."""
    told = {key.rpartition(".")[2]: str(what) for key, what in errors.items()}
    flags = {flag if flag in FLAGS else "other_error" for flag in told if flag not in DETAILS.values()}
    details = {detail: told.get(detail, told[flag]) for flag, detail in DETAILS.items() if flag in told}
    return msgspec.convert({**dict.fromkeys(flags, True), **details}, ErrorFlags)


def _usages(parts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Each judge's, however deep in a stack of multis."""
    yield from parts.get("model_grader_token_usage_per_model", {}).items()
    for part in parts.get("graders", {}).values():
        yield from _usages(part["parts"])


def _no_grader(found: FaultsFound) -> Response[Any]:
    return _refused(400, str(found), found.faults[0].where, "invalid_grader")


def _no_request(_request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorResponse]:
    """Refusals before anything is graded: of the body, of its size, of who asks, and for want of a place."""
    if isinstance(error, NotAuthorizedException):
        return _refused(401, error.detail, None, "invalid_api_key", CHALLENGE)
    if isinstance(error, ServiceUnavailableException):
        return _refused(503, error.detail, None, None, error.headers)
    faults = [(fault.get("key", BODY), fault["message"]) for fault in cast(list[dict[str, str]], error.extra or [])]
    told = [message if key == BODY else f"{key}: {message}" for key, message in faults]
    keys = [key for key, _ in faults if key != BODY]
    return _refused(error.status_code, "; ".join(told) or f"the body: {error.detail}", keys[0] if keys else None, None)


def _too_deep(_request: Request[Any, Any, Any], _error: RecursionError) -> Response[ErrorResponse]:
    return _refused(400, "the body is nested too deep", None, None)


def _refused(status: int, message: str, param: str | None, code: str | None, headers: Mapping[str, str] | None = None) -> Response[Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Response(ErrorResponse(ApiError(message, kind, param, code)), status_code=status, headers=headers)
