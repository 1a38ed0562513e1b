"""The tool server in production: the same tools, and between a call and its tool who may, how much, how long, how often, and a person.

A call comes with a tenant's key, or with the server's own bearer from a gateway, which says in headers for whom it speaks. Nothing of
one tenant's calls reaches another's: places, rates, remembered answers and what tools keep of a rollout are each tenant's own.

A tool that changes something runs at most once for a (tenant, rollout_id, call_id), whatever dies in between; see
observability/tool_results.py. One that only reads is answered from memory when it is sent again, as long as that lasts.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import unquote

import msgspec
import structlog
from sqlalchemy import exc

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.ports import ToolProvider
from observability import tool_results
from observability.access import LONGEST_NAME, faults_of_name
from observability.approvals import Call
from observability.chain import canonical_bytes
from observability.store import Store
from observability.tool_results import Begun, Denied, Done, Go, Other, Verdict, Waits
from serving import metrics, refusals
from serving.auth import Bearer
from serving.bulkheads import Bucket, Bulkhead, Full
from serving.gate import HOW, Gate
from serving.threads import in_daemon_thread
from serving.tool_calls import CHALLENGED, Answer, Refused, ToolRequest, ToolRunner, Who
from serving.tools.addresses import internal_addresses
from serving.tools.context import seconds_left

GATEWAY = "@gateway"
"""Who asks where the gateway does not say whose run it is."""
MOST_REMEMBERED = 10_000
MOST_BULKHEADS = 10_000
MOST_CHANGING, MOST_CHANGING_OF_ONE = 256, 64
"""Calls in threads of their own, which go on when nobody waits for them any more: of all tenants, and of one."""
KEPT, FORGETS_EVERY = dt.timedelta(days=30), dt.timedelta(hours=6)
"""How long what a call answered is kept, and how often what is older goes."""
LONGEST_ID = 200
DONT_KNOW = "whether it changed anything is not known, and it is not run again: a person has to look, and to tell the agent's user"
log = structlog.get_logger("serving.tools")


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Of each (tenant, tool)."""

    in_flight: int = 16
    queue: int = 64
    """Calls that wait for a place; one more is told to come again."""
    per_minute: int = 1200
    high_impact: frozenset[str] = frozenset()
    """Tools that wait for a person."""
    approval: dt.timedelta = dt.timedelta(minutes=30)
    """How long one waits."""


class _Remembered(msgspec.Struct, frozen=True):
    hash: bytes
    answer: asyncio.Future[Answer]


class _Lane:
    """What one tenant has of one tool."""

    def __init__(self, rules: Rules, now: float) -> None:
        self.bulkhead = Bulkhead(rules.in_flight, rules.queue)
        self.bucket = Bucket(rules.per_minute, now)


