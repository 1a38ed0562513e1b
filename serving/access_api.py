"""Users and keys of the caller's tenant, for its admins, and its access log, for approvers too: `/v1/users`, `/v1/keys`, `/v1/access`."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from observability.accesses import Access, reading
from observability.users import (
    Key,
    NewKey,
    User,
    add_user,
    change_role,
    disable_user,
    enable_user,
    keys_of,
    new_key,
    revoke_key,
    rotate_key,
    user_of,
    users_of,
)
from serving.gate import Gate, caller_of
from serving.openapi import BEARER

MOST_LISTED = 1000
LONGEST_OVERLAP_HOURS = 24 * 30
LONGEST_KEY_DAYS = 3650
Asking = Request[Any, Any, Any]
Limit = Annotated[int, QueryParameter(ge=1, le=MOST_LISTED)]
Place = Annotated[int | None, QueryParameter(ge=1, le=2**63 - 1)]


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    role: str


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """Of a user; what is left out stays as it is."""

    role: str | None = None
    disabled: bool | None = None


class KeyWish(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    scopes: list[str] | None = None
    """None: all that the role may."""
    days: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_KEY_DAYS)] | None = None
    """None: until it is revoked."""


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    overlap_hours: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_OVERLAP_HOURS)] = 24.0
    """How long the old key stays good."""


def access_routes(gate: Gate) -> list[HTTPRouteHandler]:
    admin: dict[str, Any] = {"guards": [gate.needs("admin")], "security": BEARER, "tags": ["access"], "sync_to_thread": True}
    approver: dict[str, Any] = admin | {"guards": [gate.needs("approve")]}
    store = gate.store

    @get("/v1/users", summary="The users of your tenant", **admin)
    def list_users(request: Asking) -> list[User]:
        return users_of(store, caller_of(request).tenant)

    @post("/v1/users", summary="Add a user", **admin)
    def add(request: Asking, data: JSONBody[NewUser]) -> User:
        add_user(store, caller_of(request), data.name, data.role, _now())
        return user_of(store, caller_of(request).tenant, data.name)

    @post("/v1/users/{name:str}", status_code=200, summary="Change a user's role, disable or enable them", **admin)
    def change(request: Asking, name: FromPath[str], data: JSONBody[Change]) -> User:
        by = caller_of(request)
        if data.role is not None:
            change_role(store, by, name, data.role, _now())
        if data.disabled is not None:
            (disable_user if data.disabled else enable_user)(store, by, name, _now())
        return user_of(store, by.tenant, name)

    @get("/v1/keys", summary="Keys and sessions, without their secrets", **admin)
    def list_keys(request: Asking, user: FromQuery[str | None] = None) -> list[Key]:
        return keys_of(store, caller_of(request).tenant, user)

    @post("/v1/keys", summary="Make a key: its text is in this answer and nowhere else", **admin)
    def make_key(request: Asking, data: JSONBody[KeyWish]) -> NewKey:
        ends = None if data.days is None else _now() + dt.timedelta(days=data.days)
        return new_key(store, caller_of(request), data.user, _now(), data.scopes, ends)

    @post("/v1/keys/{key_id:str}/revoke", status_code=200, summary="Revoke a key or session", **admin)
    def revoke(request: Asking, key_id: FromPath[str]) -> None:
        revoke_key(store, caller_of(request), key_id, _now())

    @post("/v1/keys/{key_id:str}/rotate", summary="A new key for an old one, which stays good for the overlap", **admin)
    def rotate(request: Asking, key_id: FromPath[str], data: JSONBody[Rotation]) -> NewKey:
        return rotate_key(store, caller_of(request), key_id, _now(), dt.timedelta(hours=data.overlap_hours))

    @get("/v1/access", summary="Who read, took out and changed what, newest first", **approver)
    def log(
        request: Asking, card: FromQuery[str | None] = None, by: FromQuery[str | None] = None, after: Place = None, limit: Limit = 50
    ) -> list[Access]:  # fmt: skip
        return reading(store, caller_of(request).tenant, card, by, after, limit)

    return [list_users, add, change, list_keys, make_key, revoke, rotate, log]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
