"""Tool calls that wait for a person, for programs: what waits, and the decision. `/approvals` is the same for people."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from observability import approvals
from observability.access import Scope
from observability.accesses import note
from observability.approvals import Approval, Decision, State
from serving.gate import Gate, caller_of
from serving.openapi import BEARER

Asking = Request[Any, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=approvals.MOST)]


class Shown(msgspec.Struct, frozen=True):
    approval: Approval
    state: State


class Approvals(msgspec.Struct, frozen=True):
    approvals: list[Shown]
    """Newest first."""
    next: int | None
    """What to send as `before` for the next page; null on the last one."""


class NewDecision(msgspec.Struct, forbid_unknown_fields=True):
    decision: Decision
    note: str = ""
    """Required with refuse: the agent reads it."""


def approval_routes(gate: Gate) -> list[HTTPRouteHandler]:
    store = gate.store

    @get("/v1/approvals", summary="Tool calls that wait for a person, or all that ever did", **_for(gate, "read"))
    def listed(
        request: Asking, show: FromQuery[Literal["waiting", "all"]] = "waiting", before: FromQuery[int | None] = None, limit: Limit = 50
    ) -> Approvals:
        caller, now = caller_of(request), dt.datetime.now(dt.UTC)
        if show == "waiting":
            found = approvals.waiting(store, caller.tenant, now)[:limit]
        else:
            found = approvals.listed(store, caller.tenant, before, limit)
        note(store, caller, "read approvals", show, [one.rollout_id for one in found])
        more = found[-1].id if show == "all" and len(found) == limit else None
        return Approvals([Shown(one, one.state(now)) for one in found], more)

    @get("/v1/approvals/{approval_id:int}", summary="One of them", **_for(gate, "read"))
    def one(request: Asking, approval_id: FromPath[int]) -> Shown:
        caller = caller_of(request)
        found = approvals.one(store, caller.tenant, approval_id)
        note(store, caller, "read approvals", str(found.id), [found.rollout_id])
        return Shown(found, found.state(dt.datetime.now(dt.UTC)))

    @post("/v1/approvals/{approval_id:int}", status_code=200, summary="Allow the call, once, or refuse it", **_for(gate, "approve"))
    def decide(request: Asking, approval_id: FromPath[int], data: JSONBody[NewDecision]) -> Shown:
        now = dt.datetime.now(dt.UTC)
        decided = approvals.decide(store, caller_of(request), approval_id, data.decision, data.note, now)
        return Shown(decided, decided.state(now))

    return [listed, one, decide]


def _for(gate: Gate, scope: Scope) -> dict[str, Any]:
    return {"guards": [gate.needs(scope)], "security": BEARER, "tags": ["approvals"], "sync_to_thread": True}
