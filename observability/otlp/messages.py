"""What was said, from the shapes in which the conventions write it down.

Senders are many and none is checked, so nothing here fails: what has not the shape it should have is kept as its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.messages import Message, Role, ToolCall, ToolSpec
from observability.otlp import names
from observability.texts import storable

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Anything else is a user."""


class Said(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Role
    text: str
    thought: str = ""
    """The reasoning beside it, where that was told apart."""
    calls: tuple[ToolCall, ...] = ()
    returned: tuple[tuple[str, str], ...] = ()
    """Call id and output of each result in it."""

    def as_messages(self) -> Iterator[Message]:
        if self.text or self.calls or not self.returned:
            yield Message(self.role, self.text, self.calls)
        yield from (Message("tool", output, call_id=call_id) for call_id, output in self.returned)


def heard(attributes: names.Attributes) -> list[Said]:
    """What was put before the model or the agent, system instructions first."""
    system = _parts_of(structured(attributes.get(names.SYSTEM)))
    said = _said(attributes, names.INPUT, names.FLAT_INPUT)
    return ([Said("system", _text(system))] if system else []) + said


def spoken(attributes: names.Attributes) -> list[Said]:
    return _said(attributes, names.OUTPUT, names.FLAT_OUTPUT)


def tools_of(attributes: names.Attributes) -> tuple[ToolSpec, ...]:
    listed = structured(attributes.get(names.DEFINITIONS))
    if not isinstance(listed, list):
        listed = [structured(each.get("tool.json_schema")) for each in _numbered(attributes, names.FLAT_TOOLS)]
    return tuple(spec for each in listed if (spec := _tool(each)) is not None)


def _tool(value: Any) -> ToolSpec | None:
    if not isinstance(value, dict):
        return None
    outer = cast(dict[str, Any], value)
    body = outer.get("function")
    body = cast(dict[str, Any], body) if isinstance(body, dict) else outer
    name, parameters = body.get("name"), body.get("parameters", body.get("input_schema"))
    if not isinstance(name, str):
        return None
    return ToolSpec(name, plain(body.get("description")), cast(dict[str, Any], parameters) if isinstance(parameters, dict) else {})


def structured(value: Any) -> Any:
    """What a sender wrote as JSON in a string, where it did."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return msgspec.json.decode(value)
        except (ValueError, RecursionError):
            pass  # half a surrogate pair, as senders leave it that cut texts to a length
        try:
            return msgspec.json.decode(storable(json.dumps(json.loads(value), ensure_ascii=False)))
        except (ValueError, RecursionError):
            return value
    return value


def plain(value: Any) -> str:
    """Anything as text: words as they are, the rest as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def arguments_of(value: Any) -> dict[str, Any]:
    """A call's arguments; what is no object, under the name that says so."""
    value = structured(value)
    if value is None or value == "":
        return {}
    return cast(dict[str, Any], value) if isinstance(value, dict) else {"value": value}


# --- the two shapes -----------------------------------------------------------------------------------------------------


def _said(attributes: names.Attributes, whole: str, flat: str) -> list[Said]:
    """GenAI's list of messages in one attribute, else OpenInference's attributes numbered through."""
    value = structured(attributes.get(whole))
    if value is not None:
        listed = cast(list[Any], value) if isinstance(value, list) else [value]
        return [_of_parts(each) for each in listed]
    return [_of_flat(each) for each in _numbered(attributes, flat)]


def _of_parts(value: Any) -> Said:
    if not isinstance(value, dict):
        return Said("user", plain(value))
    message = cast(dict[str, Any], value)
    parts = _parts_of(message.get("parts", message.get("content")))
    calls = tuple(_call(part.get("id"), part.get("name"), part.get("arguments")) for part in parts if part.get("type") == "tool_call")
    returned = tuple(
        (plain(part.get("id")), plain(part.get("response", part.get("result"))))
        for part in parts
        if part.get("type") == "tool_call_response"
    )
    return Said(_role(message.get("role")), _text(parts), _text(parts, "reasoning", "thinking"), calls, returned)


def _parts_of(value: Any) -> list[dict[str, Any]]:
    if value is None or value == "":
        return []
    listed = cast(list[Any], value) if isinstance(value, list) else [value]
    return [cast(dict[str, Any], each) if isinstance(each, dict) else {"type": "text", "content": plain(each)} for each in listed]


def _text(parts: Sequence[Mapping[str, Any]], *kinds: str) -> str:
    texts = [plain(part.get("content", part.get("text"))) for part in parts if part.get("type", "text") in (kinds or ("text",))]
    return "\n".join(texts)


def _call(call_id: Any, name: Any, arguments: Any) -> ToolCall:
    return ToolCall(plain(call_id), plain(name), arguments_of(arguments))


def _role(value: Any) -> Role:
    return ROLES.get(plain(value).lower(), "user")


def _of_flat(message: Mapping[str, Any]) -> Said:
    texts = [plain(each.get("message_content.text")) for each in _numbered(message, "message.contents")]
    text = plain(message.get("message.content")) or "\n".join(filter(None, texts))
    calls = tuple(
        _call(call.get("tool_call.id"), call.get("tool_call.function.name"), call.get("tool_call.function.arguments"))
        for call in _numbered(message, "message.tool_calls")
    )
    role = _role(message.get("message.role"))
    answered = message.get("message.tool_call_id")
    return Said(role, "", returned=((plain(answered), text),)) if role == "tool" and answered else Said(role, text, calls=calls)


def _numbered(attributes: names.Attributes, prefix: str) -> list[dict[str, Any]]:
    """`prefix.0.a`, `prefix.0.b`, `prefix.1.a` ... as a list of what comes after the number."""
    found: dict[int, dict[str, Any]] = {}
    start = len(prefix) + 1
    for key, value in attributes.items():
        if key.startswith(prefix) and key[start - 1 : start] == ".":
            number, _, rest = key[start:].partition(".")
            if number.isascii() and number.isdigit() and len(number) < 10:
                found.setdefault(int(number), {})[rest] = value
    return [found[number] for number in sorted(found)]
