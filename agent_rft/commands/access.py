"""`rft user`, `rft key` and `rft access`: who may read a tenant's cards, and who did."""

from __future__ import annotations

import datetime as dt
import os
import pwd
from contextlib import closing

from rich.table import Table

from agent_rft.commands.console import console
from observability import accesses, users
from observability.access import Caller, person_at_the_machine
from observability.cards import whole_id
from observability.store import open_store
from observability.users import NewKey


def me(tenant: str) -> Caller:
    """By the login that the system knows, whatever the environment says."""
    try:
        login = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container a number may be all there is
        login = f"uid-{os.getuid()}"
    return person_at_the_machine(tenant, login)


# --- users ----------------------------------------------------------------------------------------------------------------


def add_user(store: str, tenant: str, name: str, role: str) -> None:
    with closing(open_store(store)) as opened:
        users.add_user(opened, me(tenant), name, role, _now())
        made = users.new_key(opened, me(tenant), name, _now())
    console.print(f"{name} is {_a(role)} of tenant {tenant} now")
    _show_once(made)


def list_users(store: str, tenant: str) -> None:
    with closing(open_store(store)) as opened:
        found, keys = users.users_of(opened, tenant), users.keys_of(opened, tenant)
    table = Table("name", "role", "changed", "by", "", title=f"{len(found)} users of tenant {tenant}", title_justify="left")
    for user in found:
        good = sum(key.use == "key" and _state(key) == "good" for key in keys if key.user == user.name)
        state = f"disabled {_moment(user.disabled_at)}" if user.disabled_at else f"{good} keys"
        table.add_row(user.name, user.role, _moment(user.at), user.by, state)
    console.print(table)


def change_role(store: str, tenant: str, name: str, role: str) -> None:
    with closing(open_store(store)) as opened:
        users.change_role(opened, me(tenant), name, role, _now())
    console.print(f"{name} is {_a(role)} of tenant {tenant} from now on, with the keys that they have")


def disable_user(store: str, tenant: str, name: str) -> None:
    with closing(open_store(store)) as opened:
        users.disable_user(opened, me(tenant), name, _now())
    console.print(f"{name}'s keys and sessions open nothing any more; `rft user enable` turns it back")


def enable_user(store: str, tenant: str, name: str) -> None:
    with closing(open_store(store)) as opened:
        users.enable_user(opened, me(tenant), name, _now())
    console.print(f"{name}'s keys open what they did")


# --- keys -----------------------------------------------------------------------------------------------------------------


def new_key(store: str, tenant: str, name: str, scope: list[str], days: float | None) -> None:
    ends = None if days is None else _now() + dt.timedelta(days=days)
    with closing(open_store(store)) as opened:
        made = users.new_key(opened, me(tenant), name, _now(), scope or None, ends)
    _show_once(made)


def list_keys(store: str, tenant: str, user: str | None) -> None:
    with closing(open_store(store)) as opened:
        found = users.keys_of(opened, tenant, user)
    table = Table(title=f"keys of tenant {tenant}", title_justify="left")
    for column in ("key", "user", "use", "may", "made", "ends", ""):
        table.add_column(column, no_wrap=column == "key")  # to be copied
    for key in found:
        may = "all its owner may" if key.scopes is None else " ".join(key.scopes)
        table.add_row(key.id, key.user, key.use, may, _moment(key.at), _moment(key.expires_at), _state(key))
    console.print(table)


def revoke_key(store: str, tenant: str, key: str) -> None:
    with closing(open_store(store)) as opened:
        users.revoke_key(opened, me(tenant), key, _now())
    console.print(f"key {key} and the sessions opened with it are revoked; a running server forgets them within 5 s")


def rotate_key(store: str, tenant: str, key: str, overlap: float) -> None:
    with closing(open_store(store)) as opened:
        made = users.rotate_key(opened, me(tenant), key, _now(), dt.timedelta(hours=overlap))
    console.print(f"key {key} stays good for {overlap:g} hours")
    _show_once(made)


def _show_once(made: NewKey) -> None:
    console.print(f"key {made.id}" + (f", good until {_moment(made.expires_at)}" if made.expires_at else "") + ", shown this once:")
    print(made.text)


# --- the log --------------------------------------------------------------------------------------------------------------


def access_log(store: str, tenant: str, card: str | None, by: str | None, after: int | None, limit: int) -> None:
    with closing(open_store(store)) as opened:
        rollout_id = whole_id(opened.of(tenant), card) if card else None
        found = accesses.reading(opened, tenant, rollout_id, by, after, limit)
    table = Table("number", "when", "who", "did", "what", title=f"access log of tenant {tenant}, newest first", title_justify="left")
    table.add_column("cards", justify="right")
    for line in found:
        table.add_row(str(line.id), _moment(line.at), line.by, line.action, line.subject, str(line.cards))
    console.print(table)
    if len(found) == limit:
        console.print(f"next page: --after {found[-1].id}")


def _a(role: str) -> str:
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


def _state(key: users.Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {_moment(key.revoked_at)}"
    return "over" if key.expires_at is not None and key.expires_at <= _now() else "good"


def _moment(at: dt.datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
