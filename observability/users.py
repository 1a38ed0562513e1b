"""Users of a tenant, their keys, and the sessions that browsers hold. Who made, changed or revoked what stands in the access log."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.people import person, same_person
from observability.access import (
    Caller,
    KeyText,
    allowed,
    digest_of,
    faults_of_name,
    faults_of_role,
    faults_of_scopes,
    is_secret_of,
    read_key,
)
from observability.accesses import enter
from observability.dossier import NotThere
from observability.store import Store, take_turns
from observability.tables import access_log, api_keys, users

SESSION = dt.timedelta(hours=12)
OVERLAP = dt.timedelta(hours=24)
"""How long a rotated key stays good, so that whoever uses it can change over."""
_NOBODY = digest_of("")


class User(msgspec.Struct, frozen=True):
    name: str
    role: str
    by: str
    """Who added them, or changed them last."""
    at: dt.datetime
    disabled_at: dt.datetime | None


class Key(msgspec.Struct, frozen=True):
    id: str
    user: str
    use: Literal["key", "session"]
    scopes: list[str] | None
    """None: all that the owner's role may."""
    at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None


class NewKey(msgspec.Struct, frozen=True):
    id: str
    text: str
    """Shown once: the store does not have it."""
    expires_at: dt.datetime | None


# --- who is asking --------------------------------------------------------------------------------------------------------


def caller_of_key(store: Store, text: str, now: dt.datetime) -> Caller | None:
    """None for a key that is unknown, wrong, expired or revoked, of a user who is disabled, or of a session whose key is any of that.
    Which of them it is, is nobody's business who does not hold a good key."""
    sent = read_key(text) or KeyText("", "")
    found = _with_owner(store, sent.id)
    good = is_secret_of(sent.secret, found["digest"] if found else _NOBODY)
    if found is None or not good or not _holds(found, now) or found["disabled_at"] is not None:
        return None
    if found["opened_with"] is not None:
        opener = _with_owner(store, found["opened_with"])
        if opener is None or not _holds(opener, now):
            return None
    scopes = allowed(found["role"], found["scopes"])
    return Caller(found["tenant"], found["user"], found["role"], scopes, found["id"])


def _with_owner(store: Store, key_id: str) -> sa.RowMapping | None:
    """The one question that is asked before it is known whose tenant it is about."""
    owner = sa.and_(users.c.tenant == api_keys.c.tenant, users.c.name == api_keys.c.user)
    select = sa.select(api_keys, users.c.role, users.c.disabled_at).join(users, owner).where(api_keys.c.id == key_id)
    with store.reading() as connection:
        return connection.execute(select).mappings().first()


def _holds(key: sa.RowMapping, now: dt.datetime) -> bool:
    return key["revoked_at"] is None and (key["expires_at"] is None or now < key["expires_at"])


def anybody(store: Store) -> bool:
    """Whether there is one user at least: a store without is nobody's yet."""
    with store.reading() as connection:
        return connection.scalar(sa.select(sa.literal(1)).select_from(users).limit(1)) is not None


# --- users ----------------------------------------------------------------------------------------------------------------


def users_of(store: Store, tenant: str) -> list[User]:
    select = sa.select(*(users.c[name] for name in User.__struct_fields__)).where(users.c.tenant == tenant).order_by(users.c.name)
    with store.of(tenant).reading() as connection:
        return [User(**row) for row in connection.execute(select).mappings()]


def user_of(store: Store, tenant: str, name: str) -> User:
    known = {user.name: user for user in users_of(store, tenant)}
    if name not in known:
        raise _no_user(tenant, name, known)
    return known[name]


def add_user(store: Store, by: Caller, name: str, role: str, now: dt.datetime) -> None:
    """One person is one user: capitals and spaces make nobody a second one, or an approval could be one's own."""
    if faults := [*faults_of_name("tenant", by.tenant), *faults_of_name("name", name), *faults_of_role(role)]:
        raise FaultsFound("no such user can be added", faults, exit_code=2)
    with store.of(by.tenant).writing() as connection:
        take_turns(connection, f"users {by.tenant}")
        for known in connection.scalars(sa.select(users.c.name).where(users.c.tenant == by.tenant)):
            if person(known) == person(name):
                raise UserError(f"tenant {by.tenant} has a user {known} already", "change their role, or make them a new key")
        connection.execute(sa.insert(users), {"tenant": by.tenant, "name": name, "role": role, "by": by.name, "at": now})
        enter(connection, by, "add user", f"{name} as {role}")


def change_role(store: Store, by: Caller, name: str, role: str, now: dt.datetime) -> None:
    if faults := list(faults_of_role(role)):
        raise FaultsFound(f"{name} cannot have this role", faults, exit_code=2)
    _change(store, by, name, {"role": role, "by": by.name, "at": now}, "change role", f"{name} to {role}")


