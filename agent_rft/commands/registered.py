"""Grader versions as they are registered: built again from their JSON, and which of them may train and gate.

The graders that ship with the code, with their own options, stand from the start: they were reviewed and tested with it. The
first version that is activated under such a name takes over from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.grades import GraderRef
from agent_rft.contracts.ports import Grader
from agent_rft.graders.registry import GRADERS, load_grader
from agent_rft.graders.regrading import Versioned
from agent_rft.graders.reports import named
from agent_rft.graders.spec import GraderSpec, read_spec
from observability.graders import GraderVersion, active_version, find_version, grader_versions_of
from observability.store import Store

Build = Callable[[GraderSpec], Grader]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
GIVEN = "the rollouts' own grades"
"""What a grader under a new name is compared with."""
HEADER_VARIABLE = "GRADER_HEADER_"
SECRET_NAME = re.compile(
    r".*(key|token|secret|signature|password|passwd|pwd|credentials?)|sig|code|auth|pass|pw|sas|session", re.IGNORECASE
)
SECRET_VALUE = re.compile(r"(?=.*\d)([\w+/=]{20,}|[\da-fA-F-]{32,})")
"""Too long for a word or a version, whatever it is called."""


def registered_grader(store: Store, name: str, build: Build) -> Grader:
    """By NAME@VERSION, one that ships with the code too. Its grades carry that name and version."""
    plain, version = split(name)
    known = {one.ref.version for one in grader_versions_of(store, plain)}
    if (ships := shipped(plain)) and version == ships.ref.version and version not in known:
        return ships
    return built(find_version(store, name), build)


def shipped(name: str) -> Grader | None:
    return load_grader(name) if name in GRADERS else None


def inactive(store: Store, ref: GraderRef) -> str:
    """Why this grader may neither train nor gate; empty where it may."""
    versions = grader_versions_of(store)
    same = [one for one in versions if one.ref.hash == ref.hash]
    if any(one.state == "active" for one in same):
        return ""
    standing = active_version(store, ref.name)
    if (ships := shipped(ref.name)) and ships.ref == ref:
        return f"{named(ref)} ships with the code, but {named(standing.ref)} is active in its place" if standing else ""
    what = f"{same[0].ref.name}@{same[0].ref.version} is {same[0].state}" if same else f"{named(ref)} is not registered"
    return f"{what}, and not active" + (f"; {named(standing.ref)} is" if standing else "")


def built(version: GraderVersion, build: Build) -> Grader:
    """The very grader that was registered, or an error: code that has changed since decides otherwise."""
    ref = version.ref
    grader = build(read_spec(_with_secrets(version.spec), f"{ref.name}@{ref.version}"))
    if grader.ref.hash != ref.hash:
        raise UserError(
            f"{ref.name}@{ref.version} was registered with hash {ref.hash} from code {version.code}; this code makes it {grader.ref.hash}",
            "use that code, or register what it is now as another version",
        )
    return Versioned(grader, ref.name, ref.version)


def refuse_secrets_in_addresses(value: Any, where: str) -> None:
    """The whole of an address decides a score and is stored and shown, so a key has no place in it."""
    if faults := list(_secrets(value, where)):
        raise FaultsFound("the store keeps no secrets", faults, exit_code=2)


def _secrets(value: Any, where: str) -> Iterator[Fault]:
    if isinstance(value, list):
        for at, each in enumerate(cast(list[Any], value)):
            yield from _secrets(each, f"{where}[{at}]")
    if not isinstance(value, dict):
        return
    held = cast(dict[str, Any], value)
    if held.get("type") == "endpoint":
        for what in _secrets_in(str(held["url"])):
            yield Fault(f"{where}.url", what, "put it under headers, whose values are not stored")
    for key, each in held.items():
        yield from _secrets(each, f"{where}.{key}")


def _secrets_in(url: str) -> Iterator[str]:
    """Without showing them."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        yield f"is no address: {error}"
        return
    if "@" in parts.netloc:
        yield "holds a user's name or password"
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET_NAME.fullmatch(name) or SECRET_VALUE.fullmatch(value):
            yield f"holds what looks like a key, in {name}=..."


def without_secrets(value: Any) -> Any:
    """An endpoint's headers keep their names only: the store is no place for keys, and they do not decide a score."""
    if isinstance(value, dict):
        held = cast(dict[str, Any], value)
        kept = {key: without_secrets(each) for key, each in held.items()}
        return kept | ({"headers": dict.fromkeys(held["headers"], "")} if held.get("type") == "endpoint" and "headers" in held else {})
    return [without_secrets(each) for each in cast(list[Any], value)] if isinstance(value, list) else value


def _with_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        held = {key: _with_secrets(each) for key, each in cast(dict[str, Any], value).items()}
        return held | (
            {"headers": {key: _header(key) for key in held["headers"]}} if held.get("type") == "endpoint" and "headers" in held else {}
        )
    return [_with_secrets(each) for each in cast(list[Any], value)] if isinstance(value, list) else value


def _header(name: str) -> str:
    variable = HEADER_VARIABLE + re.sub(r"\W", "_", name.upper())
    if variable not in os.environ:
        raise UserError(f"the endpoint's header {name} is not known: the store keeps no secrets", f"export {variable}=...")
    return os.environ[variable]


def split(name_at_version: str) -> tuple[str, str]:
    name, _, version = name_at_version.partition("@")
    if not NAME.fullmatch(name) or not NAME.fullmatch(version):
        raise UserError(f"'{name_at_version}' names no grader version", "NAME@VERSION of letters, digits, . _ and -, like numeric@2")
    return name, version


def next_version(store: Store, name: str, hash_: str) -> str:
    ships = shipped(name)
    if ships and ships.ref.hash == hash_:
        return ships.ref.version
    taken = [one.ref.version for one in grader_versions_of(store, name)] + ([ships.ref.version] if ships else [])
    return str(max((int(version) for version in taken if version.isdecimal()), default=0) + 1)


def refuse_shipped(ref: GraderRef) -> None:
    """The version that ships with the code is as immutable as one that was registered."""
    ships = shipped(ref.name)
    if ships and ships.ref.version == ref.version and ships.ref.hash != ref.hash:
        raise UserError(
            f"{ref.name}@{ref.version} ships with the code, hash {ships.ref.hash}; this one's is {ref.hash}",
            f"register it as another version, --as {ref.name}@VERSION",
        )


def standing_grader(store: Store, name: str, build: Build) -> Grader | None:
    """The grader that a new version is compared with. None where there is none, or where it is of code that is no more."""
    active = active_version(store, name)
    if active is None:
        return shipped(name)
    try:
        return built(active, build)
    except UserError:
        return None


def against(store: Store, name: str) -> str:
    if active := active_version(store, name):
        return named(active.ref)
    ships = shipped(name)
    return named(ships.ref) if ships else GIVEN
