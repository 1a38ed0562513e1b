"""NeMo RL's config as a tree of dotted keys, and the check of its spelling: NeMo RL itself swallows a misspelt key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from agent_rft.contracts.errors import Fault, did_you_mean

Tree = dict[str, Any]
OVERRIDES = "backend.nemo.overrides"
FREE = ".*"
"""Ends a known key below which every key is allowed."""


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under its dotted key. An empty section is a value of its own."""
    for name, value in tree.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, key)
        else:
            yield key, value


def put(tree: Tree, dotted: str, value: Any) -> None:
    """Sets one key; the sections on the way to it are made where they are missing."""
    *sections, last = dotted.split(".")
    for section in sections:
        below = tree.get(section)
        if not isinstance(below, dict):
            tree[section] = below = {}
        tree = below
    tree[last] = value


def unknown_keys(config: Mapping[str, Any], known: Collection[str], overrides: Mapping[str, Any]) -> list[Fault]:
    """Keys that NeMo RL does not know, each under the name that the user wrote where it is one of the overrides."""
    spelling = _Spelling(known)
    written = {key for key, _ in leaves(overrides)}
    faults = [spelling.fault(key, f"{OVERRIDES}." if key in written else "") for key, _ in leaves(config) if not spelling.knows(key)]
    for key, value in leaves(overrides):
        if (below := spelling.below(key)) and not isinstance(value, Mapping):
            cure = f"name its keys, as in {OVERRIDES}.{key}.{min(below)}=..."
            faults.append(Fault(f"{OVERRIDES}.{key}", f"is a section of NeMo RL's, and {value!r} is none", cure))
    return faults


def value_faults(errors: Iterable[Mapping[str, Any]], overrides: Mapping[str, Any]) -> list[Fault]:
    """pydantic's errors under the keys that the user wrote: where a section has several shapes, it tells one error for each."""
    told: dict[str, Fault] = {}
    written = [key for key, _ in leaves(overrides)]
    for error in errors:
        at = ".".join(str(part) for part in error["loc"])
        key = next((f"{OVERRIDES}.{key}" for key in written if _in_order(key.split("."), at.split("."))), "")
        if key or not told:
            told.setdefault(key or at, Fault(key or at, f"{error['input']!r} does not do", str(error["msg"])))
    return [fault for where, fault in told.items() if where.startswith(OVERRIDES)] or list(told.values())


def _in_order(some: Iterable[str], parts: Iterable[str]) -> bool:
    """Whether some of the parts are these, one after another; between them stand the names of shapes."""
    rest = iter(parts)
    return all(part in rest for part in some)


class _Spelling:
    def __init__(self, known: Collection[str]) -> None:
        self._free = {key.removesuffix(FREE) for key in known if key.endswith(FREE)}
        self._below: dict[str, set[str]] = {}
        for key in known:
            parts = key.removesuffix(FREE).split(".")
            for depth, part in enumerate(parts):
                self._below.setdefault(".".join(parts[:depth]), set()).add(part)

    def knows(self, key: str) -> bool:
        return self._first_unknown(key) is None

    def below(self, section: str) -> set[str]:
        return self._below.get(section, set())

    def fault(self, key: str, prefix: str) -> Fault:
        parts = key.split(".")
        depth = self._first_unknown(key) or 0
        section = ".".join(parts[:depth])
        near = self._below.get(section, set())
        what = f"NeMo RL's {section or 'configuration'} has no key '{parts[depth]}'"
        return Fault(prefix + key, what, did_you_mean(parts[depth], near) if near else f"{section} holds a value, no keys")

    def _first_unknown(self, key: str) -> int | None:
        """Which part of a key is the first that no known key goes on with; None where all are known, or free."""
        parts = key.split(".")
        for depth, part in enumerate(parts):
            section = ".".join(parts[:depth])
            if section in self._free:
                return None
            if part not in self._below.get(section, ()):
                return depth
        return None
