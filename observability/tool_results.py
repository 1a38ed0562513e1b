"""What became of tool calls that change something, so that one that is sent again changes nothing again.

A call is on disk as begun before its tool runs, and as done with its answer afterwards. One that is found begun when nobody runs it any
more may have changed something or not, and nothing here can tell: it is never run again, and a person has to look. A call that needs an
approval uses it in the transaction in which it begins: both or neither.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import sqlalchemy as sa

from observability import approvals
from observability.approvals import Approval, Call
from observability.book import Book
from observability.release_tables import tool_results
from observability.store import Store, take_turns


class Go(msgspec.Struct, frozen=True):
    """It is on disk as begun: run it, now and never again."""


class Done(msgspec.Struct, frozen=True):
    """It ran before, and this is what it answered."""

    output: str | None
    """None once it was erased."""
    error: str | None


class Begun(msgspec.Struct, frozen=True):
    """It ran before, or does so now elsewhere; what came of it is not known."""

    at: dt.datetime


class Other(msgspec.Struct, frozen=True):
    """The same ids with another tool or other arguments."""

    what: str


class Waits(msgspec.Struct, frozen=True):
    approval: Approval


class Denied(msgspec.Struct, frozen=True):
    why: str


Verdict = Go | Done | Begun | Other | Waits | Denied


def begin(store: Store, call: Call, by: str, now: dt.datetime, waits_for: dt.timedelta | None = None) -> Verdict:
    """Whether this call may run. With `waits_for` only if a person allowed it, who is asked, and has so long to decide."""
    with store.of(call.tenant).writing() as connection:
        take_turns(connection, f"call {call.tenant} {call.rollout_id} {call.call_id}")
        if found := _found(connection, call):
            return found
        if waits_for is not None and (verdict := _allowed(connection, call, by, now, waits_for)) != Go():
            return verdict
        row: dict[str, Any] = {**_place(call), "tool": call.tool, "body_hash": call.hash, "state": "begun", "at": now}
        connection.execute(sa.insert(tool_results), row)
    return Go()


def finish(store: Store, call: Call, output: str, error: str | None) -> None:
    with store.of(call.tenant).writing() as connection:
        connection.execute(sa.update(tool_results).where(*_is(call)).values(state="done", output=output, error=error))


def forget(store: Store, before: dt.datetime) -> int:
    """Answers that nobody will ask for again. A call of which nobody knows what came stays. Answers how many."""
    with store.writing() as connection:
        over = (tool_results.c.state == "done", tool_results.c.at < before)
        return connection.execute(sa.delete(tool_results).where(*over)).rowcount


def _found(connection: sa.Connection, call: Call) -> Verdict | None:
    row = connection.execute(sa.select(tool_results).where(*_is(call))).mappings().first()
    if row is None:
        return None
    if row["body_hash"] != call.hash:
        return Other(f"call {call.call_id} of this rollout was made before, with another tool or other arguments")
    return Done(row["output"], row["error"]) if row["state"] == "done" else Begun(row["at"])


def _allowed(connection: sa.Connection, call: Call, by: str, now: dt.datetime, waits_for: dt.timedelta) -> Verdict:
    book = Book(connection, [call.tenant])
    asked = approvals.of_call(connection, call.tenant, call.rollout_id, call.call_id)
    verdict: Verdict = Go()
    if asked is None:
        verdict = Waits(approvals.ask(connection, book, call, by, now + waits_for, now))
    elif asked.arguments_hash != call.hash:
        verdict = Other(f"approval {asked.id} is of this call with another tool or other arguments, and allows nothing else")
    elif why := approvals.told(asked, now):
        verdict = Denied(why)
    elif asked.decision is None:
        verdict = Waits(asked)
    else:
        approvals.use(connection, book, call.tenant, asked, by, now)
    book.close()
    return verdict


def _place(call: Call) -> dict[str, str]:
    return {"tenant": call.tenant, "rollout_id": call.rollout_id, "call_id": call.call_id}


def _is(call: Call) -> list[sa.ColumnElement[bool]]:
    return [tool_results.c[name] == value for name, value in _place(call).items()]
