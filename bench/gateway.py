"""The gateway beside LiteLLM's proxy and nginx, before the same upstream, in one run.

Ours is `rft serve` as it is served: a store, keys that are looked up, routes, quotas, and a job card for every answer, whose making is
counted in. nginx passes bytes on and does nothing else; LiteLLM's proxy checks a key and translates. Each server has the first core,
with all its processes; the upstream and the load have the last. What counts is CPU per answer, of all processes of a server until they
are idle again, less what they take when idle, which other work on the machine disturbs little; and what is added to the upstream's own
latency.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import uvloop

from serving.server import free_port

HERE = Path(__file__).resolve().parent
PEER = HERE / ".venvs" / "gateway" / "bin"
OURS, NGINX, LITELLM, DIRECT = "agent-rft", "nginx", "litellm", "direct"
CHUNKS, CHUNK_SECONDS = 100, 0.001
CONNECTIONS = (1, 8, 32, 128, 512)
STREAMED = (1, 8, 32, 128, 512)
CELL_SECONDS, LONGEST_SECONDS = 2.0, 12.0
IDLE_SHARE, IDLE_SECONDS, LONGEST_IDLE = 0.05, 0.5, 90.0
"""A server is idle when all its processes took less than this share of a core for so long."""
WORDS = "The operating margin of the third quarter was thirteen point four percent, up from twelve percent a year before. "


# --- the upstream: answers what it has ready, so that it costs little ---------------------------------------------------------

PLAIN = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS * 3}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 64, "total_tokens": 184},
    }
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(PLAIN) + PLAIN
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _piece(number: int) -> bytes:
    delta = {"role": "assistant", "content": "margin "} if number else {"role": "assistant", "content": ""}
    done = "stop" if number == CHUNKS - 1 else None
    event = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "bench",
        "choices": [{"index": 0, "delta": delta, "finish_reason": done}],
    }
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return b"%x\r\n" % len(data) + data + b"\r\n"


PIECES = [_piece(number) for number in range(CHUNKS)]
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, body = self._heard.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0) if found else 0
        if not found or len(body) < length:
            return
        self._heard = b""
        if b'"stream":true' in body.replace(b" ", b""):
            self._transport.write(HEAD)
            self._say(0)
        else:
            self._answer()

    def _answer(self) -> None:
        self._transport.write(WHOLE)

    def _say(self, number: int) -> None:
        if self._transport.is_closing():
            return
        if number == CHUNKS:
            self._transport.write(LAST)
            return
        self._transport.write(PIECES[number])
        self._loop.call_later(CHUNK_SECONDS, self._say, number + 1)


async def serve_upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


# --- the load: bare connections, each asking again once it was answered -------------------------------------------------------


class Client(asyncio.Protocol):
    def __init__(self, request: bytes, stream: bool, state: Load) -> None:
        self._request, self._stream, self._state = request, stream, state
        self._heard = bytearray()
        self._first = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if not self._state.more():
            self._transport.close()
            return
        self._sent, self._first = time.perf_counter(), 0.0
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._first = self._first or time.perf_counter()
        self._heard += data
        if not self._whole():
            return
        now = time.perf_counter()
        good = self._heard.startswith(b"HTTP/1.1 200") and (b"[DONE]" in self._heard if self._stream else b"margin" in self._heard)
        self._state.answered(now - self._sent, self._first - self._sent, bytes(self._heard[:300]) if not good else b"")
        self._heard.clear()
        self._send()

    def _whole(self) -> bool:
        place = self._heard.find(b"\r\n\r\n")
        if place < 0:
            return False
        head = bytes(self._heard[:place]).lower()
        if b"content-length:" in head:
            return len(self._heard) - place - 4 >= int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return self._heard.endswith(b"0\r\n\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.lost(self._heard)


class Load:
    """Until its time is over or so many were asked for."""

    def __init__(self, clients: int, seconds: float, most: int) -> None:
        self.seconds, self.first = list[float](), list[float]()
        self.failed, self.why = 0, b""
        self._open, self._left, self._until = clients, most, time.perf_counter() + seconds
        self.done = asyncio.get_running_loop().create_future()

    def more(self) -> bool:
        self._left -= 1
        return self._left >= 0 and time.perf_counter() < self._until

    def answered(self, seconds: float, first: float, wrong: bytes) -> None:
        if wrong:
            self.failed, self.why = self.failed + 1, wrong
        else:
            self.seconds.append(seconds)
            self.first.append(first)

    def lost(self, heard: bytearray) -> None:
        if heard:
            self.failed, self.why = self.failed + 1, bytes(heard[:300])
        self._open -= 1
        if not self._open and not self.done.done():
            self.done.set_result(None)


async def load(port: int, key: str, clients: int, stream: bool, seconds: float, most: int) -> None:
    """Prints what it saw. Who has not been answered long after the end is given up."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": WORDS * 4}]
    body = json.dumps({"model": "bench", "messages": messages, "stream": stream, "max_tokens": 100, "temperature": 1.0}).encode()
    heads = ("POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key}", "Content-Type: application/json")
    request = "\r\n".join((*heads, f"Content-Length: {len(body)}", "", "")).encode() + body
    state, loop, began = Load(clients, seconds, most), asyncio.get_running_loop(), time.perf_counter()
    for _ in range(clients):
        await loop.create_connection(lambda: Client(request, stream, state), "127.0.0.1", port)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(state.done, LONGEST_SECONDS + seconds)
    wall = time.perf_counter() - began
    told = {"answered": len(state.seconds), "failed": state.failed, "why": state.why.decode(errors="replace"), "wall": wall}
    print(json.dumps(told | _cuts("", state.seconds) | _cuts("first_", state.first)))


