"""What every grader shares: a reference with a hash over everything that decides its score."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from agent_rft.contracts.grades import GraderRef

PASS_THRESHOLD = 0.75
"""From this reward on a grade counts as passed."""


def grader_ref(name: str, version: str, rules: Sequence[ModuleType], parameters: Mapping[str, Any]) -> GraderRef:
    """`rules`: every module whose code decides the score; `parameters`: every option that does."""
    return GraderRef(name, version, content_hash([inspect.getsource(module) for module in rules], parameters))


def content_hash(sources: Sequence[str], parameters: Mapping[str, Any]) -> str:
    """The code as it is written, not as it is compiled: the same on every Python version, on trainer and server alike."""
    body = json.dumps({"sources": list(sources), "parameters": dict(parameters)}, sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]