def disable_user(store: Store, by: Caller, name: str, now: dt.datetime) -> None:
    """What they reviewed stays theirs; none of their keys opens anything."""
    _change(store, by, name, {"disabled_at": now, "by": by.name, "at": now}, "disable user", name)


def enable_user(store: Store, by: Caller, name: str, now: dt.datetime) -> None:
    _change(store, by, name, {"disabled_at": None, "by": by.name, "at": now}, "enable user", name)


def _change(store: Store, by: Caller, name: str, values: dict[str, Any], action: str, told: str) -> None:
    with store.of(by.tenant).writing() as connection:
        _role_of(connection, by.tenant, name)
        connection.execute(sa.update(users).where(users.c.tenant == by.tenant, users.c.name == name).values(**values))
        enter(connection, by, action, told)


def _role_of(connection: sa.Connection, tenant: str, name: str) -> str:
    known = {row.name: row.role for row in connection.execute(sa.select(users.c.name, users.c.role).where(users.c.tenant == tenant))}
    if name not in known:
        raise _no_user(tenant, name, known)
    return known[name]


def _no_user(tenant: str, name: str, known: Iterable[str]) -> NotThere:
    cure = did_you_mean(name, known) if known else "it has none at all: rft user add NAME --role ROLE"
    return NotThere(f"tenant {tenant} has no user {name}", cure)


# --- keys -----------------------------------------------------------------------------------------------------------------


def keys_of(store: Store, tenant: str, name: str | None = None) -> list[Key]:
    """Sessions too: they open the same doors."""
    select = sa.select(*(api_keys.c[name] for name in Key.__struct_fields__)).where(api_keys.c.tenant == tenant)
    if name is not None:
        select = select.where(api_keys.c.user == name)
    with store.of(tenant).reading() as connection:
        return [Key(**row) for row in connection.execute(select.order_by(api_keys.c.user, api_keys.c.at, api_keys.c.id)).mappings()]


def new_key(
    store: Store, by: Caller, name: str, now: dt.datetime, scopes: Sequence[str] | None = None, expires_at: dt.datetime | None = None
) -> NewKey:
    if expires_at is not None and expires_at <= now:
        raise UserError(f"a key that ends at {expires_at:%Y-%m-%d %H:%M} would never open anything", "let it end later")
    with store.of(by.tenant).writing() as connection:
        role = _role_of(connection, by.tenant, name)
        if scopes is not None and (faults := [*faults_of_scopes(scopes, role), *_none(scopes)]):
            raise FaultsFound(f"no such key can be made for {name}", faults, exit_code=2)
        made = _insert(connection, by.tenant, name, "key", scopes, now, expires_at)
        enter(connection, by, "new key", f"{made.id} of {name}" + (f", {' '.join(scopes)} only" if scopes else ""))
    return made


def maker_of_key(store: Store, tenant: str, key_id: str) -> str:
    """Who made the key, or the one that it took the place of, or with which the session was opened: by the access log. Whoever makes
    a key may have kept it, and made others with it: of one that its holder made, it is who gave them their newest other."""
    with store.of(tenant).reading() as connection:
        key = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id, api_keys.c.tenant == tenant)).mappings().first()
        if key is None:
            return ""
        theirs = sa.select(api_keys.c.id).where(api_keys.c.tenant == tenant, api_keys.c.user == key["user"], api_keys.c.use == "key")
        others = connection.scalars(theirs.order_by(api_keys.c.at.desc(), api_keys.c.id)).all()
        makers = [_who_made(connection, tenant, one) for one in (key["opened_with"] or key_id, *others)]
    return next((maker for maker in makers if maker and not same_person(maker, key["user"])), makers[0])


def line_of_key(store: Store, tenant: str, key_id: str) -> tuple[str, ...]:
    """Everybody who may have had a hand in the key, by the access log: who made it, who made a key that opened anything for that one at
    that time, and so on back. Where somebody at the machine made one the line ends: no record says with what."""
    mine = (api_keys.c.tenant == tenant, (api_keys.c.use == "key") | (api_keys.c.id == key_id))
    with store.of(tenant).reading() as connection:
        keys = {row["id"]: row for row in connection.execute(sa.select(api_keys).where(*mine)).mappings()}
        waiting = [keys[key_id]["opened_with"] or key_id] if key_id in keys else []
        names, seen = dict[str, None](), set(waiting)
        while waiting:
            key = keys[waiting.pop()]
            if maker := _who_made(connection, tenant, key["id"]):
                names[maker] = None
                fresh = [id for id, one in keys.items() if id not in seen and same_person(one["user"], maker) and _opened(one, key["at"])]
                waiting += fresh
                seen.update(fresh)
    return tuple(names)


