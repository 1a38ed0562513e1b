"""A real gateway over real HTTP, before model servers that do what a test tells them to."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from litestar import Litestar

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy
from observability import users
from observability.access import person_at_the_machine
from observability.redaction.detectors import detectors_of
from observability.registry import register_agent
from observability.releases import Move, create, record
from observability.releases import events as events_of
from observability.store import Store, migrate, open_store
from serving.gateway import app as gateway_app
from serving.gateway.app import Gateway, GatewayPlan
from serving.gateway.upstreams import UpstreamSpec
from serving.gateway.writing import Plan, write_until
from serving.metrics import REGISTRY
from serving.release.routing import Routing

NOW = dt.datetime.now(dt.UTC)


class FakeModel:
    """An OpenAI-compatible server, raw ASGI, that does as it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.wait = 0.0
        self.chunks = 5
        self.breaks_after: int | None = None
        self.between = 0.0
        self.last = (b"data: [DONE]\n\n",)
        """How a stream ends ..."""
        self.lingers = 0.0
        """... and for how long it then stays open before more is said."""
        self.answer: dict[str, Any] = {}
        self.cut_off = 0
        """Requests whose caller went away."""
        self.at_once = self.most_at_once = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await self._say(send, 200, {"object": "list", "data": []})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked.append(json.loads(body))
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        gone = asyncio.create_task(receive())
        try:
            if self.wait and gone in (await asyncio.wait([gone], timeout=self.wait))[0]:
                self.cut_off += 1
                return
            if self.status != 200:
                await self._say(send, self.status, {"error": {"message": "as I was told"}})
            elif self.asked[-1].get("stream"):
                await self._stream(send, gone)
            else:
                await self._say(send, 200, self.whole())
        finally:
            gone.cancel()
            self.at_once -= 1

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": f"I am {self.name}", **self.answer}
        usage = {"prompt_tokens": 11, "completion_tokens": 3}
        return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": usage}

    def piece(self, number: int) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": f"{self.name}{number} "}}]}).encode() + b"\n\n"

    async def _stream(self, send: Any, gone: asyncio.Task[Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(self.chunks):
            if self.breaks_after == number:
                raise RuntimeError("told to break off")
            await send({"type": "http.response.body", "body": self.piece(number), "more_body": True})
            if self.between:
                await asyncio.wait([gone], timeout=self.between)
            if gone.done():
                self.cut_off += 1
                return
        for piece in self.last:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0.02 * (len(self.last) > 1))
        if self.lingers and gone in (await asyncio.wait([gone], timeout=self.lingers))[0]:
            self.cut_off += 1
            return
        await send({"type": "http.response.body", "body": self.piece(99) if self.lingers else b"", "more_body": False})

    async def _say(self, send: Any, status: int, told: Any) -> None:
        body = json.dumps(told).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class ThreadWriter:
    """The writer of cards in a thread, since a process takes a second and more to start."""

    def __init__(self, plan: Plan) -> None:
        self._stopped, self._store = threading.Event(), open_store(plan.store)
        arguments = (self._stopped, plan, self._store, detectors_of(True))
        self._thread = threading.Thread(target=write_until, args=arguments)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._store.close()


class World(NamedTuple):
    store: Store
    url: str
    key: str
    gateway: Gateway
    live: FakeModel
    second: FakeModel
    candidate: FakeModel

    def chat(self, service: str = "plain", *, key: str | None = None, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=asking(service, **body), headers=self.headers(key, headers), timeout=20)

    def headers(self, key: str | None = None, more: dict[str, str] | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.key}", **(more or {})}


def asking(service: str, **body: Any) -> dict[str, Any]:
    return {"model": service, "messages": [{"role": "user", "content": "who are you?"}], **body}


LIVE = Agent(checkpoint="weights-live", tool_set="t1", system_prompt="Be brief.", temperature=0.25)
CANDIDATE = Agent(checkpoint="weights-new", tool_set="t1", system_prompt="Be briefer.")


def new_key(store: Store, tenant: str, name: str = "ann", role: str = "agent", scopes: list[str] | None = None) -> users.NewKey:
    me = person_at_the_machine(tenant, "root")
    if name not in [user.name for user in users.users_of(store, tenant)]:
        users.add_user(store, me, name, role, NOW)
    return users.new_key(store, me, name, NOW, scopes)


def put_live(store: Store, tenant: str, service: str, agent: Agent = LIVE) -> None:
    register_agent(store, tenant, agent, "an agent")
    release = create(store, "ann", tenant, service, agent.id, "", Policy())
    move(store, tenant, release.id, Move(act="advance", stage="full", share=1.0, why="first"))


def try_out(store: Store, tenant: str, service: str, share: float, agent: Agent = CANDIDATE, live: Agent = LIVE) -> int:
    """With a share of 0 in the shadow."""
    register_agent(store, tenant, agent, "another agent")
    release = create(store, "ann", tenant, service, agent.id, live.id, Policy())
    move(store, tenant, release.id, Move(act="advance", stage="canary" if share else "shadow", share=share, why="test"))
    return release.id


def move(store: Store, tenant: str, release: int, to: Move) -> None:
    record(store, "ann", tenant, release, to, events_of(store, tenant, release)[-1].id)


def specs(live: FakeModel, second: FakeModel, candidate: FakeModel, **more: Any) -> tuple[UpstreamSpec, ...]:
    places = ((live, "weights-live", "model-live"), (second, "weights-live", "model-second"), (candidate, "weights-new", "model-new"))
    return tuple(
        UpstreamSpec(**{"name": fake.name, "url": fake.url, "checkpoint": checkpoint, "model": model, "connect_seconds": 0.5, **more})
        for fake, checkpoint, model in places
    )


@contextmanager
def opened(in_thread: Any, url: str, folder: Path, **plan: Any) -> Iterator[World]:
    """Services: `plain` has a live agent, `trial` a candidate that half of the sessions go to."""
    with ExitStack() as stack:
        store = open_store(url)
        stack.callback(store.close)
        fakes = [FakeModel(name) for name in ("live", "second", "candidate")]
        for fake in fakes:
            fake.url = stack.enter_context(in_thread(fake)) + "/v1"
        key = new_key(store, "acme").text
        put_live(store, "acme", "plain")
        put_live(store, "acme", "trial")
        try_out(store, "acme", "trial", 0.5)
        upstream = plan.pop("upstream", {})
        cards = Plan(
            store=store.address, folder=str(folder / "spool"), most_bytes=10**8, redact=True, patterns={}, tenant_patterns={}, code="c1",
            collector=plan.pop("collector", ""),
        )  # fmt: skip
        gateway = Gateway(
            GatewayPlan(upstreams=specs(*fakes, **upstream), cards=cards, **plan), store, Routing(store, folder / "withdrawn")
        )
        app = Litestar([*gateway.routes()], lifespan=[gateway.running], logging_config=None, openapi_config=None)
        address = stack.enter_context(in_thread(gateway.before(app)))
        until = time.monotonic() + 10
        while gateway.routing.route("acme", "trial") is None and time.monotonic() < until:  # a crowded machine reads them late
            time.sleep(0.02)
        yield World(store, address, key, gateway, *fakes)


@pytest.fixture
def thread_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_app, "WriterProcess", ThreadWriter)


