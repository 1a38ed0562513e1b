"""Tool calls that wait for a person: what is asked, what was decided and by whom, and that it was used once. Rows are only added.

An approval is of one call to the letter: its tenant, rollout, id, tool and arguments, held together by a hash. Whoever has the agent
run does not allow what it does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.people import person
from observability import outbox
from observability.access import Caller
from observability.accesses import enter
from observability.book import Book
from observability.chain import canonical_bytes
from observability.dossier import NotThere
from observability.halves import approval_halves, decision_halves, use_halves
from observability.release_tables import approval_decisions, approval_uses, approvals
from observability.states import fault_of_choice, faults_of_words
from observability.store import Store

Decision = Literal["approve", "refuse"]
DECISIONS: tuple[Decision, ...] = ("approve", "refuse")
State = Literal["waiting", "approved", "refused", "expired", "used"]
MOST = 200
"""Listed at once."""


class Decided(UserError):
    """It was decided before, or its time is over."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool, as it came."""

    tenant: str
    rollout_id: str
    call_id: str
    tool: str
    arguments: dict[str, Any]

    @property
    def hash(self) -> str:
        """Two calls that differ in anything have two."""
        return hashlib.sha256(canonical_bytes(msgspec.structs.asdict(self))).hexdigest()


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    rollout_id: str
    call_id: str
    tool: str
    arguments: dict[str, Any] | None
    """None once they were erased."""
    arguments_hash: str
    expires_at: dt.datetime
    by: str
    """Whose agent asks."""
    at: dt.datetime
    decision: Decision | None = None
    note: str = ""
    decided_by: str = ""
    decided_at: dt.datetime | None = None
    used_at: dt.datetime | None = None

    def state(self, now: dt.datetime) -> State:
        if self.used_at is not None:
            return "used"
        if self.decision == "refuse":
            return "refused"
        if now >= self.expires_at:
            return "expired"
        return "approved" if self.decision == "approve" else "waiting"

    def is_of(self, caller: Caller) -> bool:
        """Capitals and spaces make nobody another person."""
        return person(caller.name) == person(self.by)


# --- what the tool server does, each within a transaction of its own -----------------------------------------------------------


def ask(connection: sa.Connection, book: Book, call: Call, by: str, expires_at: dt.datetime, now: dt.datetime) -> Approval:
    """Whoever has to decide is told of it, without the arguments: what a webhook carried off, no erasure reaches."""
    row: dict[str, Any] = {"tenant": call.tenant, "rollout_id": call.rollout_id, "call_id": call.call_id, "tool": call.tool}
    row |= {"arguments": call.arguments, "arguments_hash": call.hash, "expires_at": expires_at, "by": by, "at": now}
    book.enter("approval", call.rollout_id, row, approval_halves(row))
    row["id"] = connection.scalar(sa.insert(approvals).returning(approvals.c.id), row)
    known: dict[str, Any] = {"approval": row["id"], "tool": call.tool, "rollout_id": call.rollout_id, "by": by}
    outbox.put(connection, call.tenant, "approval", f"{call.tool} waits for a person", known | {"expires_at": expires_at.isoformat()})
    return Approval(**{name: row[name] for name in ASKED})


def of_call(connection: sa.Connection, tenant: str, rollout_id: str, call_id: str) -> Approval | None:
    """Whatever its arguments are."""
    found = _read(connection, tenant, approvals.c.rollout_id == rollout_id, approvals.c.call_id == call_id)
    return found[-1] if found else None


def use(connection: sa.Connection, book: Book, tenant: str, approval: Approval, by: str, now: dt.datetime) -> None:
    """From here on it is used, whatever comes of the call."""
    row: dict[str, Any] = {"tenant": tenant, "approval": approval.id, "by": by, "at": now}
    book.enter("approval use", str(approval.id), row, use_halves(row))
    connection.execute(sa.insert(approval_uses), [row])


# --- what people do --------------------------------------------------------------------------------------------------------------


def decide(store: Store, caller: Caller, approval_id: int, decision: str, note: str, now: dt.datetime) -> Approval:
    """Once and for all. It stands in the access log, too."""
    faults = [*fault_of_choice("decision", decision, DECISIONS), *faults_of_words("note", note)]
    if decision == "refuse" and not note.strip():
        faults.append(Fault("note", "a call is refused without a reason", "write why: the agent reads it"))
    if faults:
        raise FaultsFound("the decision cannot be taken:", faults, exit_code=2)
    with store.of(caller.tenant).writing() as connection:
        book = Book(connection, [caller.tenant])
        asked = _one(connection, caller.tenant, approval_id)
        _refuse_to_decide(asked, caller, now)
        row: dict[str, Any] = {"tenant": caller.tenant, "approval": asked.id, "decision": decision, "note": note, "by": caller.name}
        row["at"] = now
        book.enter("approval decision", str(asked.id), row, decision_halves(row))
        connection.execute(sa.insert(approval_decisions), [row])
        book.close()
        enter(connection, caller, f"{decision} call", f"approval {asked.id}, {asked.tool}", [asked.rollout_id])
        return _one(connection, caller.tenant, approval_id)


