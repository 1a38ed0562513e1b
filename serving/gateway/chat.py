"""The hot path: `POST /v1/chat/completions`, from bytes to bytes.

A plain ASGI callable inside the Litestar app, like that of the tools: no request object, no log line for what goes well. The arm is
fixed as a request begins, and stays. A candidate that gives no answer before the caller was sent anything has failed, and the live
agent answers: the caller sees no error, the release does.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import structlog
from litestar.types import Receive, Send
from prometheus_client import Counter, Histogram

from agent_rft.contracts.agents import Agent, Arm, Route
from agent_rft.contracts.errors import UserError
from agent_rft.release.assignment import arm_of
from agent_rft.rollouts.driver import new_rollout_id
from serving import metrics
from serving.gateway.cardmaking import Kept
from serving.gateway.declined import Declined
from serving.gateway.keys import Keys
from serving.gateway.quotas import Allowance, Quotas, Slo
from serving.gateway.reading import Asked, Prompt, listed, read, tokens_of
from serving.gateway.recording import Recorder
from serving.gateway.upstreams import Exchange, UpstreamFailed, Upstreams
from serving.gateway.wire import Broken, Connection
from serving.line import Line, line_of

CANDIDATES_SHARE = 0.5
"""Of a request's time: what a candidate may take until its answer begins. The rest is the live agent's, should it have to answer."""
UNWATCHED_SECONDS = 0.1
CLIENT_GONE = 499
LAST_WORDS = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")
LONGEST_LAST = max(map(len, LAST_WORDS))
LINGERS_SECONDS = 0.5
"""For so long a model server may take to end a stream after its last word, for its connection to be used again."""
PASSED_ON = ("traceparent", "tracestate")
LUCK = random.Random()
"""Of this process alone: asking the system for each id is a tenth of a request's cost."""
log = structlog.get_logger("serving.gateway")
Why = Literal["gone", "cut"]


class Routes(Protocol):
    """Where services lead just now."""

    def route(self, tenant: str, service: str) -> Route | None: ...
    def agent(self, tenant: str, agent_id: str) -> Agent: ...
    def routes(self, tenant: str) -> list[Route]: ...


class Mirror(Protocol):
    """Takes what is to be tried on the candidate too, off the path: it never waits and never fails."""

    def offer(self, asked: Asked, live: Kept, candidate: str) -> None: ...


class ChatLimits(msgspec.Struct, frozen=True, kw_only=True):
    max_body_bytes: int = 4_000_000
    max_answer_bytes: int = 16_000_000
    body_seconds: float = 10.0
    """By when a request's body has to be there."""
    deadline_seconds: float = 120.0
    """For a whole answer; a caller may ask for less with x-rft-deadline."""


class Tenants:
    """What each tenant may, and has left."""

    def __init__(self, quotas: Quotas, slo: Slo, own_quotas: Mapping[str, Quotas], own_slos: Mapping[str, Slo]) -> None:
        self._quotas, self._slo, self._own_quotas, self._own_slos = quotas, slo, own_quotas, own_slos
        self._allowances: dict[str, Allowance] = {}

    def allowance(self, tenant: str) -> Allowance:
        if (allowance := self._allowances.get(tenant)) is None:
            allowance = self._allowances[tenant] = Allowance(self._own_quotas.get(tenant, self._quotas), time.time())
        return allowance

    def slo(self, tenant: str) -> Slo:
        return self._own_slos.get(tenant, self._slo)


class _Try(msgspec.Struct):
    """One agent's go at a request."""

    rollout_id: str
    agent: Agent
    agent_id: str
    arm: Arm
    release: int
    until: float
    """On the loop's clock: by when its answer has to begin."""
    began: float = 0.0
    ended: float = 0.0
    asked: bytes = b""
    answered: list[bytes] = msgspec.field(default_factory=list[bytes])
    whole: bytes = b""
    """All that was answered, once it is over."""
    trouble: str = ""
    failed_part: str = ""
    refused: bool = False
    """It found fault with the request. Whether that was the request's or its own, the live agent's word on it tells."""
    over: bool = False
    """Its card is kept."""
    tokens: int = 0


