"""Rollouts of 5 turns against a chat endpoint that takes 50 ms a completion: ours beside verifiers' ToolEnv, 512 in flight.

Both speak to the same endpoint with the same rows, call the same Python functions in process as tools, and grade by the same comparison.
Each is a process of its own on the first core; the endpoint is one on the last. They take turns, with
results in memory alone and with each kept on disk as it ends. What counts: rollouts a second, and the
CPU seconds of the client's process a rollout. Before them the endpoint's own limit is measured with bare connections, which build and
read nothing. verifiers 0.3.1 is the last release that has ToolEnv: 0.4 took it out.

    python bench/rollouts.py [--rollouts 1536] [--peer-rollouts 512] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from peers.rollout_work import ANSWER, CALLS, MODEL, SYSTEM, TOOLS, completion, questions

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import Message, ToolSpec
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.kept_tries import KeptTries
from agent_rft.evaluation.suite import evaluate
from agent_rft.rollouts.chat_sampler import ChatSampler, posting_to
from agent_rft.rollouts.in_process import InProcessTools
from serving.server import free_port

HERE = Path(__file__).resolve().parent
PLACE = HERE / ".venvs" / "rollouts"
PEER_PACKAGE = "verifiers==0.3.1"
OURS, PEER = "agent-rft", "verifiers ToolEnv"
LATENCY_SECONDS, IN_FLIGHT = 0.05, 512
WARM_UP = 16
"""Rollouts before the clock runs: what is imported or connected once counts for nobody."""
LIMIT_SECONDS = 3.0


# --- the endpoint: has its five answers ready, and reads of a request only how often the model has spoken in it ---------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
ANSWERS = [HEAD % len(answer) + answer for answer in map(completion, range(CALLS + 1))]


class Endpoint(asyncio.Protocol):
    def __init__(self) -> None:
        self._heard = bytearray()
        self._needed = 0

    def connection_made(self, transport: Any) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if not self._needed:
            head = self._heard.find(b"\r\n\r\n")
            if head < 0:
                return
            length = bytes(self._heard[:head]).lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._needed = head + 4 + int(length)
        if len(self._heard) < self._needed:
            return
        turn = self._heard.count(b'"assistant"')
        self._heard.clear()
        self._needed = 0
        self._loop.call_later(LATENCY_SECONDS, self._answer, ANSWERS[turn])

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def serve_endpoint(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


class Bare(asyncio.Protocol):
    """Asks again as soon as it was answered."""

    answered = 0

    def __init__(self, request: bytes) -> None:
        self._request = request

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        Bare.answered += 1  # an answer of this size comes in one piece
        self._transport.write(self._request)


async def ask_bare(port: int) -> None:
    """Prints how many completions a second the endpoint gives to as many connections as there are rollouts in flight."""
    said = [{"role": "system", "content": SYSTEM}, *({"role": "assistant", "content": "x" * 600} for _ in range(CALLS))]
    body = json.dumps({"model": MODEL, "messages": said}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    loop = asyncio.get_running_loop()
    for _ in range(IN_FLIGHT):
        await loop.create_connection(lambda: Bare(request), "127.0.0.1", port)
    await asyncio.sleep(0.5)
    before, began = Bare.answered, time.perf_counter()
    await asyncio.sleep(LIMIT_SECONDS)
    print(json.dumps({"a_second": (Bare.answered - before) / (time.perf_counter() - began)}))


# --- our side -----------------------------------------------------------------------------------------------------------------------


def _text_of(name: str, description: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string", "description": description}}, "required": [name]}


class Functions:
    """The tools of both sides, as our port has them."""

    specs = (
        ToolSpec("search", "Find passages in the filings.", _text_of("query", "what to look for")),
        ToolSpec("read", "Read a filing.", _text_of("path", "which one")),
    )
    version = "bench"

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, str | None]:
        return TOOLS[name](**arguments), None


class Exact:
    ref = GraderRef("exact", "1", "bench")

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        return Grade(self.ref, float(sample["output_text"] == item["reference_answer"]))


def rows(count: int) -> list[Row]:
    opening = [(Message("system", SYSTEM), Message("user", question)) for question in questions(count)]
    return [Row(f"row-{n}", said[1].content, ANSWER, tools=Functions.specs, messages=said) for n, said in enumerate(opening)]


async def run_ours(url: str, count: int, folder: str) -> None:
    """As `rft suite` runs it, but for job cards: verifiers has none."""
    tools, grader = InProcessTools(Functions()), Exact()
    limits = Limits(max_turns=CALLS + 4, max_trajectory_tokens=100_000)
    async with posting_to(url, "bench") as post:
        sampler = ChatSampler(post, model=MODEL, checkpoint=MODEL)
        await evaluate(rows(WARM_UP), 1, sampler, tools, grader, limits, 0, "warm-up")
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.ExitStack() as stack:
            agent = Agent(checkpoint=MODEL, tool_set="bench")
            kept = stack.enter_context(KeptTries.opened(Path(folder), agent, grader.ref)) if folder else None
            graded = await evaluate(rows(count), 1, sampler, tools, grader, limits, 42, "bench", in_flight=IN_FLIGHT, kept=kept)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    right = sum(one.reward == 1.0 and one.rollout.tool_calls == CALLS for one in graded)
    print(json.dumps({"wall": wall, "cpu": cpu, "right": right, "rollouts": len(graded)}))


# --- measuring ----------------------------------------------------------------------------------------------------------------------


def install_peer() -> Path:
    python = PLACE / "bin" / "python"
    if not (PLACE / "ready").exists():
        print(f"installing {PEER_PACKAGE} into {PLACE.relative_to(HERE.parent)} ...", flush=True)
        venv.create(PLACE, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER_PACKAGE], check=True)
        (PLACE / "ready").touch()
    return python


def told(command: Sequence[str | Path], core: int) -> dict[str, float]:
    """What a process on that core says of itself in its last line."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )
    if done.returncode:
        raise SystemExit(f"{command[1]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(name: str, python: Path, port: int, count: int, folder: str, core: int) -> dict[str, float]:
    url = f"http://127.0.0.1:{port}/v1"
    ours: list[str | Path] = [sys.executable, __file__, "--ours", url, "--rollouts", str(count), "--folder", folder]
    peer: list[str | Path] = [python, HERE / "peers" / "verifiers_rollouts.py", url, str(count), str(IN_FLIGHT), str(WARM_UP), folder]
    seen = told(ours if name == OURS else peer, core)
    if seen["right"] != count:
        raise SystemExit(f"{name}: {seen['right']} of {count} rollouts made {CALLS} calls and gave the right answer")
    return {"a_second": count / seen["wall"], "cpu_ms": seen["cpu"] / count * 1e3}


def compare(given: argparse.Namespace) -> dict[str, Any]:
    python, port = install_peer(), free_port()
    first, last = min(cores := os.sched_getaffinity(0)), max(cores)
    endpoint = subprocess.Popen(
        [sys.executable, __file__, "--endpoint", str(port)],
        preexec_fn=lambda: os.sched_setaffinity(0, {last}),  # noqa: PLW1509
    )
    cells: dict[tuple[str, bool], list[dict[str, float]]] = {}
    try:
        _await_port(port)
        limit = told([sys.executable, __file__, "--limit", str(port)], first)["a_second"]
        best = IN_FLIGHT / LATENCY_SECONDS
        print(f"the endpoint gives {limit:.0f} completions a second to {IN_FLIGHT} bare connections; its latency allows {best:.0f}")
        for _ in range(given.rounds):
            for keeping in (False, True):
                for name, count in ((OURS, given.rollouts), (PEER, given.peer_rollouts)):
                    with tempfile.TemporaryDirectory() as folder:
                        seen = measured(name, python, port, count, folder if keeping else "", first)
                    cells.setdefault((name, keeping), []).append(seen)
                    _print_cell(name, keeping, seen)
    finally:
        endpoint.kill()
        endpoint.wait()
    return _result(cells, limit, given)


def _await_port(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("the endpoint does not come up")


def _print_cell(name: str, keeping: bool, seen: dict[str, float]) -> None:
    how = "kept on disk" if keeping else "in memory"
    print(f"  {name:18}{how:14}{seen['a_second']:9.1f} rollouts a second{seen['cpu_ms']:9.2f} ms CPU a rollout", flush=True)


def _result(cells: dict[tuple[str, bool], list[dict[str, float]]], limit: float, given: argparse.Namespace) -> dict[str, Any]:
    def median(name: str, keeping: bool, figure: str) -> float:
        return statistics.median(one[figure] for one in cells[name, keeping])

    conditions: dict[str, Any] = {
        "in_flight": IN_FLIGHT,
        "turns": CALLS + 1,
        "latency_ms": LATENCY_SECONDS * 1e3,
        "rollouts": {OURS: given.rollouts, PEER: given.peer_rollouts},
        "rounds": given.rounds,
        "endpoint_completions_a_second": round(limit),
        "peer": PEER_PACKAGE,
    }
    for keeping in (False, True):
        conditions["kept on disk" if keeping else "in memory"] = {
            name: {figure: round(median(name, keeping, figure), 2) for figure in ("a_second", "cpu_ms")} for name in (OURS, PEER)
        }
    speed = median(OURS, False, "a_second") / median(PEER, False, "a_second")
    conditions["ratio_of_cpu"] = round(median(PEER, False, "cpu_ms") / median(OURS, False, "cpu_ms"), 1)
    unit = "rollouts a second, ours over verifiers', both in memory"
    return {"bench": "rollouts", "peer": PEER, "ratio": round(speed, 1), "unit": unit, "conditions": conditions}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rollouts", type=int, default=3 * IN_FLIGHT)
    options.add_argument("--peer-rollouts", type=int, default=IN_FLIGHT, help="of verifiers, which takes its time")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--endpoint", type=int, help=argparse.SUPPRESS)
    options.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    options.add_argument("--ours", help=argparse.SUPPRESS)
    options.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given, _ = options.parse_known_args()
    if given.endpoint:
        uvloop.run(serve_endpoint(given.endpoint))
    elif given.limit:
        uvloop.run(ask_bare(given.limit))
    elif given.ours:
        asyncio.run(run_ours(given.ours, given.rollouts, given.folder))
    else:
        print(json.dumps(compare(given)))


if __name__ == "__main__":
    main()