def _cuts(name: str, seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {f"{name}p50": float("nan"), f"{name}p99": float("nan")}
    ordered = sorted(seconds)
    return {f"{name}p50": ordered[len(ordered) // 2] * 1e3, f"{name}p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e3}


# --- the servers --------------------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    name: str
    port: int
    key: str
    pid: int
    idle: float = 0.0
    """What it takes of a core with nothing to do."""


def started(command: Sequence[str], log: Path, core: int, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **environment},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}), start_new_session=True,  # noqa: PLW1509
        )  # fmt: skip


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, core: int, up: Callable[[], bool], **environment: str) -> Generator[int]:
    """Its process id, once it answers."""
    process = started(command, log, core, **environment)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended at once:\n{log.read_text()[-2000:]}")
            if up():
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"{command[0]} does not answer:\n{log.read_text()[-2000:]}")
        yield process.pid
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in (process, *children):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()
        process.wait()


def answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    return ask


def prepared(folder: Path) -> tuple[str, str]:
    """A store with a user, a service that one agent answers; its URL, and the user's key."""
    from agent_rft.contracts.agents import Agent
    from agent_rft.contracts.releases import Policy
    from observability import users
    from observability.access import person_at_the_machine
    from observability.registry import register_agent
    from observability.releases import Move, create, events, record
    from observability.store import open_store

    url, now, me = f"sqlite:///{folder}/cards.db", datetime.now(UTC), person_at_the_machine("bench", "root")
    store = open_store(url)
    users.add_user(store, me, "ann", "agent", now)
    key = users.new_key(store, me, "ann", now).text
    agent = Agent(checkpoint="bench", tool_set="none", system_prompt="Be brief.")
    register_agent(store, "bench", agent, "bench")
    release = create(store, "ann", "bench", "bench", agent.id, "", Policy())
    move = Move(act="advance", stage="full", share=1.0, why="first")
    record(store, "ann", "bench", release.id, move, events(store, "bench", release.id)[-1].id)
    store.close()
    return url, key


@contextlib.contextmanager
def ours(folder: Path, upstream: int, core: int) -> Generator[Server]:
    url, key = prepared(folder)
    port = free_port()
    to = {"name": "bench", "url": f"http://127.0.0.1:{upstream}/v1", "model": "bench", "checkpoint": "bench", "in_flight": 1024}
    settings = (
        f"store.url={url}",
        f"serving.port={port}",
        f"gateway.upstreams={json.dumps([to])}",
        f"gateway.spool={folder}/spool",
        "gateway.quotas.requests_per_minute=0",
        "gateway.quotas.in_flight=0",
    )
    command = [sys.executable, "-m", "agent_rft", "serve", "research_tiny", *settings]
    with running(command, folder / "ours.log", core, answers(f"http://127.0.0.1:{port}/health"), TOOL_BEARER="bench") as pid:
        yield Server(OURS, port, key, pid)


