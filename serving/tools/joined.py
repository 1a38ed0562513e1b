"""Several providers' tools as one provider's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from agent_rft.contracts.ports import ToolProvider


class JoinedTools:
    def __init__(self, providers: Sequence[ToolProvider]) -> None:
        self.specs = tuple(spec for provider in providers for spec in provider.specs)
        self.version = hashlib.sha256(" ".join(provider.version for provider in providers).encode()).hexdigest()[:16]
        self.blocks = any(bool(getattr(provider, "blocks", False)) for provider in providers)
        self.changes = frozenset[str]().union(*(getattr(provider, "changes", ()) for provider in providers))
        self._of = {spec.name: provider for provider in providers for spec in provider.specs}

    def check(self, name: str, arguments: dict[str, Any]) -> tuple[str, str | None] | None:
        checks = getattr(self._of[name], "check", None)
        return checks(name, arguments) if checks else None

    def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, str | None]:
        return self._of[name].call(name, arguments)
