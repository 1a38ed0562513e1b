"""The way of graders to other servers: blocking calls, from any number of threads, over one HTTP session.

What a grader asks is asked again while the trouble may pass, until a budget of seconds is spent or the grade is due; then it
is a NoAnswer that names the server. What another try cannot mend is an InfraError at once. Addresses come from grader files,
so they are held to what a grader needs: http or https, no redirects, and never a link-local address, where clouds keep the
credentials of their machines. An address inside the own network is allowed, because that is where judges live: whoever takes
grader files from strangers allows hosts by name before.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import json
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import ResolveResult
from yarl import URL

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.retries import NoAnswer, TryAgain, may_pass, pause_before_next, seconds_asked_for
from agent_rft.graders.deadline import longest_wait, seconds_left

LONGEST_PAUSE_SECONDS = 30.0
SHORTEST_ATTEMPT_SECONDS = 0.001
"""Of no time at all an HTTP client makes as much as it wants."""
STOP_SECONDS = 5.0
SHOWN = 300
"""Characters of a server's answer that an error shows."""
T = TypeVar("T")


class Pace:
    """At most so many requests a second, whichever threads they come from: each takes the next free place in time."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self._recipe = (per_second,)
        self._interval, self._clock, self._sleep = 1 / per_second, clock, sleep
        self._next = -float("inf")
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Pace], tuple[float]]:
        return Pace, self._recipe

    def wait(self) -> None:
        with self._lock:
            now = self._clock()
            place = max(now, self._next)
            self._next = place + self._interval
        if place > now:
            self._sleep(place - now)


class Wire:
    """Use it as `with Wire() as wire`, or close it: whoever still waits then gets an InfraError at once.

    The thread and the session behind it come with the first call. Sent to another process, it is a wire of its own there.
    """

    def __init__(
        self, budget_seconds: float = 120.0, concurrency: int = 64, backoff_seconds: float = 0.5, max_reply_bytes: int = 4_000_000
    ) -> None:
        self._recipe = (budget_seconds, concurrency, backoff_seconds, max_reply_bytes)
        self._budget_seconds, self._backoff_seconds, self._max_reply_bytes = budget_seconds, backoff_seconds, max_reply_bytes
        self._concurrency = concurrency
        self._places: dict[str, threading.BoundedSemaphore] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._line: _Line | None = None

    def __reduce__(self) -> tuple[type[Wire], tuple[float, int, float, int]]:
        return Wire, self._recipe

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            if self._line:
                self._line.stop()
                self._line = None

    def post(
        self, url: str, payload: object, headers: Mapping[str, str] | None = None, timeout: float = 60.0, pace: Pace | None = None
    ) -> bytes:
        """The body of a 2xx answer to the payload as JSON. One server has `concurrency` of these calls at once, the rest wait
        their turn; neither that nor the pace is taken off the budget. Nobody waits for a turn or an answer after the grade is due."""
        origin = origin_of(url)
        try:
            # half a surrogate pair is no text that could be sent; a model that writes one must not fail its grader
            body = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        except (TypeError, ValueError, RecursionError) as error:
            raise InfraError(origin, f"what it is asked cannot be written as JSON: {error}") from error
        sent = {"Content-Type": "application/json", **(headers or {})}

        def attempt(seconds: float) -> bytes:
            if pace:
                pace.wait()
            return self._attempt(url, origin, body, sent, min(timeout, seconds))

        with self._place_at(origin):
            return persist(
                attempt,
                part=origin,
                budget_seconds=self._budget_seconds,
                backoff_seconds=self._backoff_seconds,
                clock=time.monotonic,
                sleep=self._sleep,
                spread=lambda: random.uniform(0.5, 1.5),
                due_seconds=seconds_left(),
            )

    @contextlib.contextmanager
    def _place_at(self, origin: str) -> Generator[None]:
        with self._lock:
            places = self._places.setdefault(origin, threading.BoundedSemaphore(self._concurrency))
        if not places.acquire(timeout=longest_wait()):
            raise NoAnswer(origin, f"was not asked: the grade was due before one of {self._concurrency} other questions was answered")
        try:
            yield
        finally:
            places.release()

    def _sleep(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _attempt(self, url: str, origin: str, body: bytes, headers: Mapping[str, str], timeout: float) -> bytes:
        with self._lock:
            if self._closed.is_set():
                raise InfraError(origin, "the grader's connections are closed")
            if self._line is None:
                self._line = _Line()
                weakref.finalize(self, _Line.stop, self._line)  # a wire that nobody closed is closed when the program ends
            answer = self._line.start(url, body, headers, timeout, self._max_reply_bytes)
        try:
            status, retry_after, reply = answer.result()
        except concurrent.futures.CancelledError as error:
            raise InfraError(origin, "the grader's connections were closed while it was asked") from error
        except TimeoutError as error:
            raise TryAgain(f"no answer within {timeout:.3g} s") from error
        except ForbiddenAddress as error:
            raise InfraError(origin, str(error)) from error
        except ValueError as error:  # an address or a header that cannot be sent
            raise InfraError(origin, f"cannot be asked: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TryAgain(f"{error or type(error).__name__}") from error
        return self._judge(origin, status, retry_after, reply)

    def _judge(self, origin: str, status: int, retry_after: str, reply: bytes) -> bytes:
        said = f"answered {status}: {reply[:SHOWN].decode(errors='replace')}"
        if 200 <= status < 300:
            if len(reply) > self._max_reply_bytes:
                raise InfraError(origin, f"its answer is longer than {self._max_reply_bytes} bytes")
            return reply
        if may_pass(status):
            raise TryAgain(said, seconds_asked_for(retry_after, time.time()))
        raise InfraError(origin, said + (" (redirects are not followed)" if 300 <= status < 400 else ""))


def persist(
    attempt: Callable[[float], T],
    *,
    part: str,
    budget_seconds: float,
    backoff_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    spread: Callable[[], float],
    due_seconds: float = float("inf"),
) -> T:
    """Calls `attempt(seconds it may take)` until it does not raise TryAgain, within the budget and before it is due.

    The budget runs from the first failure on. A pause that would outlast it is not begun: nothing would follow.
    """
    tries, due = 0, clock() + due_seconds
    until = due
    while True:
        tries += 1
        try:
            return attempt(max(until - clock(), SHORTEST_ATTEMPT_SECONDS))
        except TryAgain as trouble:
            pause = pause_before_next(tries, trouble.pause_seconds, backoff_seconds, LONGEST_PAUSE_SECONDS, spread())
            until = min(until, clock() + budget_seconds)
            if clock() + pause >= until:
                tried = "1 attempt" if tries == 1 else f"{tries} attempts"
                ended = "and the grade is due" if until == due else f"{budget_seconds:g} s of trying again are allowed"
                raise NoAnswer(part, f"{trouble}; {tried}, {ended}") from trouble
        sleep(pause)


def origin_of(url: str) -> str:
    """scheme://host:port: what an error may show of an address, which may hold secrets elsewhere. Refuses what is no web address."""
    try:
        parsed = URL(url)
        origin = str(parsed.origin())
    except ValueError as error:
        raise InfraError("grader address", f"{url[:80]!r} is no address: {error}") from error
    if parsed.scheme not in ("http", "https"):
        raise InfraError(origin, "only http:// and https:// are asked")
    return origin


