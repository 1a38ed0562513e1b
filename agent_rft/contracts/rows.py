"""A dataset row: one self-contained training example."""

from __future__ import annotations

from typing import Any

import msgspec

from agent_rft.contracts.messages import Message, ToolSpec


class Expected(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a right answer looks like beyond its text; graders read it."""

    tolerance_rel: float | None = None
    """Relative tolerance of a numeric answer, where the grader is configured to use it."""
    evidence_path: str | tuple[str, ...] | None = None
    """The document (or documents) that hold the answer."""
    must_use_tools: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    prompt: str
    reference_answer: Any
    expected: Expected = Expected()
    tools: tuple[ToolSpec, ...] = ()
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    """task_type and difficulty are what splits stratify by and reports slice by; anything else is kept."""
    messages: tuple[Message, ...] = ()
    """The whole opening conversation where the row came as one; else the prompt alone opens it."""
    extra: dict[str, Any] = msgspec.field(default_factory=dict)
    """Every other key of the file's row: graders see them as item.*"""
    as_given: dict[str, Any] = msgspec.field(default_factory=dict)
    """`messages` and `tools` in the file's own words where these say more than the read ones (a name, `strict`): the row is written
    with them again. Neither model nor grader sees them."""

    @property
    def task_type(self) -> str:
        return str(self.metadata.get("task_type", "unspecified"))

    @property
    def difficulty(self) -> str:
        return str(self.metadata.get("difficulty", "unspecified"))

    def opening(self) -> tuple[Message, ...]:
        return self.messages or (Message("user", self.prompt),)

    def item(self) -> dict[str, Any]:
        """What a grader sees as `item`. Where the file has a key of its own by one of our names, the file's stands."""
        known = {
            "id": self.id,
            "prompt": self.prompt,
            "reference_answer": self.reference_answer,
            "expected": msgspec.to_builtins(self.expected),
            "metadata": self.metadata,
        }
        return {**known, **self.extra}
