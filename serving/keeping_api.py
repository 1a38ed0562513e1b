"""What of the caller's tenant is kept, and what may go: `/v1/holds`, `/v1/retention`, `/v1/erasures`."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
from litestar import Request, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody

from agent_rft.contracts.errors import UserError
from observability import erasure, find, holds, retention
from observability.access import Scope
from observability.accesses import note
from observability.holds import Held, Hold
from observability.proofs import to_be_erased
from observability.query import EVERY_CARD
from observability.retention import Due, Policy
from observability.views import read_query
from serving.gate import Gate, caller_of
from serving.openapi import BEARER

MOST_ERASED = 1000
"""Cards of one request, which somebody waits for."""
Asking = Request[Any, Any, Any]


class NewHold(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    query: str
    """The cards it covers, now and later; empty: every card."""
    reason: str


class Release(msgspec.Struct, forbid_unknown_fields=True):
    reason: str


class NewPolicy(msgspec.Struct, forbid_unknown_fields=True):
    days: int


class SetPolicy(msgspec.Struct):
    policy: Policy
    warning: str
    """What whoever set it should know; empty where there is nothing."""


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    query: str
    why: str
    """Stays in the ledger for ever: no words of the person."""
    dry_run: bool


class Erasing(msgspec.Struct):
    cards: tuple[str, ...]
    """All that the query asks for."""
    held: Held
    """Those that stay whole, and the holds that keep them."""
    erased: tuple[str, ...] = ()
    already: tuple[str, ...] = ()
    """Those that had no words left."""
    lingering: str = ""
    """Where copies of the words may be that are not the store's tables; empty where there are none."""


def keeping_routes(gate: Gate) -> list[HTTPRouteHandler]:
    return [*_hold_routes(gate), *_retention_routes(gate), _erasure_route(gate)]


def _for(gate: Gate, scope: Scope) -> dict[str, Any]:
    return {"guards": [gate.needs(scope)], "security": BEARER, "tags": ["keeping"], "sync_to_thread": True}


def _hold_routes(gate: Gate) -> list[HTTPRouteHandler]:
    store = gate.store
    sees, approves = _for(gate, "read"), _for(gate, "approve")

    @get("/v1/holds", summary="Every hold that was placed or released, oldest first", **sees)
    def list_holds(request: Asking) -> list[Hold]:
        tenant = caller_of(request).tenant
        return holds.history(store.of(tenant), tenant)

    @post("/v1/holds", summary="Place a hold: from now on nothing takes the words of these cards", **approves)
    def place(request: Asking, data: JSONBody[NewHold]) -> Hold:
        caller = caller_of(request)
        query = read_query(store.of(caller.tenant), caller.tenant, data.query, _now())
        return holds.place(store.of(caller.tenant), caller.tenant, data.name, query, data.reason, caller.name)

    @post("/v1/holds/{name:str}/release", status_code=200, summary="Release a hold", **approves)
    def release(request: Asking, name: FromPath[str], data: JSONBody[Release]) -> Hold:
        caller = caller_of(request)
        return holds.release(store.of(caller.tenant), caller.tenant, name, data.reason, caller.name)

    return [list_holds, place, release]


def _retention_routes(gate: Gate) -> list[HTTPRouteHandler]:
    store = gate.store
    sees, operates = _for(gate, "read"), _for(gate, "operate")

    @get("/v1/retention", summary="For how long the words of which cards are kept", **sees)
    def list_policies(request: Asking) -> list[Policy]:
        tenant = caller_of(request).tenant
        return retention.policies(store.of(tenant), tenant)

    @put("/v1/retention/{kind:str}", summary="Set the policy of a kind of cards; * is all kinds that have none of their own", **operates)
    def set_policy(request: Asking, kind: FromPath[str], data: JSONBody[NewPolicy]) -> SetPolicy:
        caller = caller_of(request)
        policy = retention.set_policy(store.of(caller.tenant), caller.tenant, kind, data.days, caller.name)
        note(store, caller, "retention set", f"{policy.kind}: {policy.days} days")
        return SetPolicy(policy, retention.warning(policy))

    @delete("/v1/retention/{kind:str}", summary="Remove the policy of a kind of cards", **operates)
    def remove_policy(request: Asking, kind: FromPath[str]) -> None:
        caller = caller_of(request)
        retention.remove_policy(store.of(caller.tenant), caller.tenant, kind)
        note(store, caller, "retention removed", kind)

    @post("/v1/retention/plan", status_code=200, summary="What `rft retention apply` would find now", **operates)
    def plan(request: Asking) -> list[Due]:
        return retention.plan(store, caller_of(request).tenant, _now())

    return [list_policies, set_policy, remove_policy, plan]


def _erasure_route(gate: Gate) -> HTTPRouteHandler:
    store = gate.store

    @post("/v1/erasures", status_code=200, summary="Take the words of cards out of the store, for good", **_for(gate, "admin"))
    def erase(request: Asking, data: JSONBody[Wish]) -> Erasing:
        caller = caller_of(request)
        mine, tenant = store.of(caller.tenant), caller.tenant
        erasure.check_reason(caller.name, data.why)
        query = read_query(mine, tenant, data.query, _now())
        if query == EVERY_CARD:
            raise UserError("an erasure names what goes", "give a query, such as row:val-0042")
        find.index_for(store, query, tenant)
        if find.count(mine, query, tenant, MOST_ERASED + 1) > MOST_ERASED:
            raise UserError(f"the query asks for more than {MOST_ERASED:,} cards", "narrow it, or use `rft erase`")
        ids = tuple(to_be_erased(mine, tenant, query))
        note(store, caller, "erasure dry run" if data.dry_run else "erasure asked for", data.why, ids)
        if data.dry_run:
            return Erasing(ids, holds.held(mine, tenant, ids))
        done = erasure.erase(store, tenant, ids, caller.name, data.why)
        return Erasing(ids, done.held, done.erased, done.already, done.lingering)

    return erase


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
