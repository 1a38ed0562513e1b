"""Who is asking, and what they may: roles, scopes, and what a key looks like. Pure.

A role is a set of scopes. A key may carry fewer than its owner's role has, never more: a trainer's key only ingests, and is no
way to read what others recorded. Whoever operates the store does not judge its cards: an operator neither reviews nor approves.
An agent is a program that runs agents through the gateway, or calls the tools itself; `tool:NAME` narrows its key to some tools.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, get_args

import msgspec

from agent_rft.contracts.errors import Fault, did_you_mean
from agent_rft.contracts.people import AT_THE_MACHINE, person

Scope = Literal["read", "export", "review", "approve", "ingest", "run", "operate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_VIEWS = frozenset[str]({"read", "export"})
ROLES: Mapping[str, frozenset[str]] = {
    "viewer": _VIEWS,
    "reviewer": _VIEWS | {"review"},
    "approver": _VIEWS | {"review", "approve"},
    "agent": frozenset({"run"}),
    "operator": _VIEWS | {"ingest", "run", "operate"},
    "admin": frozenset(SCOPES),
}
LONGEST_NAME = 100
PREFIX = "rft"
TOOL = "tool:"
"""Begins a scope that is one tool's. A key that has such scopes calls these tools and no others."""
_TOOL_SCOPE = re.compile(r"tool:[A-Za-z0-9_.-]{1,200}")


class Caller(msgspec.Struct, frozen=True):
    tenant: str
    name: str
    role: str
    scopes: frozenset[str]
    key_id: str
    """Empty for who needs no key: a person at the machine."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def may_call(self, tool: str) -> bool:
        """With `run` every tool, unless the key names some: then those, with `run` or without it."""
        named = any(scope.startswith(TOOL) for scope in self.scopes)
        return f"{TOOL}{tool}" in self.scopes if named else "run" in self.scopes


def person_at_the_machine(tenant: str, login: str) -> Caller:
    """Who can open the store's file or database needs no role; what they read stands in the access log like anybody's reading."""
    return Caller(tenant, f"{login}{AT_THE_MACHINE}", "admin", ROLES["admin"], "")


def allowed(role: str, narrowed: Iterable[str] | None) -> frozenset[str]:
    """What a key may whose owner has this role now."""
    own = ROLES.get(role, frozenset[str]())
    return own if narrowed is None else frozenset(scope for scope in narrowed if _covers(own, scope))


def _covers(own: frozenset[str], scope: str) -> bool:
    """Who may run agents may call each of their tools."""
    return scope in own or ("run" in own and _TOOL_SCOPE.fullmatch(scope) is not None)


# --- what a person types ------------------------------------------------------------------------------------------------


def faults_of_name(where: str, name: str) -> Iterator[Fault]:
    if not name or name != " ".join(name.split()) or not name.isprintable():
        yield Fault(where, f"{name!r} is no name", "words of printable characters, one space between them")
    elif len(name) > LONGEST_NAME:
        yield Fault(where, f"a name of {len(name)} characters", f"at most {LONGEST_NAME}")
    elif person(name).endswith(AT_THE_MACHINE):
        yield Fault(where, f"{name!r} looks like a person at the machine", f"a name that does not end in {AT_THE_MACHINE}")


def faults_of_role(role: str) -> Iterator[Fault]:
    if role not in ROLES:
        yield Fault("role", f"there is no role {role!r}", did_you_mean(role, ROLES))


def faults_of_scopes(scopes: Iterable[str], role: str) -> Iterator[Fault]:
    own = allowed(role, None)
    for scope in scopes:
        if scope not in SCOPES and not _TOOL_SCOPE.fullmatch(scope):
            yield Fault("scopes", f"there is no scope {scope!r}", _nearest_scope(scope))
        elif not _covers(own, scope):
            yield Fault("scopes", f"{scope!r} is more than the role {role} may", f"of {', '.join(sorted(own))}")


def _nearest_scope(scope: str) -> str:
    """A tool's is known by what stands before its colon, however that is spelt; which tools there are, only their server knows."""
    kind, colon, tool = scope.partition(":")
    if colon and did_you_mean(kind, ["tool"]).startswith("did"):
        return f"did you mean '{TOOL}{tool}'?" if _TOOL_SCOPE.fullmatch(f"{TOOL}{tool}") else "tool:NAME, as in tool:search"
    return did_you_mean(scope, [*SCOPES, f"{TOOL}NAME"])


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