class ProductionDesk:
    def __init__(
        self, tools: ToolProvider, runner: ToolRunner, gate: Gate, bearer: str | None, rules: Rules, deadline_seconds: float = 15.0
    ) -> None:  # fmt: skip
        self._tools = tools
        self._names = {spec.name for spec in tools.specs}
        self._changes = changing(tools) | rules.high_impact
        self._runner = runner
        self._gate = gate
        self._bearer = Bearer(bearer) if bearer else None
        self._rules = rules
        self._deadline_seconds = deadline_seconds
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._remembered: OrderedDict[tuple[str, str, str], _Remembered] = OrderedDict()
        self._changing: dict[tuple[str, str, str], _Remembered] = {}
        self._forgot_at = dt.datetime.min.replace(tzinfo=dt.UTC)

    # --- who -------------------------------------------------------------------------------------------------------------------

    async def admit(self, scope: Any) -> Who:
        headers = {name: value for name, value in scope["headers"]}
        if self._bearer and self._bearer.admits(scope["headers"]):
            return _spoken_for(headers)
        scheme, _, text = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            raise Refused(401, f"no key was sent; {HOW}", CHALLENGED)
        try:
            caller = await self._gate.caller_of_text(text.strip(), scope["client"][0] if scope.get("client") else "")
        except refusals.Refused as refused:
            raise _again(refused.status_code, f"{refused.what}; {refused.cure}", refused.retry_after or 1) from None
        except exc.SQLAlchemyError as error:
            raise _store_away(error) from None
        if caller is None:
            raise Refused(401, f"this key opens nothing here (any more); {HOW}", CHALLENGED)
        return Who(caller.tenant, caller.name, caller)

    # --- how much, how long ------------------------------------------------------------------------------------------------------

    async def run(self, who: Who, name: str, request: ToolRequest) -> Answer:
        started, told = time.perf_counter(), "refused"
        try:
            self._refuse_by_scope(who, name)
            answer = await self._within_the_deadline(who, name, request)
            told = answer[1] or "ok"
            return answer
        except Refused as refused:
            told = {428: "waits", 429: "shed"}.get(refused.status, "refused")
            raise
        except InfraError:
            told = "infra_failed"
            raise
        finally:
            tool = name if name in self._names else "(unknown)"
            metrics.TOOL_CALLS.labels(who.tenant, tool, told).inc()
            metrics.TOOL_SECONDS.labels(who.tenant, tool).observe(time.perf_counter() - started)

    def _refuse_by_scope(self, who: Who, name: str) -> None:
        if who.caller is None or who.caller.may_call(name):
            return
        may = sorted(tool for tool in self._names if who.caller.may_call(tool))
        cure = f"it may call {', '.join(may)}" if may else "one whose role or key has 'run' may"
        raise Refused(403, f"this key may not call {name[:LONGEST_ID]}; {cure}")

    async def _within_the_deadline(self, who: Who, name: str, request: ToolRequest) -> Answer:
        if name not in self._names or not isinstance(request.arguments, dict):
            return await self._runner.run(name, request.arguments)  # which says so
        arguments = cast(dict[str, Any], request.arguments)
        if inside := internal_addresses(arguments):
            return f"Error: {inside} is an address inside this system, which no tool goes to", "policy_denied"
        seconds = min(self._deadline_seconds, seconds_left() or math.inf)
        until = time.monotonic() + seconds
        async with self._lane(who.tenant, name, seconds):
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    if name in self._changes:
                        return await self._change(who, name, request, arguments)
                    return await self._read(who, name, request, arguments)
            except TimeoutError:
                raise InfraError(f"tool:{name}", f"no answer within {seconds:.2g} s") from None

    @asynccontextmanager
    async def _lane(self, tenant: str, name: str, seconds: float) -> AsyncGenerator[None]:
        now = time.monotonic()
        lane = self._lanes.get((tenant, name))
        if lane is None:
            if len(self._lanes) >= MOST_BULKHEADS:
                self._lanes = {key: one for key, one in self._lanes.items() if not (one.bulkhead.idle and one.bucket.full(now))}
            lane = self._lanes[tenant, name] = _Lane(self._rules, now)
        if wait := lane.bucket.take(now):
            raise _again(429, f"{tenant} called {name} more than {self._rules.per_minute} times a minute", wait)
        try:
            async with lane.bulkhead.place(seconds):
                yield
        except Full:
            what = f"{self._rules.in_flight} calls of {name} are in hand for {tenant}, and {self._rules.queue} wait"
            raise _again(429, what, 1) from None

    # --- tools that only read ----------------------------------------------------------------------------------------------------

    async def _read(self, who: Who, name: str, request: ToolRequest, arguments: dict[str, Any]) -> Answer:
        """One run for however many deliveries; what failed is not remembered."""
        if not request.rollout_id:  # whoever names no rollout gives ids that are nobody's
            return await self._runner.run(name, arguments)
        key = (who.tenant, request.rollout_id, request.call_id)
        body = hashlib.sha256(canonical_bytes([name, arguments])).digest()
        if known := self._remembered.get(key):
            _refuse_another(known, body, request)
            return await asyncio.shield(known.answer)
        work = asyncio.ensure_future(self._runner.run(name, arguments))
        self._remembered[key] = _Remembered(body, work)
        if len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        work.add_done_callback(lambda done: _failed(done) and self._remembered.pop(key, None))
        return await asyncio.shield(work)

    # --- tools that change something -----------------------------------------------------------------------------------------------

    async def _change(self, who: Who, name: str, request: ToolRequest, arguments: dict[str, Any]) -> Answer:
        """A delivery that comes while the call runs waits for the same run. Who stops waiting stops nothing."""
        if wrong := _nameless(request):
            raise Refused(400, f"{name} changes something, so its calls are told apart by their ids: {wrong}")
        if (check := getattr(self._tools, "check", None)) and (said := check(name, arguments)):
            return said
        call = Call(tenant=who.tenant, rollout_id=request.rollout_id, call_id=request.call_id, tool=name, arguments=arguments)
        key, body = (who.tenant, call.rollout_id, call.call_id), bytes.fromhex(call.hash)
        if known := self._changing.get(key):
            _refuse_another(known, body, request)
            return await asyncio.shield(known.answer)
        own = sum(tenant == who.tenant for tenant, _, _ in self._changing)
        if len(self._changing) >= MOST_CHANGING or own >= MOST_CHANGING_OF_ONE:
            raise _again(429, f"{len(self._changing)} calls that change something are in hand, {own} of them for {who.tenant}", 1)
        work = asyncio.ensure_future(in_daemon_thread(self._change_once, call, who.name))
        self._changing[key] = _Remembered(body, work)
        work.add_done_callback(lambda done: (_failed(done), self._changing.pop(key, None)))
        return await asyncio.shield(work)

    def _change_once(self, call: Call, by: str) -> Answer:
        """In a thread of its own, to its end. What the tool raises, after it may have changed something, leaves the call begun."""
        store, now = self._gate.store, dt.datetime.now(dt.UTC)
        try:
            if now - self._forgot_at > FORGETS_EVERY:
                self._forgot_at = now
                tool_results.forget(store, now - KEPT)
            verdict = tool_results.begin(store, call, by, now, self._rules.approval if call.tool in self._rules.high_impact else None)
        except exc.SQLAlchemyError as error:
            raise _store_away(error) from None
        if not isinstance(verdict, Go):
            return self._told(call, verdict, now)
        try:
            output, error = self._tools.call(call.tool, call.arguments)
        except Exception as raised:
            log.error("tool_failed", tool=call.tool, tenant=call.tenant, rollout_id=call.rollout_id, call_id=call.call_id, exc_info=raised)
            raise InfraError(f"tool:{call.tool}", f"{raised!r}: {DONT_KNOW}") from raised
        _keep(store, call, output, error)
        return output, error

    def _told(self, call: Call, verdict: Verdict, now: dt.datetime) -> Answer:
        match verdict:
            case Done(output=output, error=error):
                return (
                    ("Error: this call was made before; what it answered was erased", "policy_denied")
                    if output is None
                    else (output, error)
                )
            case Denied(why=why):
                return f"Error: {why}", "policy_denied"
            case Other(what=what):
                raise Refused(409, f"{what}; a call that differs needs an id of its own")
            case Waits(approval=asked):
                told = {"approval": {"id": asked.id, "expires_at": asked.expires_at}}
                raise Refused(428, f"{call.tool} waits for a person: approval {asked.id}, until {asked.expires_at:%H:%M:%S} UTC", more=told)
            case Begun(at=at) if now - at < dt.timedelta(seconds=self._deadline_seconds):
                raise InfraError(f"tool:{call.tool}", f"this call began at {at:%H:%M:%S} UTC in another process, and may still run there")
            case Begun(at=at):
                raise InfraError(f"tool:{call.tool}", f"this call began at {at:%Y-%m-%d %H:%M:%S} UTC and never ended: {DONT_KNOW}")
            case Go():
                raise AssertionError