class _Request:
    """One caller's request, while it is in hand."""

    def __init__(self, receive: Receive, line: Line, headers: Mapping[bytes, bytes]) -> None:
        self.receive, self.line, self.headers = receive, line, headers
        self.began, self.until = time.perf_counter(), 0.0
        self.tenant = self.caller = self.session = ""
        self.asked: Asked | None = None
        self.route: Route | None = None
        self.current: _Try | None = None
        self.status = 0
        """Sent to the caller; 0: nothing yet."""
        self.finished = False
        self.stopped: Why | None = None
        self.task = asyncio.current_task()
        self.watch: asyncio.Task[None] | None = None

    def stop(self, why: Why) -> None:
        if self.stopped is None and self.task is not None and not self.finished:
            self.stopped = why
            self.task.cancel()


class ChatEndpoint:
    def __init__(
        self, keys: Keys, routes: Routes, upstreams: Upstreams, tenants: Tenants, recorder: Recorder, shadow: Mirror, limits: ChatLimits
    ) -> None:
        self._shadow = shadow
        self._keys, self._routes, self._upstreams, self._tenants = keys, routes, upstreams, tenants
        self._recorder, self._limits = recorder, limits
        self._prompts: dict[str, Prompt] = {}
        self._running: set[_Request] = set()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        request = _Request(receive, line_of(scope, send), dict(scope["headers"]))
        try:
            await self._serve(request, scope)
        except Declined as declined:
            metrics.REFUSED.labels(request.tenant, declined.code).inc()
            await _tell(request, declined)
        except Exception as error:
            log.error("request_failed", path=scope["path"], exc_info=error)
            if request.status:
                raise
            await _tell(request, Declined(500, "mistake", "the gateway made a mistake", "its log says which"))

    async def models(self, scope: Any, receive: Receive, send: Send) -> None:
        """The services that the caller's tenant has."""
        request = _Request(receive, line_of(scope, send), dict(scope["headers"]))
        try:
            if scope["method"] != "GET":
                raise Declined(405, "method", "this is read with GET")
            caller = await self._keys.caller(request.headers.get(b"authorization"), _address(scope))
            services = sorted(route.service for route in self._routes.routes(caller.tenant) if route.live)
            await _whole(request, 200, b"application/json", msgspec.json.encode(listed(services)), [])
        except Declined as declined:
            await _tell(request, declined)

    def look(self) -> None:
        """To be called a few times a second. Requests that take that long are watched for callers who go away: most are over before."""
        for request in list(self._running):
            if request.watch is None and time.perf_counter() - request.began > UNWATCHED_SECONDS:
                request.watch = asyncio.create_task(_until_gone(request))
        self._cut_withdrawn()

    def _cut_withdrawn(self) -> None:
        """Stops what a candidate is still saying that was withdrawn for good reason."""
        for request in list(self._running):
            current, was = request.current, request.route
            if current is None or was is None or current.arm != "candidate":
                continue
            now = self._routes.route(was.tenant, was.service)
            if now is not None and now.cut and now.candidate != was.candidate:
                request.stop("cut")

    # --- before a model sees it ---------------------------------------------------------------------------------------------

    async def _serve(self, request: _Request, scope: Any) -> None:
        if scope["method"] != "POST":
            raise Declined(405, "method", "a chat is asked for with POST")
        caller = await self._keys.caller(request.headers.get(b"authorization"), _address(scope))
        request.tenant, request.caller = caller.tenant, caller.name
        if why := self._recorder.why_not():
            raise Declined(503, "no_room_for_cards", f"no card could be kept of an answer: {why}", "try again", retry_after=5)
        allowance = self._tenants.allowance(caller.tenant)
        allowance.take(time.time())
        tokens = 0
        try:
            asked = request.asked = read(await self._body(request), _text(request.headers.get(b"x-session-id")))
            request.until = asyncio.get_running_loop().time() + self._seconds(request)
            tokens = await self._route_and_answer(request, asked)
        finally:
            allowance.give_back(tokens)

    async def _body(self, request: _Request) -> bytes:
        most, pieces, size = self._limits.max_body_bytes, list[bytes](), 0
        told = request.headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > most:
            raise _too_large(most)
        if (whole := request.line.whole_body()) is not None:
            if len(whole) > most:
                raise _too_large(most)
            return whole
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message: Any = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise Declined(400, "gone", "the client went away")
                    pieces.append(message["body"])
                    size += len(message["body"])
                    if size > most:
                        raise _too_large(most)
                    if not message.get("more_body", False):
                        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except TimeoutError:
            what = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise Declined(408, "slow_client", what, "send it faster, or less of it") from None

    def _seconds(self, request: _Request) -> float:
        told = _text(request.headers.get(b"x-rft-deadline"))
        if not told:
            return self._limits.deadline_seconds
        try:
            seconds = float(told)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e6:
            raise Declined(400, "deadline", f"x-rft-deadline is '{told[:40]}'", "seconds that are left, such as 12.5")
        return min(seconds, self._limits.deadline_seconds)

    async def _route_and_answer(self, request: _Request, asked: Asked) -> int:
        """Answers, and says how many tokens were written."""
        route = request.route = self._routes.route(request.tenant, asked.service)
        if route is None or not route.live:
            what = f"your tenant has no service '{asked.service[:80]}'"
            raise Declined(404, "model_not_found", what, "GET /v1/models lists those it has")
        rollout_id = new_rollout_id(LUCK.randbytes)
        request.session = asked.session or rollout_id
        arm = arm_of(request.tenant, asked.service, request.session, route.share) if route.candidate else "live"
        self._running.add(request)
        try:
            return await self._by_arm(request, asked, route, arm, rollout_id)
        except asyncio.CancelledError:
            if request.stopped != "gone":
                raise
            assert request.task is not None
            request.task.uncancel()
            return request.current.tokens if request.current else 0
        finally:
            self._running.discard(request)
            if request.watch is not None:
                request.watch.cancel()

    async def _by_arm(self, request: _Request, asked: Asked, route: Route, arm: Arm, rollout_id: str) -> int:
        if arm == "candidate" and route.candidate != route.live:
            now = asyncio.get_running_loop().time()
            first_until = now + (request.until - now) * CANDIDATES_SHARE
            attempt = self._begin(request, rollout_id, route.candidate, "candidate", route.release, first_until)
            if (tokens := await self._attempt(request, asked, attempt, last=False)) is not None:
                return tokens
            metrics.FALLBACKS.labels(request.tenant, asked.service).inc()
            first = attempt
            try:
                attempt = self._begin(request, new_rollout_id(LUCK.randbytes), route.live, "live", 0, request.until)  # it counts for none
                return await self._attempt(request, asked, attempt, last=True) or 0
            finally:
                if first.refused:
                    self._over(request, asked, first)
                    self._count(request, asked, first)
        attempt = self._begin(request, rollout_id, route.live, arm, route.release, request.until)
        return await self._attempt(request, asked, attempt, last=True) or 0

    def _begin(self, request: _Request, rollout_id: str, agent_id: str, arm: Arm, release: int, until: float) -> _Try:
        try:
            agent = self._routes.agent(request.tenant, agent_id)
        except UserError as error:
            raise Declined(503, "no_agent", f"the service's agent is not known: {error.what}", "try again", retry_after=5) from None
        request.current = _Try(rollout_id, agent, agent_id, arm, release, until, time.perf_counter())
        return request.current

    # --- one agent's go -----------------------------------------------------------------------------------------------------

    async def _attempt(self, request: _Request, asked: Asked, attempt: _Try, last: bool) -> int | None:
        """Tokens that were written. None where this agent failed before the caller was sent anything, and it was not the last."""
        try:
            await self._pass_on(request, asked, attempt, last)
        except Declined:
            if last or request.status:
                attempt.asked = b""  # no model saw it
                raise
            attempt.trouble, attempt.failed_part = "has no place for it", attempt.agent.checkpoint
        except (UpstreamFailed, TimeoutError) as error:
            await self._failed(request, asked, attempt, last, error)
        except asyncio.CancelledError:
            attempt.trouble, attempt.failed_part = _stopped(request)
            if request.stopped != "cut" or request.task is None:
                raise
            request.stopped = None
            request.task.uncancel()
            if last or request.status:
                await self._give_up(request, asked, attempt, UpstreamFailed("gateway", attempt.trouble))
        finally:
            attempt.ended = attempt.ended or time.perf_counter()
            if not attempt.refused:
                self._over(request, asked, attempt)
                self._count(request, asked, attempt)
        return attempt.tokens if last or request.status else None

    async def _failed(self, request: _Request, asked: Asked, attempt: _Try, last: bool, error: UpstreamFailed | TimeoutError) -> None:
        """By itself, since an error that is kept in the function it came through keeps all of the request until garbage is looked for."""
        failed = error if isinstance(error, UpstreamFailed) else UpstreamFailed(attempt.agent.checkpoint, "gave no answer in time", 504)
        attempt.trouble, attempt.failed_part = failed.what, failed.upstream
        if last or request.status:
            await self._give_up(request, asked, attempt, failed)

    async def _pass_on(self, request: _Request, asked: Asked, attempt: _Try, last: bool) -> None:
        parts = self._prompt(attempt).put_before(asked)
        attempt.asked = msgspec.json.encode(parts)  # before anything can fail: what failed without it would have no card
        upstream = self._upstreams.for_checkpoint(attempt.agent.checkpoint)
        until = min(attempt.until, asyncio.get_running_loop().time() + upstream.total_seconds)
        async with asyncio.timeout_at(until) as clock:
            exchange = await upstream.ask(parts, _passed_on(request))
            try:
                if exchange.answer.status != 200 and not last:
                    attempt.refused = True
                    raise UpstreamFailed(exchange.replica.spec.name, f"answered HTTP {exchange.answer.status}")
                await self._answer(request, asked, attempt, exchange, clock)
            except Broken:
                exchange.broke()
                raise UpstreamFailed(exchange.replica.spec.name, "broke off in its answer") from None
            finally:
                exchange.close()

    async def _answer(self, request: _Request, asked: Asked, attempt: _Try, exchange: Exchange, clock: asyncio.Timeout) -> None:
        answer, kept, size = exchange.answer, attempt.answered, 0
        if asked.stream and answer.status == 200:
            await self._stream(request, asked, attempt, exchange, clock)
            return
        while piece := await answer.piece():
            kept.append(piece)
            size += len(piece)
            self._bounded(exchange, size)
        self._answered(request, asked, attempt, answer.status)
        await _whole(request, answer.status, _kind(answer), b"".join(kept), _told(attempt))

    async def _stream(self, request: _Request, asked: Asked, attempt: _Try, exchange: Exchange, clock: asyncio.Timeout) -> None:
        """Piece by piece as they come. The last word waits until the card is kept."""
        answer, kept, line = exchange.answer, attempt.answered, request.line
        headers = [(b"content-type", _kind(answer)), (b"cache-control", b"no-cache"), *_told(attempt)]
        size, last = 0, False

        def take(piece: bytes) -> bool:
            nonlocal size, last
            if clock.expired():  # too late, and the task that waits is about to hear of it
                return False
            kept.append(piece)
            size += len(piece)
            if (last := _is_last(kept)) or size > self._limits.max_answer_bytes:
                return False
            if not request.status:
                clock.reschedule(request.until)
                line.begin(answer.status, headers)
                request.status = answer.status
            line.say(piece)
            return not line.full

        while not last and not answer.taken:
            await answer.pour(take)
            self._bounded(exchange, size)
            await line.drain()
        if not kept:
            raise UpstreamFailed(exchange.replica.spec.name, "ended its stream before a word")
        if not request.status:  # it said all at once
            line.begin(answer.status, headers)
        self._answered(request, asked, attempt, answer.status)
        line.end(kept[-1] if last else b"")
        await line.drain()
        if last:
            clock.reschedule(None)
            await _let_end(answer)

    def _answered(self, request: _Request, asked: Asked, attempt: _Try, status: int) -> None:
        """Before the caller has the last of it: what was acknowledged has its card, whatever happens to this process then."""
        request.status, request.finished = status, True
        attempt.ended = attempt.ended or time.perf_counter()
        self._over(request, asked, attempt)

    def _bounded(self, exchange: Exchange, size: int) -> None:
        if size > self._limits.max_answer_bytes:
            raise UpstreamFailed(exchange.replica.spec.name, f"answered more than {self._limits.max_answer_bytes} bytes")

    def _prompt(self, attempt: _Try) -> Prompt:
        if (prompt := self._prompts.get(attempt.agent_id)) is None:
            prompt = self._prompts[attempt.agent_id] = Prompt(attempt.agent)
        return prompt

    async def _give_up(self, request: _Request, asked: Asked, attempt: _Try, failed: UpstreamFailed) -> None:
        """Tells the caller, in a stream that has begun as its last event."""
        log.error("chat_failed", tenant=request.tenant, service=asked.service, upstream=failed.upstream, why=failed.what)
        words = "the model gave no answer in time" if failed.status == 504 else "the model failed"
        declined = Declined(failed.status, "upstream_failed", words, "try again", retry_after=1 if failed.status == 503 else None)
        begun = request.status
        self._answered(request, asked, attempt, begun or declined.status)
        if not begun:
            await _tell(request, declined)
        else:
            request.line.end(b"data: " + declined.body() + b"\n\n")
            await request.line.drain()

    # --- when it is over ----------------------------------------------------------------------------------------------------

    def _over(self, request: _Request, asked: Asked, attempt: _Try) -> None:
        """A card for whoever was asked."""
        if attempt.over or not attempt.asked:
            return
        attempt.over, attempt.whole = True, b"".join(attempt.answered)
        seconds = attempt.ended - attempt.began
        gone = request.stopped == "gone"
        in_vain = gone and not request.status and seconds >= self._tenants.slo(request.tenant).seconds
        at_fault = request.status != 200 if attempt.refused else 400 <= request.status < 500  # the caller is, for all that is known
        counts = not (gone and not in_vain) and attempt.failed_part != "gateway" and not at_fault
        route = request.route
        well = counts and request.status == 200 and not attempt.trouble and not gone
        mirrored = well and attempt.arm == "live" and bool(attempt.release) and route is not None and route.shadow
        kept = Kept(
            rollout_id=attempt.rollout_id,
            tenant=request.tenant,
            service=asked.service,
            session=request.session,
            agent=attempt.agent_id,
            arm=attempt.arm,
            release=attempt.release if counts else 0,
            shadow=mirrored,
            graded_share=request.route.graded_share if request.route else 0.0,
            checkpoint=attempt.agent.checkpoint,
            tool_set=attempt.agent.tool_set,
            limits=attempt.agent.limits,
            started_at=(dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)).isoformat(),
            seconds=seconds,
            status=CLIENT_GONE if gone else request.status,
            trouble=attempt.trouble or (f"HTTP {request.status}" if request.status >= 400 else ""),
            failed_part=attempt.failed_part or ("request" if request.status >= 400 else ""),
            caller=request.caller,
            streamed=asked.stream,
            item=asked.item,
            asked=attempt.asked,
            answered=attempt.whole,
            parent=_text(request.headers.get(b"traceparent")),
        )
        self._recorder.keep(kept)
        if mirrored and route is not None:
            self._shadow.offer(asked, kept, route.candidate)

    def _count(self, request: _Request, asked: Asked, attempt: _Try) -> None:
        """Once the caller has it all: nobody waits for figures."""
        if not attempt.over:
            return
        attempt.tokens = tokens_of(attempt.whole, asked.stream)
        status = CLIENT_GONE if request.stopped == "gone" else 502 if attempt.trouble else request.status
        figures = _figures(request.tenant, asked.service, attempt.arm, status)
        figures.requests.inc()
        figures.seconds.observe(attempt.ended - attempt.began)
        figures.tokens.inc(attempt.tokens)
        if status < 400 and attempt.ended - request.began <= self._tenants.slo(request.tenant).seconds:
            figures.in_slo.inc()


