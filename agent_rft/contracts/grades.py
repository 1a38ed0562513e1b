"""A grade always names who gave it. A grader that failed gives none."""

from __future__ import annotations

from typing import Any

import msgspec


class GraderRef(msgspec.Struct, frozen=True):
    name: str
    version: str
    hash: str
    """Over everything that decides its score."""


class Grade(msgspec.Struct, frozen=True):
    grader: GraderRef
    reward: float | None
    """0 to 1; None where the grader failed, which is never a score."""
    passed: bool | None = None
    parts: dict[str, Any] = msgspec.field(default_factory=dict)
    """What the reward is made of, for people and for re-grading."""
    errors: dict[str, Any] = msgspec.field(default_factory=dict)
    """OpenAI's error flags that are set, with their details; empty where all went well."""