NGINX_CONF = """
daemon off; master_process on; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, upstream: int, core: int) -> Generator[Server]:
    port, conf = free_port(), folder / "nginx.conf"
    conf.write_text(f"user root;{NGINX_CONF.format(folder=folder, upstream=upstream, port=port)}")
    command = [str(shutil.which("nginx")), "-c", str(conf), "-p", str(folder)]
    up = answers(f"http://127.0.0.1:{port}/")
    with running(command, folder / "nginx.log", core, up) as pid:
        yield Server(NGINX, port, "bench", pid)


LITELLM_CONF = """
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{upstream}/v1", api_key: bench}}
litellm_settings: {{telemetry: false, num_retries: 0}}
general_settings: {{master_key: sk-bench}}
"""


@contextlib.contextmanager
def litellm(folder: Path, upstream: int, core: int) -> Generator[Server]:
    port, conf = free_port(), folder / "litellm.yaml"
    conf.write_text(LITELLM_CONF.format(upstream=upstream))
    command = [str(PEER / "litellm"), "--config", str(conf), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1"]
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(folder)}
    with running(command, folder / "litellm.log", core, answers(f"http://127.0.0.1:{port}/health/liveliness"), **quiet) as pid:
        yield Server(LITELLM, port, "sk-bench", pid)


def install_peer() -> str:
    if not (PEER / "litellm").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER.parent)], check=True)
        subprocess.run([str(PEER / "pip"), "install", "-q", "litellm[proxy]>=1.80"], check=True)
    told = "import importlib.metadata as m; print('litellm', m.version('litellm'))"
    return subprocess.run([str(PEER / "python"), "-c", told], check=True, capture_output=True, text=True).stdout.strip()


# --- measuring ------------------------------------------------------------------------------------------------------------------


def processes(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    total = 0.0
    for process in processes(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def megabytes(pid: int) -> float:
    return sum(process.memory_info().rss for process in processes(pid)) / 2**20


def idle(pid: int) -> None:
    """Returns once all that was asked of it is done, the making of cards included."""
    until = time.monotonic() + LONGEST_IDLE
    before = cpu_seconds(pid)
    while time.monotonic() < until:
        time.sleep(IDLE_SECONDS)
        now = cpu_seconds(pid)
        if now - before < IDLE_SHARE * IDLE_SECONDS:
            return
        before = now


def idle_rate(pid: int) -> float:
    """Seconds of CPU a second that a server takes when nobody asks it anything: none of any answer's."""
    idle(pid)
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(5)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def measured(server: Server, clients: int, stream: bool, seconds: float, most: int, core: int) -> dict[str, Any]:
    before, began = cpu_seconds(server.pid) if server.pid else 0.0, time.monotonic()
    words = [sys.executable, __file__, "--load", str(server.port), "--key", server.key, "--clients", str(clients)]
    words += ["--seconds", str(seconds), "--most", str(most), *(["--stream"] if stream else [])]
    loader = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))  # noqa: PLW1509
    seen: dict[str, Any] = json.loads(loader.communicate()[0])
    if server.pid:
        idle(server.pid)
    spent = cpu_seconds(server.pid) - before - server.idle * (time.monotonic() - began) if server.pid else 0.0
    if seen["failed"]:
        print(f"    {server.name}: {seen['failed']} failed, such as {seen['why'][:150]!r}", flush=True)
    done = seen["answered"]
    return seen | {"cpu_ms": spent / done * 1e3 if done else float("nan")}


def table(cells: dict[tuple[str, bool, int], dict[str, Any]], names: Sequence[str], stream: bool, clients: Sequence[int]) -> None:
    print(f"\n{'streams of 100 chunks' if stream else 'plain answers'}")
    print(f"{'':12}{'connections':>12}{'answered':>10}{'CPU ms each':>13}{'p50 ms':>10}{'p99 ms':>10}{'added p50':>11}{'failed':>8}")
    for count in clients:
        direct = cells[DIRECT, stream, count]
        for name in names:
            cell = cells[name, stream, count]
            added = cell["p50"] - direct["p50"]
            cpu = f"{cell['cpu_ms']:.3f}" if name != DIRECT else ""
            print(
                f"{name:12}{count:>12}{cell['answered']:>10}{cpu:>13}{cell['p50']:>10.2f}{cell['p99']:>10.2f}"
                f"{'' if name == DIRECT else f'{added:.2f}':>11}{cell['failed']:>8}",
                flush=True,
            )