# --- pieces -----------------------------------------------------------------------------------------------------------------


class _Figures(NamedTuple):
    requests: Counter
    seconds: Histogram
    tokens: Counter
    in_slo: Counter


@functools.lru_cache(maxsize=4096)
def _figures(tenant: str, service: str, arm: Arm, status: int) -> _Figures:
    """Found once: to look each of them up by its labels takes longer than to count."""
    return _Figures(
        metrics.REQUESTS.labels(tenant, service, arm, status),
        metrics.REQUEST_SECONDS.labels(tenant, service, arm),
        metrics.TOKENS.labels(tenant, service, arm),
        metrics.IN_SLO.labels(tenant),
    )


async def _until_gone(request: _Request) -> None:
    message: Any = await request.receive()
    while message["type"] != "http.disconnect":
        message = await request.receive()
    request.stop("gone")


def _is_last(pieces: Sequence[bytes]) -> bool:
    """Whether with this piece the stream's last word was said, which may have come in several."""
    last = pieces[-1]
    return (last if len(last) >= LONGEST_LAST else b"".join(pieces[-LONGEST_LAST:])).endswith(LAST_WORDS)


async def _let_end(answer: Connection) -> None:
    """What comes after the last word is nobody's: whoever says more, breaks off or falls silent there loses its connection."""
    with contextlib.suppress(TimeoutError, Broken):
        async with asyncio.timeout(LINGERS_SECONDS):
            await answer.piece()


