"""Takes the words of cards out of the store, for good, and leaves the facts and every proof as they were.

What goes are the payload halves of a card and of all that was said of it, their salts, its words in the index, and texts that no
other card of the tenant names. Rows stay, or the facts would no longer add up. A card that is held stays whole. What was recorded
before an erasure is excused by it; what is said of the card afterwards is a record like any other, and may be erased again. Spans go
with the card of their trace, whatever they were called when they came, and those of a trace that is no card by the trace's own id.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from observability.book import Book
from observability.cardless import known_among, other_names
from observability.halves import ERASED, erasure_halves
from observability.holds import Held, faults_of_reason, held_among
from observability.records import Values
from observability.release_tables import agent_runs, approval_decisions, approvals, tool_results
from observability.search import forget, scrub
from observability.store import Store
from observability.tables import (
    blobs,
    card_states,
    card_steps,
    change_outcomes,
    change_requests,
    erasures,
    grades,
    human_labels,
    job_cards,
    review_queue,
    reviews,
    trace_parts,
    traces,
)

BATCH = 100  # cards a transaction: other writers of the tenant wait so long
SHOWN = 20
"""Cards that are named in an error."""
PATIENCE = 30.0
"""Seconds to wait for those who read SQLite's file as it was before."""
SALTED = {
    "card": job_cards, "grade": grades, "label": human_labels, "review": reviews, "change": change_requests,
    "outcome": change_outcomes, "state": card_states, "spans": trace_parts, "approval": approvals, "approval decision": approval_decisions,
}  # fmt: skip
TABLES = SALTED | {"step": card_steps}


class Outcome(msgspec.Struct, frozen=True):
    """What became of the cards that were to be erased."""

    erased: tuple[str, ...] = ()
    held: Held = msgspec.field(default_factory=dict[str, tuple[str, ...]])
    """Those that a hold kept whole, and its name."""
    already: tuple[str, ...] = ()
    """Those of which nothing but facts was left."""
    lingering: str = ""
    """Where copies of the words may be that are not the store's tables; empty where there are none."""

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.erased + other.erased, self.held | other.held, self.already + other.already, self.lingering or other.lingering)


def erase(
    store: Store, tenant: str, rollout_ids: Sequence[str], by: str, why: str, step: Callable[[int], None] = lambda _: None
) -> Outcome:  # fmt: skip
    """All of these cards but the held ones, some at a time: one that is stopped has erased a part, and goes on where it is called again.
    The store is not one that is confined to a tenant, who cannot write the index."""
    check_reason(by, why)
    wanted, done = list(dict.fromkeys(rollout_ids)), Outcome()
    _all_known(store, tenant, wanted)
    for first in range(0, len(wanted), BATCH):
        batch = wanted[first : first + BATCH]
        done += erase_some(store, tenant, batch, by, why)
        step(len(batch))
    return msgspec.structs.replace(done, lingering=wipe(store))


def check_reason(by: str, why: str) -> None:
    """Before anything is shown or entered: both stay in the ledger for ever."""
    if faults := [*faults_of_reason("why", why), *faults_of_reason("by", by)]:
        raise FaultsFound("nothing was erased", faults, exit_code=2)


def erase_some(store: Store, tenant: str, rollout_ids: Sequence[str], by: str, why: str) -> Outcome:
    """One transaction. Its words are gone from the files only after `wipe`."""
    with store.writing() as connection:
        book = Book(connection, [tenant])  # from here on nobody records, holds or erases beside us
        held = held_among(connection, tenant, rollout_ids)
        free = [one for one in rollout_ids if one not in held]
        called = {one: one for one in free} | other_names(connection, tenant, free)
        names = _with_words(connection, tenant, list(called))
        if names:
            _take_words(connection, tenant, names)
            _write(connection, book, tenant, names, by, why)
        book.close()
    going = list(dict.fromkeys(called[name] for name in names))
    return Outcome(tuple(going), held, tuple(one for one in free if one not in set(going)))


def wipe(store: Store) -> str:
    """Takes out of SQLite's files what is in its tables no more. Says where the words may still be, empty if nowhere."""
    scrub(store)
    if store.engine.dialect.name == "postgresql":
        return "PostgreSQL's files until VACUUM FULL, in its write-ahead log and in backups"
    return "" if _log_is_emptied(store) else "SQLite's write-ahead log, until those who read the store now have ended"


def _log_is_emptied(store: Store) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        with closing(store.engine.raw_connection()) as connection:
            busy: int = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if not busy or time.monotonic() > deadline:
            return not busy
        time.sleep(0.1)


