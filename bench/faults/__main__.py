"""`make faults`: kill -9 of the server, of the database and of clients, full disks, a database that is away, a clock that steps back,
each during ingest. After each fault: what was acknowledged is there, once, and the ledger holds."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parent))

from world import CardServer, Checker, Clients, Postgres, wait_for

A_TENANT = 20
"""Faults that a tenant sees before the next one's clients begin: its whole ledger is verified after each."""
SENDERS = ("cards", "cards", "traces")
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


class World:
    """A store of its own kind, a server over it, and its checker."""

    def __init__(self, folder: Path, url: str, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = self.spools = folder
        self.checker = Checker(url, folder / "ledger")
        self.server = CardServer(url, environment)

    @contextmanager
    def clients(self, tenant: str, senders: tuple[str, ...] = SENDERS) -> Iterator[Clients]:
        clients = Clients(self.checker.store, self.server, self.folder, self.spools, tenant, senders)
        try:
            wait_for("the first cards", clients.under_way)
            yield clients
        finally:
            clients.kill()

    def close(self) -> None:
        self.server.close()
        self.checker.store.close()


class Row:
    """What a kind of fault came to."""

    def __init__(self, fault: str, store: str) -> None:
        self.fault, self.store = fault, store
        self.times = self.cards = self.traces = 0
        self.wrong: list[str] = []
        self.seconds = 0.0
        self._began = time.monotonic()

    def note(self, wrong: list[str]) -> None:
        self.wrong += wrong
        self.seconds = time.monotonic() - self._began
        for one in wrong[:5]:
            print(f"  WRONG {one}", flush=True)

    def __str__(self) -> str:
        counts = f"{self.times:>5} {self.cards:>8} {self.traces:>8} {len(self.wrong):>6}"
        return f"{self.fault:<34} {self.store:<11} {counts} {self.seconds:>6.0f} s"


def repeated(world: World, row: Row, fault: Callable[[Clients], None], times: int, killed: bool = False) -> Row:
    """The fault at random moments of ingest, and a look at everything after each."""
    for first in range(0, times, A_TENANT):
        with world.clients(f"{row.fault.replace(' ', '-')}-{first}") as clients:
            for _ in range(min(A_TENANT, times - first)):
                time.sleep(random.uniform(0.05, 0.6))
                fault(clients)
                row.times += 1
                row.note(world.checker.wrong(clients))
            clients.end()
            row.note(world.checker.wrong(clients) + world.checker.sources(clients, killed))
            row.cards += len(clients.acknowledged("cards"))
            row.traces += len(clients.acknowledged("traces"))
        print(row, flush=True)
    return row


def once(world: World, row: Row, fault: Callable[[Clients], object], clock: dt.timedelta = dt.timedelta()) -> Row:
    with world.clients(row.fault.replace(" ", "-").replace(",", "")) as clients:
        fault(clients)
        row.times += 1
        before = len(clients.acknowledged("cards"))
        wait_for("cards go on", lambda: len(clients.acknowledged("cards")) > before)
        row.note(world.checker.wrong(clients, clock))
        clients.end()
        row.note(world.checker.wrong(clients, clock) + world.checker.sources(clients, False))
        row.cards, row.traces = len(clients.acknowledged("cards")), len(clients.acknowledged("traces"))
    print(row, flush=True)
    return row


# --- faults that need a place of their own ----------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, seconds: float, once_full: Callable[[], object] = lambda: None) -> None:
    """Nothing fits any more, for so long."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
        once_full()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:  # whatever is let go meanwhile is taken at once
            try:
                file.write(bytes(512))
            except OSError:
                time.sleep(0.02)
    ballast.unlink()


def full_disk(folder: Path) -> Row:
    """Of the store and of the spools, one after the other; both on a disk of 24 MB."""
    row = Row("full disk of the store", "SQLite")
    with small_disk(folder / "disk", 24) as disk:
        world = World(folder / "world", f"sqlite:///{disk}/cards.db")
        once(world, row, lambda _: fill(disk, 15))
        world.close()
    return row


def full_spool(folder: Path) -> Row:
    row = Row("full disk of the spool", "SQLite")
    with small_disk(folder / "disk", 24) as disk:
        world = World(folder / "world", f"sqlite:///{folder}/cards.db")
        world.spools = disk
        once(world, row, lambda _: fill(disk, 15))
        world.close()
    return row


def full_database(folder: Path, fault: str, log_too: bool) -> Row:
    """A disk of 192 MB with PostgreSQL's tables and its log on it. A PostgreSQL that cannot write its log stops, and its
    recovery finds no room either: once there is some it is started afresh, as whoever looks after it would."""
    row = Row(fault, "PostgreSQL")
    with small_disk(folder / "disk", 192) as disk, ExitStack() as stack:
        database = Postgres(disk / "postgres", folder / "postgres.log")
        stack.callback(database.stop)
        world = World(folder / "world", database.url)
        stack.callback(world.close)

        def full(clients: Clients) -> None:
            before = clients.answered()
            fill(disk, 15, database.use_up_the_log if log_too else lambda: None)
            meanwhile = clients.answered() - before
            if log_too:
                database.stop()
            database.start()
            said = Counter(re.findall("PANIC|No space left on device", database.log.read_text()))
            print(f"  answers meanwhile: {dict(meanwhile)}; PostgreSQL said {dict(said)}", flush=True)
            if not said["No space left on device"] or bool(said["PANIC"]) != log_too:
                row.note([f"PostgreSQL said {dict(said)}: not the fault that was meant"])
            if not meanwhile["503"] or set(meanwhile) - {"200", "429", "503"}:
                row.note([f"the server answered {dict(meanwhile)}; 503 is what is asked of it"])

        return once(world, row, full)


def cannot_mount(folder: Path) -> str:
    try:
        with small_disk(folder, 1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)


def clock_back(folder: Path, url: str) -> Row:
    """The server's clock by libfaketime: five hours back, two on, eight back, and right again."""
    row, clock = Row("clock steps back by hours", "PostgreSQL"), folder / "clock"
    folder.mkdir()
    clock.write_text("+0\n")
    fakes = {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    world = World(folder / "world", url, {**fakes, "DONT_FAKE_MONOTONIC": "1"})
    for hours in (-5, -3, -11, 0):

        def step(_: Clients, hours: int = hours) -> None:
            clock.write_text(f"{hours:+d}h\n")
            time.sleep(3)

        one = once(world, Row(f"clock at {hours:+d} h", "PostgreSQL"), step, dt.timedelta(hours=hours))
        row.times, row.cards, row.traces, row.wrong = row.times + 1, row.cards + one.cards, row.traces + one.traces, row.wrong + one.wrong
        row.seconds += one.seconds
    stepped = went_back(world.checker)
    if not stepped:
        row.wrong.append("the clock did not step back")
    world.close()
    return row


def went_back(checker: Checker) -> int:
    with checker.store.reading() as connection:
        clocks = [row[0] for row in connection.execute(sa.text("SELECT at FROM ledger WHERE tenant LIKE 'clock%' ORDER BY tenant, seq"))]
    return sum(later < earlier for earlier, later in pairwise(clocks))


# --- all of it ----------------------------------------------------------------------------------------------------------------


def faults(folder: Path, kills: int, only: list[str]) -> Iterator[Row]:
    with ExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.stop)
        print(postgres.told(), flush=True)
        world = World(folder / "world", postgres.url)
        stack.callback(world.close)
        if "server" in only:
            yield repeated(world, Row("kill -9 of the server", "PostgreSQL"), lambda _: world.server.kill(), kills)
        if "database" in only:
            yield repeated(world, Row("kill -9 of PostgreSQL", "PostgreSQL"), lambda _: postgres.kill(), kills)
        if "client" in only:
            yield repeated(world, Row("kill -9 of a client", "PostgreSQL"), lambda clients: clients.kill_one(), kills // 4, killed=True)
        if "away" in only:
            yield once(world, Row("database stands still for 60 s", "PostgreSQL"), lambda _: postgres.pause(60))
            yield once(world, Row("database is gone for 60 s", "PostgreSQL"), lambda _: postgres.away(60))
        if "clock" in only:
            yield clock_back(folder / "clock", postgres.url)
    if "sqlite" in only:
        sqlite = World(folder / "sqlite", f"sqlite:///{folder}/cards.db")
        yield repeated(sqlite, Row("kill -9 of the server", "SQLite"), lambda _: sqlite.server.kill(), kills // 4)
        sqlite.close()
    if "disk" in only:
        if why := cannot_mount(folder / "trial"):
            print(f"LEFT OUT: full disks, for none may be mounted here (root may): {why}", flush=True)
            return
        yield full_disk(folder / "full-store")
        yield full_spool(folder / "full-spool")
        yield full_database(folder / "full-database", "full disk of the database", log_too=False)
        yield full_database(folder / "full-log", "full disk, and its log used up", log_too=True)


def main() -> None:
    every = ["server", "database", "client", "away", "clock", "sqlite", "disk"]
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=every, default=every)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    rows = []
    for row in faults(folder, asked.kills, asked.only):
        rows.append(row)
    print(f"\n{'fault':<34} {'store':<11} {'times':>5} {'cards':>8} {'traces':>8} {'wrong':>6}   took")
    print(*rows, sep="\n")
    wrong = [one for row in rows for one in row.wrong]
    told = [{"fault": row.fault, "store": row.store, "times": row.times, "cards": row.cards, "traces": row.traces} for row in rows]
    print(json.dumps({"bench": "faults", "wrong": len(wrong), "conditions": told, "cores": os.cpu_count()}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