def _opened(key: sa.RowMapping, at: dt.datetime) -> bool:
    """Whether it did at that moment; one that took another's place then had not opened anything yet."""
    return key["at"] < at and all(end is None or end >= at for end in (key["revoked_at"], key["expires_at"]))


def _who_made(connection: sa.Connection, tenant: str, key: str) -> str:
    made = sa.and_(access_log.c.action == "new key", access_log.c.subject.startswith(f"{key} of ", autoescape=True))
    rotated = sa.and_(access_log.c.action == "rotate key", access_log.c.subject.endswith(f" to {key}", autoescape=True))
    mine = sa.select(access_log.c.by).where(access_log.c.tenant == tenant, made | rotated).order_by(access_log.c.id)
    return connection.scalar(mine.limit(1)) or ""


def revoke_key(store: Store, by: Caller, key_id: str, now: dt.datetime) -> None:
    """Sessions that were opened with it end with it."""
    with store.of(by.tenant).writing() as connection:
        key = _key(connection, by.tenant, key_id)
        if key["revoked_at"] is None:
            connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id, api_keys.c.tenant == by.tenant).values(revoked_at=now))
            enter(connection, by, "revoke key", f"{key_id} of {key['user']}")


def rotate_key(store: Store, by: Caller, key_id: str, now: dt.datetime, overlap: dt.timedelta = OVERLAP) -> NewKey:
    """A new key that may what the old one may, for as long as that was made for; the old one stays good for the overlap."""
    with store.of(by.tenant).writing() as connection:
        old = _key(connection, by.tenant, key_id)
        if old["use"] != "key" or not _holds(old, now):
            raise UserError(f"{key_id} is a session, or ended already", f"rft key new {old['user']} makes a key")
        if old["rotated_to"] is not None:
            raise UserError(f"{key_id} was rotated already, to {old['rotated_to']}", f"rotate that one; or rft key new {old['user']}")
        last = now + overlap if old["expires_at"] is None else min(now + overlap, old["expires_at"])
        expires_at = None if old["expires_at"] is None else now + (old["expires_at"] - old["at"])
        made = _insert(connection, by.tenant, old["user"], "key", old["scopes"], now, expires_at)
        mine = (api_keys.c.id == key_id, api_keys.c.tenant == by.tenant)
        connection.execute(sa.update(api_keys).where(*mine).values(expires_at=last, rotated_to=made.id))
        enter(connection, by, "rotate key", f"{key_id} of {old['user']} to {made.id}")
    return made


def _none(scopes: Sequence[str]) -> list[Fault]:
    return [] if scopes else [Fault("scopes", "a key without any opens nothing", "leave them out for all that the role may")]


def _key(connection: sa.Connection, tenant: str, key_id: str) -> sa.RowMapping:
    found = connection.execute(sa.select(api_keys).where(api_keys.c.id == key_id, api_keys.c.tenant == tenant)).mappings().first()
    if found is None:
        raise NotThere(f"tenant {tenant} has no key {key_id}", "rft key list shows them; a key's id stands between its underscores")
    return found


def _insert(
    connection: sa.Connection,
    tenant: str,
    name: str,
    use: str,
    scopes: Sequence[str] | None,
    now: dt.datetime,
    expires_at: dt.datetime | None,
    opened_with: str | None = None,
) -> NewKey:
    text = KeyText(secrets.token_hex(8), secrets.token_hex(32))
    row = {"id": text.id, "tenant": tenant, "user": name, "digest": digest_of(text.secret), "use": use, "at": now}
    row |= {"scopes": None if scopes is None else sorted(set(scopes)), "expires_at": expires_at, "opened_with": opened_with}
    connection.execute(sa.insert(api_keys), row)
    return NewKey(text.id, str(text), expires_at)


# --- sessions ---------------------------------------------------------------------------------------------------------------


def open_session(store: Store, caller: Caller, now: dt.datetime) -> NewKey:
    """What a browser holds from now on instead of the key. It may what the key may, and ends with it."""
    with store.of(caller.tenant).writing() as connection:
        key = _key(connection, caller.tenant, caller.key_id)
        if key["use"] != "key":
            raise UserError("that is a session, not a key", f"rft key new {caller.name} makes a key")
        made = _insert(connection, caller.tenant, caller.name, "session", key["scopes"], now, now + SESSION, key["id"])
        enter(connection, caller, "sign in", made.id)
    return made


def close_session(store: Store, caller: Caller, now: dt.datetime) -> None:
    with store.of(caller.tenant).writing() as connection:
        mine = (api_keys.c.id == caller.key_id, api_keys.c.tenant == caller.tenant, api_keys.c.use == "session")
        connection.execute(sa.update(api_keys).where(*mine).values(revoked_at=now))
        enter(connection, caller, "sign out", caller.key_id)
