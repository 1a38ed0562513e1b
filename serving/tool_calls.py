"""The hot path: tool calls over HTTP, from bytes to bytes.

A training step sends hundreds of these at once, so this is a plain ASGI callable inside the Litestar app: body decoded
straight into a record by msgspec, no request object, no dependency injection, no log line for what goes well.

Who may call, and what stands between a call and its tool, is the `Desk`'s. The one for training is here: one bearer, every call run,
bursts queue, and no idempotency, since tools that only read answer the same (rollout_id, call_id) delivered twice, which a client's
retry makes it, twice the same. The one for production is in production_tools.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec
import structlog
from litestar.types import Receive, Scope, Send

from agent_rft.contracts.errors import InfraError, did_you_mean
from agent_rft.contracts.ports import ToolProvider
from observability.access import Caller
from serving.auth import HOW, Bearer
from serving.threads import in_daemon_thread
from serving.tools.context import CallKey, current_call, current_deadline

CHALLENGED = (b"www-authenticate", b"Bearer")
DEADLINE = b"x-rft-deadline"
log = structlog.get_logger("serving.tools")
Answer = tuple[str, str | None]


class ToolRequest(msgspec.Struct):
    call_id: str
    rollout_id: str = ""
    arguments: Any = msgspec.field(default_factory=dict[str, Any])
    """As the model wrote them: not an object is the model's mistake, and answered as one."""


class ToolAnswer(msgspec.Struct):
    output: str
    call_id: str
    error: str | None = None
    """None, model_error or policy_denied."""


