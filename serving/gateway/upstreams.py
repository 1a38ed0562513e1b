"""The model servers behind the gateway: which of them is asked, how many requests each may have, and which are out.

A checkpoint is served by one or more replicas. The one with the least in hand is asked. One that cannot be connected to is out at
once, one that fails again and again after a few times; a probe brings it back. A request is asked of a second replica only where
the first cannot have begun it or said itself that it would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from agent_rft.contracts.errors import Fault, FaultsFound
from agent_rft.contracts.retries import seconds_asked_for
from serving import metrics
from serving.gateway.declined import Declined
from serving.gateway.reading import Parts, body_for
from serving.gateway.wire import Broken, Closed, Connection, Unreachable, Wire

FAILURES_IN_A_ROW = 3
"""Of a replica that connects and fails, until it is out."""
PROBE_SECONDS, PROBE_OUT_SECONDS, LONGEST_OUT_SECONDS = 5.0, 1.0, 30.0
PROBE_TIMEOUT_SECONDS = 2.0
NOT_BEGUN = frozenset({429, 502, 503})
"""Answers of a server that has not begun: another may be asked."""
CALLERS_FAULT = frozenset({400, 413, 422})
"""Statuses that are about what was asked, and go to whoever asked."""
SHED_SECONDS = 1
log = structlog.get_logger("serving.gateway")


class UpstreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    url: str
    """An OpenAI-compatible server, up to /v1."""
    model: str
    """What it calls the checkpoint."""
    checkpoint: str
    """Which weights it serves, as agents name them."""
    key_variable: str = ""
    """The environment's variable that holds its key; empty for none."""
    in_flight: int = 64
    queue: int = 128
    """How many may wait when all places are taken."""
    connect_seconds: float = 2.0
    total_seconds: float = 120.0


class UpstreamFailed(Exception):
    """It gave no answer that can be passed on. `status` is what the gateway's own answer then is."""

    def __init__(self, upstream: str, what: str, status: int = 502) -> None:
        super().__init__(f"{upstream}: {what}")
        self.upstream, self.what, self.status = upstream, what, status


class _NotBegun(UpstreamFailed):
    """Another replica may be asked."""


class Replica:
    """One server."""

    def __init__(self, spec: UpstreamSpec) -> None:
        self.spec = spec
        self.in_flight = 0
        self.out = False
        self._failures = self._outs = 0
        self._out_until = 0.0
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if spec.key_variable:
            headers["authorization"] = f"Bearer {os.environ[spec.key_variable]}"
        self._wire = Wire(spec.url, headers, spec.connect_seconds)
        self._up, self._busy = metrics.UPSTREAM_UP.labels(spec.name), metrics.UPSTREAM_IN_FLIGHT.labels(spec.name)
        self._failed = metrics.UPSTREAM_FAILURES.labels(spec.name)
        self._up.set(1)

    @property
    def full(self) -> bool:
        return self.in_flight >= self.spec.in_flight

    def enter(self) -> None:
        self.in_flight += 1
        self._busy.set(self.in_flight)

    def leave(self) -> None:
        self.in_flight -= 1
        self._busy.set(self.in_flight)

    async def send(self, body: bytes, more: Mapping[str, str]) -> Connection:
        """Its answer, of which only the head has come. Raises UpstreamFailed."""
        try:
            answer = await self._wire.ask("POST", "/chat/completions", body, more)
        except Unreachable as error:
            self.failed(at_once=True)
            raise _NotBegun(self.spec.name, f"cannot be connected to: {_reason(error)}", 503) from None
        except Closed:  # as likely a connection that had been idle too long as a server that fell
            self.failed()
            raise _NotBegun(self.spec.name, "closed the connection without an answer", 502) from None
        except Broken as error:
            self.failed()
            raise UpstreamFailed(self.spec.name, _reason(error)) from None
        if answer.status == 200:
            self.worked()
        elif answer.status not in CALLERS_FAULT:
            raise self._refused(answer)
        return answer

    def _refused(self, answer: Connection) -> UpstreamFailed:
        status, asked = answer.status, answer.headers.get(b"retry-after", b"").decode("latin-1")
        answer.close()
        if status == 429:  # it is well, and has enough to do
            return _Busy(self.spec.name, seconds_asked_for(asked, 0.0) if asked.isdigit() else SHED_SECONDS)
        self.failed()
        kind = _NotBegun if status in NOT_BEGUN else UpstreamFailed
        return kind(self.spec.name, f"answered HTTP {status}", 503 if status == 503 else 502)

    # --- health -------------------------------------------------------------------------------------------------------------

    def worked(self) -> None:
        self._failures = self._outs = 0

    def hang_up(self) -> None:
        self._wire.close_idle()

    def failed(self, at_once: bool = False) -> None:
        self._failed.inc()
        self._failures += 1
        if not self.out and (at_once or self._failures >= FAILURES_IN_A_ROW):
            pause = min(LONGEST_OUT_SECONDS, PROBE_OUT_SECONDS * 2**self._outs)
            self.out, self._outs = True, min(self._outs + 1, 10)
            self._out_until = asyncio.get_running_loop().time() + pause
            self._up.set(0)
            log.warning("upstream_out", upstream=self.spec.name, failures=self._failures, probed_again_in=pause)

    async def probe(self) -> None:
        """Brings one that is out back, and takes out one that is silent."""
        now = asyncio.get_running_loop().time()
        self._wire.close_idle(now)
        if self.out and now < self._out_until:
            return
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                answer = await self._wire.ask("GET", "/models")
            alive = answer.status < 500
            answer.close()
        except (Unreachable, Closed, Broken, TimeoutError):
            alive = False
        if alive and self.out:
            self.out, self._failures = False, 0
            self._up.set(1)
            log.info("upstream_back", upstream=self.spec.name)
        elif not alive:
            self.out, was_out = False, self.out
            self.failed(at_once=was_out)


