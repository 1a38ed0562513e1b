"""A store of the schema that stands before the ledger, revision 0003, brought up to this code's and back, on both databases.

Nothing may be lost: all rows are digested before and after, in the columns that both have, and on the way back in all that 0003
has; a sample of cards is read back, and each tenant's ledger, which the upgrade writes, is verified whole. There is no peer: what
counts is that it comes over, and how long it takes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa
from _many import fill
from alembic import command
from store import a_postgres

from agent_rft.contracts.grades import Grade, GraderRef
from observability import ledger
from observability.cards import cards_by_id
from observability.graders import add_label, append_grades
from observability.records import StoredCard
from observability.store import Store, alembic_config, migrate, open_store

OLD = "0003"
TABLES = {"job_cards": "rollout_id", "card_steps": "rollout_id, position", "grades": "id", "human_labels": "id"}
SAMPLE, LABELLED = 1000, 100


def digests(store: Store, columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Of every row of these columns, in the order of its key."""
    found: dict[str, str] = {}
    with store.reading() as connection:
        for table, names in columns.items():
            hashed, count = hashlib.sha256(), 0
            listed = ", ".join(f'"{name}"' for name in names)
            select = sa.text(f"SELECT {listed} FROM {table} ORDER BY {TABLES[table]}")
            for row in connection.execution_options(yield_per=5000).execute(select):
                hashed.update(repr(tuple(row)).encode())
                count += 1
            found[table] = f"{count} rows, {hashed.hexdigest()[:16]}"
    return found


def columns_of(store: Store) -> dict[str, list[str]]:
    with store.reading() as connection:
        inspector = sa.inspect(connection)
        return {table: [column["name"] for column in inspector.get_columns(table)] for table in TABLES}


def sample_of(store: Store) -> list[StoredCard]:
    with store.reading() as connection:
        ids = list(connection.scalars(sa.text("SELECT rollout_id FROM job_cards ORDER BY rollout_id")))
    return list(cards_by_id(store, random.Random(7).sample(ids, min(SAMPLE, len(ids)))))


def downgrade(store: Store) -> None:
    with store.writing() as connection:
        command.downgrade(alembic_config(connection), OLD)


def timed(what: str, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    print(f"  {what:34}{time.perf_counter() - began:8.1f} s", flush=True)
    return round(time.perf_counter() - began, 1)


def must(same: bool, what: str) -> None:
    if not same:
        raise SystemExit(f"LOST: {what}")


def over_and_back(url: str, cards: int) -> dict[str, float]:
    migrate(url)
    store = open_store(url)
    fill(store, cards, dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC))
    for stored in sample_of(store)[:LABELLED]:
        rollout_id = stored.card.rollout_id
        append_grades(store, [(rollout_id, Grade(GraderRef("numeric", "2", "beef"), 0.5, False, {"found": "x"}))])
        add_label(store, "ann", rollout_id=rollout_id, score=0.5, note="half right")
    sample, of_new = sample_of(store), columns_of(store)
    downgrade(store)
    of_old = columns_of(store)
    in_both = {table: [name for name in of_old[table] if name in of_new[table]] for table in TABLES}
    shared, whole = digests(store, in_both), digests(store, of_old)
    seconds = {"upgrade": timed(f"from {OLD} to the newest", lambda: migrate(url))}
    must(digests(store, in_both) == shared, f"{shared} became {digests(store, in_both)}")
    must(sample_of(store) == sample, "cards of the sample read back otherwise")
    entries = {tenant: ledger.size(store, tenant) for tenant in ledger.tenants(store)}
    seconds["verify"] = timed(f"the ledger's {sum(entries.values()):,} entries", lambda: [_verified(store, tenant) for tenant in entries])
    seconds["downgrade"] = timed(f"back to {OLD}", lambda: downgrade(store))
    must(digests(store, of_old) == whole, "on the way back")
    store.close()
    print(f"  {whole}")
    return seconds


def _verified(store: Store, tenant: str) -> None:
    wrong = list(ledger.verify(store, tenant))
    must(not wrong, f"the ledger of {tenant}: {wrong[:3]}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cards", type=int, default=100_000)
    given = options.parse_args()
    seconds: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-migration-") as folder, a_postgres() as postgres:
        for name, url in (("SQLite", f"sqlite:///{Path(folder)}/cards.db"), ("PostgreSQL", postgres)):
            print(f"{given.cards:,} cards on {name}")
            seconds[name] = over_and_back(url, given.cards)
    line = {
        "bench": "migration",
        "peer": "none: nothing lost, the ledger verifies",
        "ratio": None,
        "unit": "cards migrated per second",
        "conditions": {
            "cards": given.cards,
            "cards_per_second": {name: round(given.cards / one["upgrade"]) for name, one in seconds.items()},
            "seconds": seconds,
            "cpus": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        },
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
