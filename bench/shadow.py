"""What a shadow adds to the live answer: the same chats through two gateways in turns, one of which mirrors every one to a candidate.

Both are `rft serve` as it is served, with cards, on the first core; model and users are on the last. The model takes a tenth of a second
over an answer, give or take a third, as the candidate's does, so that mirrored chats are under way all the time. A limit is the peer: the
p99 of the live answer may grow by 2%.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import uvloop
from gateway import WHOLE, Server, Upstream, answers, prepared, running, started

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.releases import Policy
from observability.registry import register_agent
from observability.releases import Move, create, events, live_agent, record
from observability.store import open_store
from serving.server import free_port

HERE = Path(__file__).resolve()
LIMIT = 2.0
"""Percent."""
SECONDS, SPREAD = 0.1, 1 / 3
CLIENTS = 8


class Model(Upstream):
    """Thinks before it answers."""

    def _answer(self) -> None:
        asyncio.get_running_loop().call_later(SECONDS * random.uniform(1 - SPREAD, 1 + SPREAD), self._transport.write, WHOLE)


async def serve_model(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def put_in_the_shadow(url: str) -> None:
    """A candidate that never has enough of it."""
    store = open_store(url)
    agent = Agent(checkpoint="candidate", tool_set="none", system_prompt="Be brief.")
    register_agent(store, "bench", agent, "candidate")
    policy = Policy(shadow_sessions=10**9, hold_seconds=86_400, rollback_seconds=86_400, idle_seconds=5, graded_share=0)
    release = create(store, "ann", "bench", "bench", agent.id, live_agent(store, "bench", "bench"), policy)
    move = Move(act="advance", stage="shadow", share=0.0, why="to be mirrored")
    record(store, "ann", "bench", release.id, move, events(store, "bench", release.id)[-1].id)
    store.close()


@contextlib.contextmanager
def gateway(folder: Path, model: int, shadow: bool) -> Generator[Server]:
    folder.mkdir()
    url, key = prepared(folder)
    if shadow:
        put_in_the_shadow(url)
    port = free_port()
    to = {"url": f"http://127.0.0.1:{model}/v1", "model": "bench", "in_flight": 1024}
    upstreams = [to | {"name": name, "checkpoint": name} for name in ("bench", "candidate")]
    settings = (
        f"store.url={url}",
        f"serving.port={port}",
        f"gateway.upstreams={json.dumps(upstreams)}",
        f"gateway.spool={folder}/spool",
        "gateway.quotas.requests_per_minute=0",
        "gateway.quotas.in_flight=0",
    )
    command = [sys.executable, "-m", "agent_rft", "serve", "research_tiny", *settings]
    with running(command, folder / "log", 0, answers(f"http://127.0.0.1:{port}/health"), TOOL_BEARER="bench") as pid:
        yield Server("on" if shadow else "off", port, key, pid)


def asked(server: Server, seconds: float) -> dict[str, Any]:
    load = ["--load", str(server.port), "--key", server.key, "--clients", str(CLIENTS), "--seconds", str(seconds), "--most", "1000000"]
    command = ["taskset", "-c", str((os.cpu_count() or 1) - 1), sys.executable, str(HERE.parent / "gateway.py"), *load]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    if seen["failed"]:
        raise SystemExit(f"{seen['failed']} of {seen['answered'] + seen['failed']} chats were not answered: {seen['why']}")
    return seen


def mirrored(url: str) -> int:
    """Cards of the shadow that the store holds."""
    import sqlalchemy as sa

    from observability.tables import job_cards

    store = open_store(url)
    with store.reading() as connection:
        count = connection.scalar(sa.select(sa.func.count()).where(job_cards.c.kind == "shadow")) or 0
    store.close()
    return count


def compare(folder: Path, seconds: float, turns: int) -> dict[str, Any]:
    model = free_port()
    cores = os.cpu_count() or 1
    upstream = started([sys.executable, str(HERE), "--model", str(model)], folder / "model.log", cores - 1)
    seen: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    try:
        with gateway(folder / "off", model, False) as off, gateway(folder / "on", model, True) as on:
            chats = {server.name: asked(server, 3.0)["answered"] for server in (off, on)}  # warms up, and lets the routes be read
            for turn in range(turns):
                for server in (off, on) if turn % 2 else (on, off):
                    one = asked(server, seconds)
                    seen[server.name].append(one)
                    told = f"{one['answered']:6} chats  p50 {one['p50']:7.2f} ms  p99 {one['p99']:7.2f} ms"
                    print(f"turn {turn + 1}  shadow {server.name:3}  {told}", flush=True)
            shadows = mirrored(f"sqlite:///{folder}/on/cards.db")
    finally:
        upstream.kill()
    mirrorable = chats["on"] + sum(one["answered"] for one in seen["on"])
    print(f"{shadows} of {mirrorable} chats are on a card of the shadow by now")
    if not shadows:
        raise SystemExit("nothing was mirrored: this compares nothing")
    p99 = {name: statistics.median(one["p99"] for one in of) for name, of in seen.items()}
    p50 = {name: statistics.median(one["p50"] for one in of) for name, of in seen.items()}
    added = {f"p{name}": round(100 * (of["on"] / of["off"] - 1), 2) for name, of in (("50", p50), ("99", p99))}
    return {
        "bench": "shadow",
        "peer": f"the same gateway without a shadow (limit: {LIMIT:g}% of p99 added)",
        "ratio": round(p99["off"] / p99["on"], 4),
        "unit": "p99 of the live answer",
        "conditions": {"added_percent": added, "ms": {"p50": p50, "p99": p99}, "mirrored": shadows, "chats": mirrorable,
                       "connections": CLIENTS, "turns": turns, "cpus": cores, "load": os.getloadavg()[0]},
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=int, help=argparse.SUPPRESS)
    options.add_argument("--seconds", type=float, default=12.0)
    options.add_argument("--turns", type=int, default=4)
    given = options.parse_args()
    if given.model:
        uvloop.run(serve_model(given.model))
        return
    with tempfile.TemporaryDirectory(prefix="bench-shadow-") as folder:
        print(json.dumps(compare(Path(folder), given.seconds, given.turns)))


if __name__ == "__main__":
    main()