class _Busy(_NotBegun):
    def __init__(self, upstream: str, retry_after: float) -> None:
        super().__init__(upstream, "has as much to do as it takes", 429)
        self.retry_after = retry_after


class Exchange:
    """An answer that is coming in, and the place that it takes until `close`."""

    def __init__(self, upstream: Upstream, replica: Replica, answer: Connection) -> None:
        self._upstream, self.replica, self.answer = upstream, replica, answer

    def broke(self) -> None:
        self.replica.failed()

    def close(self) -> None:
        """One that was not read to its end breaks the connection, by which the server learns that nobody waits."""
        self.answer.close()
        self._upstream.left(self.replica)


class Upstream:
    """All replicas of one checkpoint."""

    def __init__(self, checkpoint: str, specs: Sequence[UpstreamSpec]) -> None:
        self.checkpoint = checkpoint
        self.total_seconds = max(spec.total_seconds for spec in specs)
        self.replicas = tuple(Replica(spec) for spec in specs)
        self._most_waiting = sum(spec.queue for spec in specs)
        self._waiting: deque[asyncio.Future[Replica]] = deque()
        self._queued = metrics.QUEUED.labels(checkpoint)

    @property
    def name(self) -> str:
        return ", ".join(replica.spec.name for replica in self.replicas)

    async def ask(self, parts: Parts, headers: Mapping[str, str]) -> Exchange:
        """Raises UpstreamFailed, or Declined where no place comes free. How long it may take is the caller's to say."""
        tried: Replica | None = None
        while True:
            replica = await self._place(tried)
            try:
                return Exchange(self, replica, await replica.send(body_for(parts, replica.spec.model), headers))
            except _NotBegun as failure:
                self.left(replica)
                if tried or not any(not other.out for other in self.replicas):
                    raise _declined(failure) from None
                tried = replica
            except BaseException:
                self.left(replica)
                raise

    async def post(self, body: Mapping[str, Any], seconds: float) -> tuple[int, bytes]:
        """Status and body of the whole answer: for our own agents. Raises UpstreamFailed, Declined or TimeoutError."""
        parts = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in body.items()}
        async with asyncio.timeout(seconds):
            exchange = await self.ask(parts, {})
            try:
                return exchange.answer.status, await exchange.answer.read()
            except Broken as error:
                exchange.broke()
                raise UpstreamFailed(exchange.replica.spec.name, f"broke off: {_reason(error)}") from None
            finally:
                exchange.close()

    # --- places -------------------------------------------------------------------------------------------------------------

    async def _place(self, tried: Replica | None) -> Replica:
        """A place at a replica, another than the one that was tried where there is one."""
        well = [replica for replica in self.replicas if not replica.out]
        if not well:
            raise UpstreamFailed(self.name, "is out", 503)
        free = [replica for replica in well if not replica.full]
        if free and not self._waiting:
            replica = min([one for one in free if one is not tried] or free, key=_load)
            replica.enter()
            return replica
        if len(self._waiting) >= self._most_waiting:
            cure = "try again; more replicas or a larger queue take more"
            raise Declined(429, "overloaded", f"{len(self._waiting)} requests wait for this model already", cure, retry_after=SHED_SECONDS)
        return await self._wait()

    async def _wait(self) -> Replica:
        place: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._queued.set(len(self._waiting))
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.left(place.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(place)
            self._queued.set(len(self._waiting))

    def left(self, replica: Replica) -> None:
        replica.leave()
        self.serve_waiting()

    def serve_waiting(self) -> None:
        """Hands free places to those who wait, the oldest first. Where all replicas are out, nobody waits in vain."""
        while self._waiting:
            well = [replica for replica in self.replicas if not replica.out]
            free = [replica for replica in well if not replica.full]
            if well and not free:
                return
            place = self._waiting.popleft()
            if place.done():
                continue
            if free:
                (replica := min(free, key=_load)).enter()
                place.set_result(replica)
            else:
                place.set_exception(UpstreamFailed(self.name, "is out", 503))


class Upstreams:
    """All model servers, by the checkpoint that they serve."""

    def __init__(self, specs: Sequence[UpstreamSpec]) -> None:
        if faults := list(faults_of(specs)):
            raise FaultsFound("the gateway's upstreams have faults:", faults, exit_code=2)
        by_checkpoint: dict[str, list[UpstreamSpec]] = {}
        for spec in specs:
            by_checkpoint.setdefault(spec.checkpoint, []).append(spec)
        self._upstreams = {checkpoint: Upstream(checkpoint, those) for checkpoint, those in by_checkpoint.items()}

    def for_checkpoint(self, checkpoint: str) -> Upstream:
        """Raises UpstreamFailed where none serves it."""
        if (upstream := self._upstreams.get(checkpoint)) is None:
            raise UpstreamFailed(checkpoint, "no upstream serves this checkpoint (gateway.upstreams)", 503)
        return upstream

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        probing = asyncio.create_task(self._probe_forever())
        try:
            yield
        finally:
            probing.cancel()
            for upstream in self._upstreams.values():
                for replica in upstream.replicas:
                    replica.hang_up()

    async def _probe_forever(self) -> None:
        rounds = 0
        while True:
            every = rounds % round(PROBE_SECONDS / PROBE_OUT_SECONDS) == 0
            replicas = [replica for upstream in self._upstreams.values() for replica in upstream.replicas if every or replica.out]
            await asyncio.gather(*(replica.probe() for replica in replicas))
            for upstream in self._upstreams.values():
                upstream.serve_waiting()
            rounds += 1
            await asyncio.sleep(PROBE_OUT_SECONDS)


def faults_of(specs: Sequence[UpstreamSpec]) -> Iterator[Fault]:
    names = set[str]()
    for number, spec in enumerate(specs):
        where = f"gateway.upstreams[{number}]"
        yield from _faults_of_url(f"{where}.url", spec.url)
        if spec.name in names:
            yield Fault(f"{where}.name", f"'{spec.name}' is the name of another one too", "a name of its own for each")
        names.add(spec.name)
        key = os.environ.get(spec.key_variable, "") if spec.key_variable else ""
        if spec.key_variable and not key:
            yield Fault(f"{where}.key_variable", f"{spec.key_variable} is not set in the environment", f"export {spec.key_variable}=...")
        elif not (key.isascii() and key.isprintable() and key == key.strip()):  # it would end the header it is in
            what = f"{spec.key_variable} holds more than a key: a line's end, a space, or letters that no header takes"
            yield Fault(f"{where}.key_variable", what, f'export {spec.key_variable}="$(cat FILE)" leaves a line\'s end out')


def _faults_of_url(where: str, url: str) -> Iterator[Fault]:
    cure = "http://HOST:PORT/v1"
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        yield Fault(where, f"'{url}' is no address of a server", cure)
        return
    if parts.username or parts.password:
        yield Fault(where, "it holds a user or a password", "name the variable that holds the key in key_variable")
    elif not well or not (url.isascii() and url.isprintable()) or " " in url:
        yield Fault(where, f"'{url}' is no address of a server", cure)
    elif parts.query or parts.fragment:
        yield Fault(where, f"'{url}' goes on after its path, and what stands there would be sent to nobody", cure)


def _load(replica: Replica) -> float:
    return replica.in_flight / replica.spec.in_flight


def _declined(failure: UpstreamFailed) -> UpstreamFailed | Declined:
    if isinstance(failure, _Busy):
        return Declined(429, "overloaded", "the model has as much to do as it takes", "try again", retry_after=failure.retry_after)
    return failure


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:300]