def memory(server: Server, requests: int, core: int) -> list[float]:
    """Of all processes of ours, at the start and at the end of each quarter of so many requests."""
    idle(server.pid)
    seen = [megabytes(server.pid)]
    print(f"\nmemory of ours, all its processes\n{'':12}{0:>10} requests{seen[0]:>8.0f} MB", flush=True)
    for quarter in range(1, 5):
        told = measured(server, 32, False, 3600.0, requests // 4, core)
        seen.append(megabytes(server.pid))
        rate = f"{told['answered'] / told['wall']:.0f} a second, {told['failed']} failed"
        print(f"{'':12}{requests * quarter // 4:>10} requests{seen[-1]:>8.0f} MB   {rate}", flush=True)
    return seen


def compare(folder: Path, given: argparse.Namespace, cpus: Sequence[int]) -> dict[str, Any]:
    versions, core, others = install_peer(), cpus[0], cpus[-1]
    port = free_port()
    cells: dict[tuple[str, bool, int], dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        upstream = [sys.executable, __file__, "--upstream", str(port)]
        stack.enter_context(running(upstream, folder / "upstream.log", others, lambda: _listens(port)))
        servers = [Server(DIRECT, port, "bench", 0), stack.enter_context(ours(folder, port, core))]
        if shutil.which("nginx"):
            servers.append(stack.enter_context(nginx(folder, port, core)))
        else:
            print("nginx is not installed (apt-get install nginx-light): it is left out")
        servers.append(stack.enter_context(litellm(folder, port, core)))
        names = [server.name for server in servers]
        for server in servers:
            measured(server, 4, False, 1.0, 200, others)  # warms up, and is not counted
            measured(server, 2, True, 1.0, 20, others)
        servers = [server._replace(idle=idle_rate(server.pid)) if server.pid else server for server in servers]
        print("of a core with nothing to do: " + ", ".join(f"{one.name} {one.idle:.1%}" for one in servers if one.pid), flush=True)
        for stream, clients in ((False, given.plain), (True, given.streamed)):
            for count in clients:
                for server in servers:
                    cells[server.name, stream, count] = measured(server, count, stream, given.seconds, 10**9, others)
            table(cells, names, stream, clients)
        grown = memory(servers[1], given.requests, others)
    return _result(cells, names, given, versions, grown)


def _result(cells: Any, names: Sequence[str], given: argparse.Namespace, versions: str, grown: Sequence[float]) -> dict[str, Any]:
    def over(stream: bool) -> dict[str, float]:
        counts = given.streamed if stream else given.plain
        pairs = {str(count): (cells[LITELLM, stream, count], cells[OURS, stream, count]) for count in counts}
        return {count: round(peer["cpu_ms"] / mine["cpu_ms"], 2) for count, (peer, mine) in pairs.items() if peer["answered"]}

    ratios = over(False)
    conditions: dict[str, Any] = {
        "connections": list(given.plain),
        "cpu_litellm_over_ours": {"plain": ratios, "stream": over(True)},
        "ours_cards_included": True,
        "memory_mb": [round(one) for one in grown],
        "requests_for_memory": given.requests,
        "peer_versions": versions,
    }
    if NGINX in names:
        conditions["added_p50_ms"] = {
            name: {str(count): round(cells[name, False, count]["p50"] - cells[DIRECT, False, count]["p50"], 2) for count in given.plain}
            for name in (OURS, NGINX)
        }
    return {
        "bench": "gateway",
        "peer": "LiteLLM proxy",
        "ratio": round(statistics.median(ratios.values()), 1) if ratios else 0.0,
        "unit": "CPU per request, LiteLLM's over ours, cards included; median over connections",
        "conditions": conditions,
    }


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--long", action="store_true", help="200,000 requests for the memory")
    options.add_argument("--requests", type=int, default=8_000, help="for the memory")
    options.add_argument("--seconds", type=float, default=CELL_SECONDS, help="of each measurement")
    options.add_argument("--plain", type=int, nargs="*", default=list(CONNECTIONS))
    options.add_argument("--streamed", type=int, nargs="*", default=list(STREAMED))
    for hidden in ("--upstream", "--load", "--clients", "--most"):
        options.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    options.add_argument("--key", help=argparse.SUPPRESS)
    options.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    given, _ = options.parse_known_args()
    given.requests = 200_000 if given.long else given.requests
    if given.upstream:
        uvloop.run(serve_upstream(given.upstream))
    elif given.load:
        uvloop.run(load(given.load, given.key, given.clients, given.stream, given.seconds, given.most))
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(compare(Path(folder), given, sorted(os.sched_getaffinity(0)))))


if __name__ == "__main__":
    main()