def _all_known(store: Store, tenant: str, rollout_ids: Sequence[str]) -> None:
    missing: list[str] = []
    with store.reading() as connection:
        for first in range(0, len(rollout_ids), BATCH):
            some = rollout_ids[first : first + BATCH]
            there = set(connection.scalars(sa.select(job_cards.c.rollout_id).where(*_mine(job_cards, tenant, some))))
            there |= known_among(connection, tenant, some)
            missing += [one for one in some if one not in there]
    if missing:
        more = [Fault("cards", f"{len(missing) - SHOWN} more")] if len(missing) > SHOWN else []
        faults = [Fault(one[:100], f"tenant {tenant} has no such card") for one in missing[:SHOWN]]
        raise FaultsFound("nothing was erased", faults + more, "give whole ids, as `rft card list` shows them", exit_code=2)


def _with_words(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> list[str]:
    """Those of which any words are there, their own or somebody's about them, in the order of the ids."""
    found = set[str]()
    for table in SALTED.values():
        select = sa.select(_card_of(table)).where(*_mine(table, tenant, rollout_ids), table.c.salt.is_not(None))
        found.update(connection.scalars(select))
    return [one for one in rollout_ids if one in found]


def _take_words(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> None:
    _forget(connection, tenant, rollout_ids)
    named = _texts_named(connection, tenant, rollout_ids)
    for kind, table in TABLES.items():
        connection.execute(sa.update(table).where(*_mine(table, tenant, rollout_ids)).values(ERASED[kind]))
    answers = sa.update(tool_results).where(*_mine(tool_results, tenant, rollout_ids))
    connection.execute(answers.values(output=None))  # the row stays: it keeps its call from being run again
    connection.execute(sa.delete(review_queue).where(*_mine(review_queue, tenant, rollout_ids)))
    over = agent_runs.c.state == "done"  # which keeps its words for a while, for a caller who asks again
    connection.execute(sa.delete(agent_runs).where(over, *_mine(agent_runs, tenant, rollout_ids)))
    if named:
        still_named = [sa.exists().where(column == blobs.c.hash, column.table.c.tenant == tenant) for column in _naming()]
        connection.execute(sa.delete(blobs).where(blobs.c.tenant == tenant, blobs.c.hash.in_(named), ~sa.or_(*still_named)))


def has_any_words() -> sa.ColumnElement[bool]:
    """True of the cards that `erase_some` would take anything of."""
    card, of_trace = job_cards.c, sa.and_(trace_parts.c.tenant == traces.c.tenant, trace_parts.c.trace_id == traces.c.trace_id)
    about = [
        sa.exists().where(table.c.tenant == card.tenant, _card_of(table) == card.rollout_id, table.c.salt.is_not(None))
        for kind, table in SALTED.items()
        if kind != "card"
    ]
    of_its_trace = (traces.c.tenant == card.tenant, traces.c.rollout_id == card.rollout_id, of_trace, trace_parts.c.salt.is_not(None))
    return sa.or_(card.salt.is_not(None), *about, sa.exists().where(*of_its_trace))


def _forget(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> None:
    """Of those that were erased before, the index has no words any more."""
    erased = sa.exists().where(erasures.c.tenant == job_cards.c.tenant, erasures.c.rollout_id == job_cards.c.rollout_id)
    whole = sa.select(job_cards.c.rollout_id).where(*_mine(job_cards, tenant, rollout_ids), ~sa.and_(job_cards.c.salt.is_(None), erased))
    try:
        forget(connection, tenant, connection.scalars(whole).all())
    except exc.DBAPIError:
        raise
    except Exception as error:  # whatever a made-up value can bring zlib, json or msgspec to
        what = f"a card among {', '.join(rollout_ids[:3])}, ... cannot be read ({type(error).__name__})"
        raise UserError(what, "`rft ledger verify` names what was changed; erase the others by their ids") from None


def _naming() -> tuple[sa.Column[Any], ...]:
    return job_cards.c.opening, job_cards.c.tools, card_steps.c.output_blob


def _texts_named(connection: sa.Connection, tenant: str, rollout_ids: Sequence[str]) -> list[str]:
    each = [sa.select(column).where(*_mine(column.table, tenant, rollout_ids), column.is_not(None)) for column in _naming()]
    return list(connection.scalars(sa.union(*each)))


def _write(connection: sa.Connection, book: Book, tenant: str, rollout_ids: Sequence[str], by: str, why: str) -> None:
    at = dt.datetime.now(dt.UTC)
    rows: list[Values] = [{"tenant": tenant, "rollout_id": one, "by": by, "why": why, "at": at} for one in rollout_ids]
    for row in rows:
        book.enter("erasure", row["rollout_id"], row, erasure_halves(row))
    connection.execute(sa.insert(erasures), rows)


def _mine(table: Any, tenant: str, rollout_ids: Sequence[str]) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.tenant == tenant, _card_of(table).in_(rollout_ids)


def _card_of(table: Any) -> sa.ColumnElement[Any]:
    """Of a row, the card that it says something of: a decision's is that of what was asked for."""
    if table is approval_decisions:
        same = (approvals.c.id == approval_decisions.c.approval, approvals.c.tenant == approval_decisions.c.tenant)
        return sa.select(approvals.c.rollout_id).where(*same).correlate(approval_decisions).scalar_subquery()
    return table.c.rollout_id