def _refuse_to_decide(asked: Approval, caller: Caller, now: dt.datetime) -> None:
    state = asked.state(now)
    if asked.decision is not None:
        what = f"approval {asked.id} was decided already: {asked.decided_by} said {asked.decision} at {_moment(asked.decided_at)}"
        raise Decided(what, "a decision stands; the agent can ask anew with another call")
    if state == "expired":
        cure = "the agent can ask anew with another call; approvals.minutes is how long one waits"
        raise Decided(f"approval {asked.id} expired at {_moment(asked.expires_at)}", cure)
    if asked.is_of(caller):
        raise UserError(f"approval {asked.id} was asked for by your own agent", "somebody else has to decide it")
    if asked.arguments is None:
        raise Decided(f"the arguments of approval {asked.id} were erased: nobody can know any more what it would allow", "let it expire")


# --- reading ---------------------------------------------------------------------------------------------------------------------


def state(store: Store, tenant: str, approval_id: int, now: dt.datetime | None = None) -> State:
    return one(store, tenant, approval_id).state(now or dt.datetime.now(dt.UTC))


def one(store: Store, tenant: str, approval_id: int) -> Approval:
    with store.of(tenant).reading() as connection:
        return _one(connection, tenant, approval_id)


def waiting(store: Store, tenant: str, now: dt.datetime, limit: int = MOST) -> list[Approval]:
    """Newest first."""
    undecided = approval_decisions.c.id.is_(None)
    with store.of(tenant).reading() as connection:
        return _read(connection, tenant, undecided, approvals.c.expires_at > now, newest=limit)


def listed(store: Store, tenant: str, before: int | None = None, limit: int = MOST) -> list[Approval]:
    """All of them, newest first; `before` is the id of the last one of the page before."""
    mine = [] if before is None else [approvals.c.id < (before if 0 <= before < 2**63 else 0)]
    with store.of(tenant).reading() as connection:
        return _read(connection, tenant, *mine, newest=limit)


ASKED = ("id", "rollout_id", "call_id", "tool", "arguments", "arguments_hash", "expires_at", "by", "at")


def _one(connection: sa.Connection, tenant: str, approval_id: int) -> Approval:
    found = _read(connection, tenant, approvals.c.id == approval_id) if 0 <= approval_id < 2**63 else []
    if not found:
        raise NotThere(f"there is no approval {approval_id}", "/approvals and GET /v1/approvals show those that are there")
    return found[0]


def _read(connection: sa.Connection, tenant: str, *which: sa.ColumnElement[bool], newest: int | None = None) -> list[Approval]:
    """In the order in which they were asked for; or the newest so many, newest first."""
    decided, used = approval_decisions.c, approval_uses.c
    told = (decided.decision, decided.note, decided.by.label("decided_by"), decided.at.label("decided_at"), used.at.label("used_at"))
    joined = approvals.outerjoin(approval_decisions, sa.and_(decided.approval == approvals.c.id, decided.tenant == approvals.c.tenant))
    joined = joined.outerjoin(approval_uses, sa.and_(used.approval == approvals.c.id, used.tenant == approvals.c.tenant))
    select = sa.select(*(approvals.c[name] for name in ASKED), *told).select_from(joined).where(approvals.c.tenant == tenant, *which)
    order = approvals.c.id.asc() if newest is None else approvals.c.id.desc()
    rows = connection.execute(select.order_by(order).limit(newest)).mappings()
    return [_approval(row) for row in rows]


def _approval(row: sa.RowMapping) -> Approval:
    values: dict[str, Any] = dict(row)
    values["note"], values["decided_by"] = values["note"] or "", values["decided_by"] or ""
    return Approval(**values)


def _moment(at: dt.datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def told(asked: Approval, now: dt.datetime) -> str:
    """To the agent: why its call is not made. Empty while it may still be, or was."""
    match asked.state(now):
        case "refused":
            return f"{asked.decided_by} refused this call: {asked.note}"
        case "expired" if asked.decision:
            return f"this call was approved by {asked.decided_by}, but came back only after {_moment(asked.expires_at)}, when that ended"
        case "expired":
            return f"nobody decided on this call by {_moment(asked.expires_at)}"
        case "used":
            return f"the approval of this call was used already, at {_moment(asked.used_at)}: it allows one call, once"
        case _:
            return ""