def changing(tools: ToolProvider) -> frozenset[str]:
    """Its tools that change something. What says nothing only reads."""
    return getattr(tools, "changes", frozenset[str]())


def _keep(store: Store, call: Call, output: str, error: str | None) -> None:
    """The tool has done its work: a store that is away for a moment must not make that unknown."""
    for pause in (0.1, 0.5, 2.0, 5.0, 0.0):
        try:
            return tool_results.finish(store, call, output, error)
        except exc.SQLAlchemyError as failed:
            log.error("tool_result_not_kept", tool=call.tool, tenant=call.tenant, rollout_id=call.rollout_id, exc_info=failed)
            time.sleep(pause)
    raise InfraError(f"tool:{call.tool}", f"it ran, and the store took no note of what it answered: {DONT_KNOW}")


def _spoken_for(headers: Mapping[bytes, bytes]) -> Who:
    """The gateway's word for whose call it is."""
    tenant = unquote(headers.get(b"x-rft-tenant", b"").decode("latin-1"))
    caller = unquote(headers.get(b"x-rft-caller", b"").decode("latin-1")) or GATEWAY
    if not tenant:
        raise Refused(400, "whoever calls with the server's bearer says for which tenant: send x-rft-tenant")
    if faults := list(faults_of_name("x-rft-tenant", tenant)):
        raise Refused(400, str(faults[0]))
    if len(caller) > LONGEST_NAME or not caller.isprintable():
        raise Refused(400, f"x-rft-caller is no name: at most {LONGEST_NAME} printable characters")
    return Who(tenant, caller)


def _nameless(request: ToolRequest) -> str:
    for name, value in (("rollout_id", request.rollout_id), ("call_id", request.call_id)):
        if not value or len(value) > LONGEST_ID or not value.isprintable():
            return f"{name} has to be 1 to {LONGEST_ID} printable characters"
    return ""


def _refuse_another(known: _Remembered, body: bytes, request: ToolRequest) -> None:
    if known.hash != body:
        what = f"call {request.call_id[:LONGEST_ID]} of this rollout was made before, with another tool or other arguments"
        raise Refused(409, f"{what}; a call that differs needs an id of its own")


def _failed(done: asyncio.Future[Answer]) -> bool:
    return done.cancelled() or done.exception() is not None


def _again(status: int, what: str, seconds: float) -> Refused:
    return Refused(status, f"{what}; try again in {math.ceil(seconds)} s", (b"retry-after", b"%d" % math.ceil(seconds)))


def _store_away(error: exc.SQLAlchemyError) -> Refused:
    log.error("store_away", exc_info=error)
    return _again(503, refusals.why_away(error)[0], refusals.RETRY_AFTER_SECONDS)