async def _whole(request: _Request, status: int, kind: bytes, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    request.status, request.finished = status, True
    request.line.answer(status, [(b"content-type", kind), *headers], body)
    await request.line.drain()


async def _tell(request: _Request, declined: Declined) -> None:
    await _whole(request, declined.status, b"application/json", declined.body(), declined.headers())


def _kind(answer: Connection) -> bytes:
    return answer.headers.get(b"content-type", b"application/json")


def _told(attempt: _Try) -> list[tuple[bytes, bytes]]:
    """The request's id is that of its card."""
    told = {b"x-request-id": attempt.rollout_id, b"x-rft-arm": attempt.arm, b"x-rft-agent": attempt.agent_id}
    return [(name, value.encode()) for name, value in told.items()]


def _stopped(request: _Request) -> tuple[str, str]:
    if request.stopped == "cut":
        return "cut off: its release was rolled back", "gateway"
    return ("the client went away", "client") if request.stopped == "gone" else ("the gateway was stopped", "gateway")


def _passed_on(request: _Request) -> dict[str, str]:
    return {name: _text(value) for name in PASSED_ON if (value := request.headers.get(name.encode()))}


def _too_large(most: int) -> Declined:
    return Declined(413, "too_large", f"the body is larger than {most} bytes", "send less")


def _text(value: bytes | None) -> str:
    return value.decode("latin-1") if value else ""


def _address(scope: Any) -> str:
    return scope["client"][0] if scope.get("client") else ""
