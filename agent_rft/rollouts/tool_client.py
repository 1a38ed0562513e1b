"""Tools over HTTP: the rollouts' side of the wire."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import time
from collections.abc import Collection, Mapping
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from agent_rft.contracts.errors import InfraError, NeedsApproval, UserError, did_you_mean
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.ports import ToolBox
from agent_rft.contracts.retries import TryAgain, may_pass, pause_before_next, seconds_asked_for
from agent_rft.contracts.rollouts import ToolResult

LONGEST_PAUSE_SECONDS = 10.0
LONGEST_NAME = 200
TENANT_HEADER, CALLER_HEADER, DEADLINE_HEADER = "x-rft-tenant", "x-rft-caller", "x-rft-deadline"
WAITS_FOR_A_PERSON = 428


class Answer(msgspec.Struct):
    output: str
    call_id: str | None = None
    error: str | None = None


class Asked(msgspec.Struct):
    """An approval that a call waits for."""

    id: int
    expires_at: dt.datetime


class Waits(msgspec.Struct):
    approval: Asked


class CallStats(msgspec.Struct):
    """What a guard judges a tool by."""

    calls: int = 0
    failed: int = 0
    """Gave nothing after all retries."""
    retried: int = 0
    """Needed more than one attempt, whatever came of it."""


class HttpTools:
    """A ToolBox over one HTTP session, for any number of rollouts at once.

    Use it as `async with HttpTools(...) as tools`. A call that fails from infrastructure is tried again after a pause that
    doubles each time; then it is an InfraError that names the tool. What is the model's fault comes back as a result, and
    a call that a person has to allow first is a NeedsApproval.
    """

    def __init__(
        self,
        base_url: str,
        bearer: str,
        timeout_seconds: float = 60.0,
        retries: int = 5,
        concurrency: int = 512,
        backoff_seconds: float = 0.1,
        names: Collection[str] = (),
    ) -> None:
        """`names`: what the server serves, where that is known. A call of anything else is the model's mistake and is not sent: a
        server of any make answers 404 to it or falls over, which would look like its own trouble."""
        self.stats: dict[str, CallStats] = {}
        self._names = tuple(names)
        self._recipe = (base_url, bearer, timeout_seconds, retries, concurrency, backoff_seconds, self._names)
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json", DEADLINE_HEADER: f"{timeout_seconds:g}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._retries = retries
        self._backoff_seconds = backoff_seconds
        self._places = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None

    def __reduce__(self) -> tuple[type[HttpTools], tuple[str, str, float, int, int, float, tuple[str, ...]]]:
        """Sent to another process, it is a client of its own there, to be opened there."""
        return HttpTools, self._recipe

    async def __aenter__(self) -> HttpTools:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the semaphore is the limit
            headers=self._headers,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()
            self._session = None

    def on_behalf_of(self, tenant: str, caller: str) -> ToolBox:
        """The same client for one tenant's calls, where the bearer is one that speaks for every tenant. `caller` is who has the
        agent run, by the name of their key: they allow none of its calls themselves."""
        return _OnBehalf(self, {TENANT_HEADER: quote(tenant), CALLER_HEADER: quote(caller)})

    async def call(self, rollout_id: str, call: ToolCall, headers: Mapping[str, str] | None = None) -> ToolResult:
        try:
            url = self._url_of(call.name)
            body = msgspec.json.encode({"arguments": call.arguments, "call_id": call.call_id, "rollout_id": rollout_id})
        except (ValueError, OverflowError, RecursionError) as error:  # half a surrogate pair, a thousand brackets
            return ToolResult(call.call_id, f"Error: this call cannot be sent: {error}", "model_error")
        if self._names and call.name not in self._names:
            said = f"Error: there is no tool named {call.name}; {did_you_mean(call.name, self._names)}"
            return ToolResult(call.call_id, said, "model_error")
        stats = self.stats.setdefault(call.name, CallStats())
        stats.calls += 1
        started, attempt = time.perf_counter(), 1
        while True:
            try:
                answer = await self._attempt(call, url, body, headers)
                return ToolResult(call.call_id, answer.output, answer.error, time.perf_counter() - started, attempt)
            except TryAgain as trouble:
                stats.retried += attempt == 1
                if attempt > self._retries:
                    stats.failed += 1
                    raise InfraError(f"tool:{call.name}", f"{trouble}, {attempt} attempts") from trouble
                asked = min(trouble.pause_seconds, LONGEST_PAUSE_SECONDS)
                pause = pause_before_next(attempt, asked, self._backoff_seconds, LONGEST_PAUSE_SECONDS, random.uniform(0.5, 1.5))
            await asyncio.sleep(pause)
            attempt += 1

    def _url_of(self, name: str) -> URL:
        """Any name that the model makes up arrives as one part of the path, slashes included."""
        if len(name) > LONGEST_NAME:
            raise ValueError("no tool has so long a name")
        return URL(f"{self._base_url}/tools/{quote(name, safe='')}", encoded=True)

    async def _attempt(self, call: ToolCall, url: URL, body: bytes, more: Mapping[str, str] | None) -> Answer:
        if self._session is None:
            raise RuntimeError("open it first: async with HttpTools(...) as tools")
        try:
            async with self._places, self._session.post(url, data=body, headers=more, allow_redirects=False) as response:
                status, headers, reply = response.status, response.headers, await response.read()
        except TimeoutError as error:
            raise TryAgain(f"no answer from {self._base_url} within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TryAgain(f"{self._base_url}: {error or type(error).__name__}") from error
        return self._judge(call, status, reply, headers.get("Retry-After", ""))

    def _judge(self, call: ToolCall, status: int, reply: bytes, retry_after: str) -> Answer:
        """Whose fault is it: nobody's or the model's (an answer), the server's (try again), our caller's (an error)?"""
        said = f"{self._base_url} answered {status}: {reply[:300].decode(errors='replace')}"
        if status in (401, 403):
            raise UserError(f"the tool server refuses our bearer: {said}", "set TOOL_BEARER to the server's own")
        if status == WAITS_FOR_A_PERSON:
            raise _needs_approval(call, reply, said)
        if may_pass(status):
            raise TryAgain(said, seconds_asked_for(retry_after, time.time()))
        try:
            answer = msgspec.json.decode(reply, type=Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InfraError(f"tool:{call.name}", f"not a tool server's answer: {said}") from error
        if answer.call_id not in (None, call.call_id):
            raise InfraError(f"tool:{call.name}", f"answered another call, '{answer.call_id}' instead of '{call.call_id}': {said}")
        return answer


class _OnBehalf:
    def __init__(self, tools: HttpTools, headers: Mapping[str, str]) -> None:
        self._tools = tools
        self._headers = headers

    async def call(self, rollout_id: str, call: ToolCall) -> ToolResult:
        return await self._tools.call(rollout_id, call, self._headers)


def _needs_approval(call: ToolCall, reply: bytes, said: str) -> NeedsApproval | InfraError:
    try:
        asked = msgspec.json.decode(reply, type=Waits).approval
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return InfraError(f"tool:{call.name}", f"does not say which approval it waits for: {error}: {said}")
    return NeedsApproval(asked.id, asked.expires_at)