class Refused(Exception):
    """A request that no tool sees: the calling program's mistake, never the model's; or nobody's, where it has to wait."""

    def __init__(
        self, status: int, detail: str, header: tuple[bytes, bytes] | None = None, more: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = [header] if header else []
        self.more = more or {}


class Who(msgspec.Struct, frozen=True):
    """On whose behalf a call is made."""

    tenant: str = ""
    """Empty in training, where all are one."""
    name: str = ""
    caller: Caller | None = None
    """Whose key it is; None: the server's own bearer."""


class Desk(Protocol):
    async def admit(self, scope: Any) -> Who:
        """Who sends it; Refused if nobody who may."""
        ...

    async def run(self, who: Who, name: str, request: ToolRequest) -> Answer: ...


class TrainingDesk:
    def __init__(self, bearer: Bearer, runner: ToolRunner) -> None:
        self._bearer = bearer
        self._runner = runner

    async def admit(self, scope: Any) -> Who:
        if not self._bearer.admits(scope["headers"]):
            raise Refused(401, HOW, CHALLENGED)
        return Who()

    async def run(self, who: Who, name: str, request: ToolRequest) -> Answer:
        return await self._runner.run(name, request.arguments)


class ToolRunner:
    """Runs one call to its end: an answer for the model, or InfraError once retries are spent."""

    def __init__(
        self,
        tools: ToolProvider,
        deadline_seconds: float = 15.0,
        attempts: int = 3,
        backoff_seconds: float = 0.05,
        max_threads: int = 64,
    ) -> None:
        self._tools = tools
        self._blocks = bool(getattr(tools, "blocks", False))
        self._attempts = attempts
        self._attempt_seconds = deadline_seconds / attempts
        self._backoff_seconds = backoff_seconds
        self._places = asyncio.Semaphore(max_threads)
        self._required = {spec.name: tuple(spec.parameters.get("required", ())) for spec in tools.specs}

    async def run(self, name: str, arguments: Any) -> Answer:
        required = self._required.get(name)
        if required is None:
            return f"Error: there is no tool named {name}; {did_you_mean(name, self._required)}", "model_error"
        if not isinstance(arguments, dict):
            return f"Error: {' and '.join(required) or 'an object'} is required: arguments must be a JSON object", "model_error"
        return await self._attempt(name, arguments)

    async def _attempt(self, name: str, arguments: dict[str, Any]) -> Answer:
        attempt = 1
        while True:
            try:
                if self._blocks:
                    return await self._in_thread(name, arguments)
                # On the event loop: an answer from memory takes well under a millisecond, less than handing it to a
                # thread and back would add, and one process has one core for Python either way. Tools that wait for
                # something say so (`blocks`), and only they get threads.
                return self._tools.call(name, arguments)
            except Exception as error:
                what = f"no answer within {self._attempt_seconds:g} s" if isinstance(error, TimeoutError) else repr(error)
                if attempt == self._attempts:
                    key = current_call.get() or CallKey("", "")
                    log.error("tool_failed", tool=name, attempts=attempt, **key._asdict(), exc_info=error)
                    raise InfraError(f"tool:{name}", f"{what}, {attempt} attempts") from error
            await asyncio.sleep(self._backoff_seconds * 2 ** (attempt - 1))
            attempt += 1

    async def _in_thread(self, name: str, arguments: dict[str, Any]) -> Answer:
        """The deadline starts with the call: queueing for a place, which a burst makes everybody do, is no fault of the tool.
        A call that is given up keeps its place until its thread really ends, so that tools which hang cannot pile up threads."""
        await self._places.acquire()
        work = asyncio.ensure_future(in_daemon_thread(self._tools.call, name, arguments))
        work.add_done_callback(lambda _: self._places.release())
        return await asyncio.wait_for(asyncio.shield(work), self._attempt_seconds)


class ToolEndpoint:
    """`POST /tools/{name}`, its short forms, and `GET /tools`, which tells what there is."""

    def __init__(self, tools: ToolProvider, desk: Desk, max_body_bytes: int) -> None:
        self._desk = desk
        self._max_body_bytes = max_body_bytes
        self._decode = msgspec.json.Decoder(ToolRequest).decode
        self._encode = msgspec.json.Encoder().encode
        self._catalogue = self._encode({"tools": [spec.as_openai() for spec in tools.specs], "version": tools.version})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers = 200, []
        try:
            body = await self._answer(scope, receive)
        except Refused as refused:
            status, headers = refused.status, refused.headers
            body = self._encode({"status_code": refused.status, "detail": refused.detail, **refused.more})
        except InfraError as failure:
            status, body = 503, self._encode({"infra_error": {"part": failure.part, "what": failure.what}})
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, scope: Any, receive: Receive) -> bytes:
        who = await self._desk.admit(scope)
        path = scope["path"]  # what Litestar's mount leaves: "/search/", and "x/" for a stranger such as "/toolsx"
        if not path.startswith("/"):
            raise Refused(404, "no such path; a tool is called at /tools/{name}")
        name = path.strip("/")
        if scope["method"] != "POST":
            if scope["method"] == "GET" and not name:
                return self._catalogue
            raise Refused(405, "call a tool with POST", (b"allow", b"POST"))
        try:
            request = self._decode(await self._body(scope, receive))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            shape = '{"arguments": {...}, "call_id": "...", "rollout_id": "..."}'
            raise Refused(400, f"the body must be JSON like {shape}: {error}") from error
        current_call.set(CallKey(request.rollout_id, request.call_id, who.tenant))  # each request is a task with a context of its own
        if (seconds := _deadline(scope["headers"])) is not None:
            current_deadline.set(time.monotonic() + seconds)
        output, error = await self._desk.run(who, name, request)
        return self._encode(ToolAnswer(output, request.call_id, error))

    async def _body(self, scope: Any, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the client went away")
            body += message["body"]
            more = message.get("more_body", False)
            if len(body) > self._max_body_bytes:
                raise Refused(413, f"the body is larger than {self._max_body_bytes} bytes")
        return body


def _deadline(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """For how many seconds the caller waits."""
    for name, value in headers:
        if name == DEADLINE:
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if not 0 < seconds < math.inf:
                raise Refused(400, f"{DEADLINE.decode()} is the seconds that are left, such as 12.5; found {value[:40]!r}")
            return seconds
    return None