@pytest.fixture
def open_world(in_thread: Any, tmp_path: Path, thread_writer: None, empty: Path) -> Iterator[Callable[..., World]]:
    """A gateway with settings of the test's own."""
    with ExitStack() as stack:
        yield lambda **plan: stack.enter_context(opened(in_thread, fresh(empty, tmp_path), tmp_path, **plan))


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, since making one takes longer than most of these tests."""
    path = tmp_path_factory.mktemp("gateway") / "cards.db"
    open_store(f"sqlite:///{path}").close()
    return path


def fresh(empty: Path, folder: Path) -> str:
    (folder / "cards.db").write_bytes(empty.read_bytes())
    return f"sqlite:///{folder}/cards.db"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, in_thread: Any, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for a module, on each database."""
    folder = tmp_path_factory.mktemp("world")
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else fresh(empty, folder)
    migrate(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway_app, "WriterProcess", ThreadWriter)
        with opened(in_thread, url, folder) as made:
            yield made


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """The model servers of a module's world do again what they did."""
    yield
    if "world" in request.fixturenames:
        world: World = request.getfixturevalue("world")
        for fake in (world.live, world.second, world.candidate):
            url, name = fake.url, fake.name
            fake.__init__(name)
            fake.url = url


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def figure() -> Callable[..., float]:
    return metric


@pytest.fixture
def helpers() -> Any:
    """What tests call by name: a package of tests imports nothing of its own."""
    return {name: globals()[name] for name in ("asking", "new_key", "put_live", "try_out", "move", "LIVE", "CANDIDATE", "FakeModel")}
