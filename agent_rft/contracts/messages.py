"""What model, tools and people say to each other, in the shape that OpenAI's chat API made common."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True):
    """One call the model asks for. Several in one turn run in parallel."""

    call_id: str
    """Unique within the rollout, chosen by the machine, sent with the call and answered with it."""
    name: str
    arguments: dict[str, Any]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Only on an assistant's message."""
    call_id: str = ""
    """Only on a tool's message: the call it answers."""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as the model is told about it."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    """JSON schema of the arguments."""

    def as_openai(self) -> dict[str, Any]:
        body: dict[str, Any] = {"name": self.name, "parameters": self.parameters}
        if self.description:
            body["description"] = self.description
        return {"type": "function", "function": body}

    @classmethod
    def from_openai(cls, value: dict[str, Any]) -> ToolSpec:
        body = value.get("function", value)
        return cls(body["name"], body.get("description") or "", body.get("parameters") or {})
