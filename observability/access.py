"""Who is asking, and what they may: roles, scopes, and what a key looks like. Pure.

A role is a set of scopes. A key may carry fewer than its owner's role has, never more: a trainer's key only ingests, and is no
way to read what others recorded. Whoever operates the store does not judge its cards: an operator neither reviews nor approves.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, get_args

import msgspec

from agent_rft.contracts.errors import Fault, did_you_mean

Scope = Literal["read", "export", "review", "approve", "ingest", "operate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_VIEWS = frozenset[str]({"read", "export"})
ROLES: Mapping[str, frozenset[str]] = {
    "viewer": _VIEWS,
    "reviewer": _VIEWS | {"review"},
    "approver": _VIEWS | {"review", "approve"},
    "operator": _VIEWS | {"ingest", "operate"},
    "admin": frozenset(SCOPES),
}
AT_THE_MACHINE = "@cli"
"""Ends the name of a person who works on the store's own machine, and no user's."""
LONGEST_NAME = 100
PREFIX = "rft"


class Caller(msgspec.Struct, frozen=True):
    tenant: str
    name: str
    role: str
    scopes: frozenset[str]
    key_id: str
    """Empty for who needs no key: a person at the machine."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes


def person_at_the_machine(tenant: str, login: str) -> Caller:
    """Who can open the store's file or database needs no role; what they read stands in the access log like anybody's reading."""
    return Caller(tenant, f"{login}{AT_THE_MACHINE}", "admin", ROLES["admin"], "")


def allowed(role: str, narrowed: Iterable[str] | None) -> frozenset[str]:
    """What a key may whose owner has this role now."""
    own = ROLES.get(role, frozenset[str]())
    return own if narrowed is None else own.intersection(narrowed)


# --- what a person types ------------------------------------------------------------------------------------------------


def faults_of_name(where: str, name: str) -> Iterator[Fault]:
    if not name or name != " ".join(name.split()) or not name.isprintable():
        yield Fault(where, f"{name!r} is no name", "words of printable characters, one space between them")
    elif len(name) > LONGEST_NAME:
        yield Fault(where, f"a name of {len(name)} characters", f"at most {LONGEST_NAME}")
    elif name.casefold().endswith(AT_THE_MACHINE):
        yield Fault(where, f"{name!r} looks like a person at the machine", f"a name that does not end in {AT_THE_MACHINE}")


def faults_of_role(role: str) -> Iterator[Fault]:
    if role not in ROLES:
        yield Fault("role", f"there is no role {role!r}", did_you_mean(role, ROLES))


def faults_of_scopes(scopes: Iterable[str], role: str) -> Iterator[Fault]:
    for scope in scopes:
        if scope not in SCOPES:
            yield Fault("scopes", f"there is no scope {scope!r}", did_you_mean(scope, SCOPES))
        elif scope not in allowed(role, None):
            yield Fault("scopes", f"{scope!r} is more than the role {role} may", f"of {', '.join(sorted(allowed(role, None)))}")


# --- keys ---------------------------------------------------------------------------------------------------------------


class KeyText(NamedTuple):
    """What a caller sends: which key it is, and that it is theirs. The store keeps a digest of the second half."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"{PREFIX}_{self.id}_{self.secret}"


def read_key(text: str) -> KeyText | None:
    parts = text.strip().split("_")
    plain = len(parts) == 3 and parts[0] == PREFIX and all(part.isascii() and part.isalnum() for part in parts)
    return KeyText(parts[1], parts[2]) if plain else None


def digest_of(secret: str) -> str:
    """Plain SHA-256 is enough: a secret is 32 random bytes, which nobody guesses, however fast a guess is tried."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def is_secret_of(secret: str, digest: str) -> bool:
    """In constant time: how long a refusal takes must not tell how much of a guess was right."""
    return hmac.compare_digest(digest_of(secret), digest)
