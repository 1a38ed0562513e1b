"""POST /v1/agent/runs: an agent's run from the question to its answer, as events or as one; and asking again for one that is there.

    {"model": "research", "input": "What was ...?", "session": "s-17", "stream": true, "id": "my-own-41"}

A run that was accepted goes on whether or not its caller stays. The same `id` with the same request answers the same run, however
often it is sent; GET /v1/agent/runs/ID/events with Last-Event-ID goes on where a broken stream ended.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, Protocol

from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import State as AppState
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from litestar.response import Stream
from sqlalchemy import exc

from observability.access import Caller
from observability.runs import Run
from serving.gate import Gate, caller_of
from serving.gateway.asking import RunRequest, read, said_in
from serving.gateway.declined import Declined
from serving.gateway.driving import Accepted, Conflict, Full, Runner, Unknown
from serving.gateway.events import Story, stream_of
from serving.refusals import Refused

MOST_BODY = 1_000_000
HEARTBEAT_SECONDS = 10.0
WAIT_SECONDS = 600.0
"""That a caller without a stream is kept waiting; then it is told to ask again."""
EVENTS = "text/event-stream"
HEARTBEAT = b": the run goes on\n\n"
ACCEPTED, OK = 202, 200
TAGS = ["gateway"]
Asking = Request[Any, Any, AppState]


class Allowed(Protocol):
    """What a tenant has left. `take` raises Declined."""

    def take(self, now: float) -> None: ...
    def give_back(self, tokens: int) -> None: ...


def run_routes(
    runner: Runner, gate: Gate, allowance: Callable[[str], Allowed], wait_seconds: float = WAIT_SECONDS
) -> list[HTTPRouteHandler]:
    may: dict[str, Any] = {"guards": [gate.needs("run")], "tags": TAGS, "status_code": OK, "exception_handlers": {Declined: _declined}}

    @post("/v1/agent/runs", summary="Have an agent answer: to its end, with its tools", request_max_body_size=MOST_BODY, **may)
    async def start(request: Asking) -> Response[Any]:
        """`{"model", "input", "session"?, "item"?, "stream"?, "id"?, "metadata"?}`. Accepted is durable: the run goes on without its
        caller. With `stream` its events; else its end, or 202 where that takes long or waits for a person."""
        asked = read(await _body(request))
        run = await _submitted(runner, accepted(asked, caller_of(request)), allowance(caller_of(request).tenant))
        if asked.stream:
            return _streamed(runner, run, 0)
        await runner.settled(run.tenant, run.rollout_id, wait_seconds)
        return await _told(runner, run.tenant, run.rollout_id)

    @get("/v1/agent/runs/{run_id:str}", summary="How far a run is", **may)
    async def one(request: Asking, run_id: str) -> Response[Any]:
        return await _told(runner, caller_of(request).tenant, run_id)

    @get("/v1/agent/runs/{run_id:str}/events", summary="A run's events, as they come", **may)
    async def events(
        request: Asking,
        run_id: str,
        after: Annotated[int | None, Parameter(ge=0, le=2**31)] = None,
        last_event_id: Annotated[str, Parameter(header="last-event-id")] = "",
    ) -> Response[Any]:
        """From the one after `after`, or after the Last-Event-ID that a browser or client sends by itself when it connects again."""
        run, _ = await _found(runner, caller_of(request).tenant, run_id)
        seen = after if after is not None else int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else 0
        return _streamed(runner, run, min(seen, 2**31))

    return [start, one, events]


# --- what was asked -----------------------------------------------------------------------------------------------------


def accepted(asked: RunRequest, caller: Caller) -> Accepted:
    return Accepted(
        tenant=caller.tenant,
        caller=caller.name,
        service=asked.model,
        session=asked.session or f"own-{secrets.token_hex(12)}",
        said=said_in(asked),
        item=asked.item,
        metadata=asked.metadata,
        client_id=asked.id,
        hash=asked.hash,
    )


async def _body(request: Asking) -> bytes:
    try:
        return await request.body()
    except HTTPException as error:
        if error.status_code == 413:
            raise Refused(413, f"the body is larger than {MOST_BODY} bytes", "send less") from None
        raise


async def _submitted(runner: Runner, asked: Accepted, allowed: Allowed) -> Run:
    allowed.take(time.time())
    is_new = False
    try:
        run, is_new = await runner.submit(asked, allowed.give_back)
        return run
    except Unknown as error:
        raise Refused(404, error.what, error.cure) from None
    except Conflict as error:
        raise Refused(409, error.what, error.cure) from None
    except Full as error:
        raise Refused(
            429, "as many runs are in hand as this gateway takes", "send it again", retry_after=error.retry_after_seconds
        ) from None
    except (TimeoutError, exc.SQLAlchemyError) as error:
        what = "not known to be accepted: the store does not take it"
        raise Refused(503, what, "send it again, with an id that says that it is the same", retry_after=5) from error
    finally:
        if not is_new:
            allowed.give_back(0)


# --- what is answered ---------------------------------------------------------------------------------------------------


async def _found(runner: Runner, tenant: str, run_id: str) -> tuple[Run, Story]:
    try:
        return await runner.found(tenant, run_id)
    except Unknown as error:
        raise Refused(404, error.what, error.cure) from None


async def _told(runner: Runner, tenant: str, run_id: str) -> Response[Any]:
    run, story = await _found(runner, tenant, run_id)
    told: dict[str, Any] = {"id": run.rollout_id, "object": "agent.run", "model": run.service, "session": run.session, "status": run.state}
    if run.state == "done":
        told |= story.result()
    elif story.waiting:
        told |= {"status": "waiting", "approval": {"id": story.waiting.approval, "expires_at": story.waiting.expires_at}}
    return Response(told, status_code=OK if run.state == "done" else ACCEPTED, media_type=MediaType.JSON, headers=_headers(run))


def _streamed(runner: Runner, run: Run, after: int) -> Stream:
    async def told() -> AsyncGenerator[bytes]:
        async for first, news in runner.events(run.tenant, run.rollout_id, after, HEARTBEAT_SECONDS):
            yield stream_of(first, news) or HEARTBEAT

    return Stream(told(), media_type=EVENTS, status_code=OK, headers={**_headers(run), "cache-control": "no-store"})


def _headers(run: Run) -> dict[str, str]:
    return {"x-rft-run": run.rollout_id, "x-rft-arm": run.arm}


def _declined(_: Asking, declined: Declined) -> Response[Any]:
    headers = {} if declined.retry_after is None else {"retry-after": str(max(1, round(declined.retry_after)))}
    told = {"error": declined.what, "cure": declined.cure, "faults": []}
    return Response(told, status_code=declined.status, media_type=MediaType.JSON, headers=headers)