# --- the session, in a thread of its own -----------------------------------------------------------------------------


class ForbiddenAddress(Exception):
    """An address that no grader may reach."""


class _Line:
    """An event loop in a thread, and the one HTTP session that lives in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="graders-wire", daemon=True)
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(_open(), self._loop).result()

    def start(
        self, url: str, body: bytes, headers: Mapping[str, str], seconds: float, max_reply_bytes: int
    ) -> concurrent.futures.Future[tuple[int, str, bytes]]:
        return asyncio.run_coroutine_threadsafe(_post(self._session, url, body, headers, seconds, max_reply_bytes), self._loop)

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        if threading.current_thread() is self._thread:  # the garbage collector found the wire here; a thread cannot wait for itself
            threading.Thread(target=self.stop, daemon=True).start()
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_close(self._session), self._loop).result(STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


async def _open() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, resolver=_Resolver()),  # the places are the limit
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _close(session: aiohttp.ClientSession) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await session.close()


async def _post(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str], seconds: float, max_reply_bytes: int
) -> tuple[int, str, bytes]:
    host = URL(url).host or ""
    with contextlib.suppress(ValueError):
        _check_address(str(ipaddress.ip_address(host)), host)
    wait = aiohttp.ClientTimeout(total=seconds)
    async with session.post(url, data=body, headers=headers, timeout=wait, allow_redirects=False) as response:
        reply = bytearray()
        async for piece in response.content.iter_any():
            reply += piece
            if len(reply) > max_reply_bytes:
                break
        return response.status, response.headers.get("Retry-After", ""), bytes(reply)


class _Resolver(aiohttp.ThreadedResolver):
    """What is checked here is what is connected to: a name cannot become another address in between."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for one in found:
            _check_address(one["host"], host)
        return found


def _check_address(address: str, host: str) -> None:
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if (getattr(ip, "ipv4_mapped", None) or ip).is_link_local:
        raise ForbiddenAddress(f"{host} is a link-local address ({address}), where no grader lives")
