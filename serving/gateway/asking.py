"""What a caller asks an agent to do: `{"model", "input", "session"?, "item"?, "stream"?, "id"?, "metadata"?}`. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.messages import Message, ToolCall

LONGEST_NAME = 200
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct, frozen=True):
    id: str
    function: _Function


class ChatMessage(msgspec.Struct, frozen=True):
    """As OpenAI's chat API has it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: tuple[_Call, ...] = ()
    tool_call_id: str = ""


class RunRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Name
    """The service."""
    input: Annotated[str, msgspec.Meta(min_length=1)] | Annotated[tuple[ChatMessage, ...], msgspec.Meta(min_length=1)]
    """The question, or the conversation so far with the question last."""
    session: Name | None = None
    """All runs of one session go to the same arm. Without it, this run is a session of its own."""
    item: dict[str, Any] = {}
    """What graders see beside the answer. The agent never sees it."""
    stream: bool = False
    id: Name | None = None
    """The caller's own, by which the request may be sent again without being run again."""
    metadata: dict[str, Any] = {}

    @property
    def hash(self) -> str:
        """The same for two requests that ask for the same, however they want to be told."""
        same = msgspec.structs.replace(self, id=None, stream=False)
        return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()


def read(body: bytes) -> RunRequest:
    """Raises FaultsFound with all that is wrong at once, or UserError."""
    try:
        asked = msgspec.json.decode(body, type=RunRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"this is no request for a run: {error}", 'send {"model": "...", "input": "..."}') from None
    if faults := list(_faults(asked)):
        raise FaultsFound("the run cannot be begun:", faults)
    return asked


def _faults(asked: RunRequest) -> Iterator[Fault]:
    for where, name in (("model", asked.model), ("session", asked.session), ("id", asked.id)):
        if name is not None and not name.isprintable():
            yield Fault(where, f"{name!r} has characters that cannot be shown", f"1 to {LONGEST_NAME} printable characters")
    if isinstance(asked.input, str):
        return
    if asked.input[-1].role not in ("user", "tool"):
        yield Fault("input", f"its last message is of role '{asked.input[-1].role}'", "end with the user's question")
    for place, message in enumerate(asked.input):
        for call in message.tool_calls:
            if _arguments(call) is None:
                cure = 'a JSON object in a string, as in "{}"'
                yield Fault(f"input[{place}].tool_calls", f"the arguments of {call.function.name[:60]!r} are no JSON object", cure)


def said_in(asked: RunRequest) -> tuple[Message, ...]:
    if isinstance(asked.input, str):
        return (Message("user", asked.input),)
    return tuple(
        Message(
            "system" if message.role == "developer" else message.role,
            message.content or "",
            tuple(ToolCall(call.id, call.function.name, _arguments(call) or {}) for call in message.tool_calls),
            message.tool_call_id,
        )
        for message in asked.input
    )


def _arguments(call: _Call) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
