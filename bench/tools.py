"""512 concurrent rollouts calling the tool server, beside the tutorial's FastAPI skeleton on the same machine.

Both serve the same corpus by the same functions; both run in turn, several times, in one run of this bench. What counts is
requests per CPU-second of the server's process, which other work on the machine disturbs little, and the calls' latency.
The skeleton runs as its prerequisites say (`pip install fastapi uvicorn`), and once more as an expert would run it
(uvloop, httptools, no access log), so that one sees how much of the distance is configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import msgspec
import uvloop

from agent_rft.datasets.filings import TOOLS, company_names, make_filings
from serving.server import free_port

HERE = Path(__file__).resolve().parent
PEER_PYTHON = HERE / ".venvs" / "tools" / "bin" / "python"
PEER_PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "numpy", "msgspec")
BEARER = "bench"
OURS, SEED, TUNED = "agent-rft", "seed skeleton", "seed skeleton, tuned"


# --- the load: one bare connection a rollout, so that the client costs little and its own queue does not show ---------


class Rollout(asyncio.Protocol):
    """Sends its calls one after another, each when the one before has been answered."""

    def __init__(
        self, calls: Sequence[tuple[bytes, bytes]], done: asyncio.Future[None], seconds: list[float], failures: list[bytes]
    ) -> None:
        self._calls, self._done, self._seconds, self._failures = list(reversed(calls)), done, seconds, failures
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if not self._calls:
            self._done.set_result(None)
            self._transport.close()
            return
        request, self._expected = self._calls.pop()
        self._sent = time.perf_counter()
        self._transport.write(request)  # pyright: ignore[reportAttributeAccessIssue]

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, body = self._heard.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        self._seconds.append(time.perf_counter() - self._sent)
        if not head.startswith(b"HTTP/1.1 200") or self._expected not in body:
            self._failures.append(self._heard[:300])
        self._heard = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._failures.append(b"connection lost: %s" % repr(exc).encode())
            self._done.set_result(None)


async def load(port: int, rollouts: int, calls: int, paths: Sequence[str]) -> None:
    seconds, failures = list[float](), list[bytes]()
    scripts = [calls_of(number, calls, paths) for number in range(rollouts)]
    loop, began, cpu_before = asyncio.get_running_loop(), time.perf_counter(), time.process_time()
    waiting = list[asyncio.Future[None]]()
    for script in scripts:
        done: asyncio.Future[None] = loop.create_future()
        waiting.append(done)
        await loop.create_connection(lambda script=script, done=done: Rollout(script, done, seconds, failures), "127.0.0.1", port)
    await asyncio.gather(*waiting)
    cuts = statistics.quantiles(seconds, n=100)
    print(
        json.dumps(
            {
                "answered": len(seconds),
                "failed": len(failures) + rollouts * calls - len(seconds),
                "first_failure": failures[0].decode(errors="replace") if failures else "",
                "wall": time.perf_counter() - began,
                "client_cpu_share": (time.process_time() - cpu_before) / (time.perf_counter() - began),
                "p50_ms": cuts[49] * 1e3,
                "p99_ms": cuts[98] * 1e3,
            }
        )
    )


def calls_of(rollout: int, count: int, paths: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """What a research rollout asks: it searches, reads, and lists now and then. With each request, the call id to hear back."""
    rng = random.Random(rollout)
    requests = list[tuple[bytes, bytes]]()
    for number in range(count):
        path = rng.choice(paths)
        company = path.split("/")[1].split("-10")[0]
        tool, arguments = rng.choice(
            (
                ("search", {"query": f"{company.replace('-', ' ')} Q3 2025 operating margin"}),
                ("search", {"query": f"{company.replace('-', ' ')} revenue"}),
                ("read", {"path": path}),
                ("list", {"prefix": f"filings/{company}"}),
            )
        )
        call_id = f"call-{rollout}-{number}"
        body = msgspec.json.encode({"arguments": arguments, "call_id": call_id, "rollout_id": f"rollout-{rollout}"})
        head = f"POST /{tool} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {BEARER}\r\nContent-Type: application/json\r\n"
        requests.append((f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, f'"call_id":"{call_id}"'.encode()))
    return requests


# --- the servers ------------------------------------------------------------------------------------------------------


def serve_ours(port: int) -> None:
    from serving.app import create_app
    from serving.server import serve
    from serving.tools.corpus import CorpusTools

    serve(create_app(CorpusTools.from_folder(Path(os.environ["CORPUS"]), TOOLS), {}, os.environ["TOOL_BEARER"]), "127.0.0.1", port)


def command_of(stack: str, port: int) -> list[str]:
    if stack == OURS:
        return [sys.executable, __file__, "--serve", str(port)]
    # h11 and asyncio are what uvicorn takes where uvloop and httptools are not installed: the prerequisites name neither.
    how = ["--loop", "asyncio", "--http", "h11"] if stack == SEED else ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    return [str(PEER_PYTHON), "-m", "uvicorn", "seed_tool_server:app", "--app-dir", str(HERE / "peers"), "--port", str(port), *how]


@contextlib.contextmanager
def running(stack: str, corpus: Path, cpus: Sequence[int]) -> Generator[tuple[int, int]]:
    """Process id and port."""
    port = free_port()
    environment = {**os.environ, "TOOL_BEARER": BEARER, "CORPUS": str(corpus), "PYTHONPATH": str(HERE.parent)}
    server = subprocess.Popen(command_of(stack, port), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.sched_setaffinity(server.pid, {cpus[0]})
        wait_for(server, port)
        yield server.pid, port
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"the server ended at once: {server.args}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server does not answer: {server.args}")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def install_peer() -> str:
    if not PEER_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER_PYTHON.parents[1])], check=True)
        subprocess.run([str(PEER_PYTHON), "-m", "pip", "install", "-q", *PEER_PACKAGES], check=True)
    told = "import fastapi, uvicorn; print('fastapi', fastapi.__version__, 'uvicorn', uvicorn.__version__)"
    return subprocess.run([str(PEER_PYTHON), "-c", told], check=True, capture_output=True, text=True).stdout.strip()


# --- the comparison ---------------------------------------------------------------------------------------------------


def measure(pid: int, port: int, rollouts: int, calls: int, corpus: Path, cpus: Sequence[int]) -> dict[str, float]:
    before = cpu_seconds(pid)
    command = [sys.executable, __file__, "--load", str(port), "--rollouts", str(rollouts), "--calls", str(calls), "--corpus", str(corpus)]
    loader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(loader.pid, {cpus[-1]})
    seen = json.loads(loader.communicate()[0])
    if seen["first_failure"]:
        print(f"  a failed call: {seen['first_failure']!r}")
    spent = cpu_seconds(pid) - before
    return {**{k: v for k, v in seen.items() if k != "first_failure"}, "per_cpu_second": seen["answered"] / spent}


def compare(rollouts: int, calls: int, repeats: int, corpus: Path, cpus: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {OURS: [], SEED: [], TUNED: []}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(running(name, corpus, cpus)) for name in results}
        for repeat in range(repeats + 1):  # the first round warms up and is not counted
            for name, (pid, port) in servers.items():
                seen = measure(pid, port, rollouts, calls if repeat else 4, corpus, cpus)
                if repeat:
                    results[name].append(seen)
    return results


def make_corpus(folder: Path) -> Path:
    rng = random.Random(0)
    for filing in make_filings(company_names(120, rng), rng):
        file = folder / filing.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(filing.html(), encoding="utf-8")
    return folder / "filings"


def report(results: dict[str, list[dict[str, float]]], conditions: Mapping[str, object]) -> None:
    middle = {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()}
    print(f"{'server':24}{'requests per CPU-second':>34}{'p50 ms':>10}{'p99 ms':>10}{'requests/s':>12}{'client busy':>13}{'failed':>8}")
    for name, runs in results.items():
        rates, middling = [run["per_cpu_second"] for run in runs], middle[name]
        spread = f"{middling['per_cpu_second']:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        through = middling["answered"] / middling["wall"]
        failed = sum(run["failed"] for run in runs)
        print(
            f"{name:24}{spread:>34}{middling['p50_ms']:>10.1f}{middling['p99_ms']:>10.1f}{through:>12,.0f}{middling['client_cpu_share']:>13.0%}{failed:>8.0f}"
        )
    against = {
        peer: {
            "requests_per_cpu_second": round(middle[OURS]["per_cpu_second"] / middle[peer]["per_cpu_second"], 2),
            "p99": round(middle[peer]["p99_ms"] / middle[OURS]["p99_ms"], 2),
        }
        for peer in (SEED, TUNED)
    }
    failed = {name: int(sum(run["failed"] for run in runs)) for name, runs in results.items()}
    line = {
        "bench": "tools",
        "peer": "seed FastAPI skeleton",
        "ratio": against[SEED]["requests_per_cpu_second"],
        "unit": "requests per CPU-second",
        "conditions": {**conditions, "ratios": against, "failed_calls": failed},
    }
    print(json.dumps(line))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rollouts", type=int, default=512)
    options.add_argument("--calls", type=int, default=24, help="of each rollout, one after another")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options.add_argument("--load", type=int, help=argparse.SUPPRESS)
    given, _ = options.parse_known_args()
    if given.serve:
        serve_ours(given.serve)
    elif given.load:
        paths = sorted(file.relative_to(given.corpus.parent).as_posix() for file in given.corpus.rglob("*.html"))
        uvloop.run(load(given.load, given.rollouts, given.calls, paths))
    else:
        versions, cpus = install_peer(), sorted(os.sched_getaffinity(0))
        with tempfile.TemporaryDirectory() as folder:
            results = compare(given.rollouts, given.calls, given.repeats, make_corpus(Path(folder)), cpus)
        conditions = {
            "rollouts": given.rollouts,
            "calls_each": given.calls,
            "repeats": given.repeats,
            "cpus": len(cpus),
            "peer_versions": versions,
        }
        report(results, conditions)


if __name__ == "__main__":
    main()
