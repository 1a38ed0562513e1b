"""What OpenAI's chat API asks of a model, as our samplers are asked; and what they said, as that API tells it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agent_rft.contracts.events import AskModel, ModelSpoke
from agent_rft.contracts.messages import Message, Role, ToolCall, ToolSpec
from agent_rft.rollouts.parsing import Calls, parse_turn
from serving.gateway.declined import Declined

LONGEST_ANSWER = 4096
"""Tokens, where a request names no number."""
NO_LIMIT = 1 << 30
WORDS = re.compile(r"\s*\S+|\s+$")
PATH = re.compile(r" - at `\$\.?(.*)`$")
SHAPE = '{"model": "...", "messages": [{"role": "user", "content": "..."}]}'
OTHERWISE: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "stop": (None, [], ""),
    "top_p": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "auto", "none"),
}
"""What the sampler does not do, and the values with which it needs not: better refused than left out in silence."""


# --- what is asked ----------------------------------------------------------------------------------------------------------


class _Part(msgspec.Struct):
    type: Literal["text"]
    text: str


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class _Call(msgspec.Struct):
    function: _Function
    id: str = ""


class _Said(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str = ""


class _ToolBody(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _ToolBody
    type: Literal["function"] = "function"


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str
    messages: Annotated[list[_Said], Meta(min_length=1)]
    tools: list[_Tool] | None = None
    tool_choice: Any = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class ChatAsked(msgspec.Struct, frozen=True, kw_only=True):
    """One request, read."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_tokens: int
    temperature: float | None
    """None: the server's own."""
    seed: int | None
    stream: bool
    tell_usage: bool

    def as_ask(self, rollout_id: str, seed: int) -> AskModel:
        """Each request is a conversation of its own, whole: nothing of an earlier one has to be held."""
        return AskModel(rollout_id, 0, seed, self.messages, self.messages, self.tools, self.max_tokens, NO_LIMIT)


def read_chat(body: bytes) -> ChatAsked:
    """Raises Declined, naming the field that is wrong."""
    try:
        asked = msgspec.json.decode(body, type=_Body)
        rest: dict[str, Any] = msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        field = PATH.search(str(error))
        raise wrong(PATH.sub("", str(error)), field.group(1) if field else None) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise wrong(f"the body is not JSON: {error}", None) from None
    for field, fine in OTHERWISE.items():
        if rest.get(field) not in fine:
            raise wrong(f"{field} is not offered by this server", field, "leave it out")
    return ChatAsked(
        model=asked.model,
        messages=tuple(_message(said, f"messages[{i}]") for i, said in enumerate(asked.messages)),
        tools=() if asked.tool_choice == "none" else tuple(_tool(tool.function) for tool in asked.tools or ()),
        max_tokens=asked.max_completion_tokens or asked.max_tokens or LONGEST_ANSWER,
        temperature=asked.temperature,
        seed=asked.seed,
        stream=bool(asked.stream),
        tell_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def wrong(what: str, field: str | None, cure: str = f"a chat is asked for with {SHAPE}") -> Declined:
    return Declined(400, "invalid_value", what, cure, param=field)


def _message(said: _Said, where: str) -> Message:
    role: Role = "system" if said.role == "developer" else said.role
    content = said.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    calls = tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(said.tool_calls or ()))
    if calls and role != "assistant":
        raise wrong(f"a message of the role {said.role} makes no calls", f"{where}.tool_calls", "only an assistant's does")
    return Message(role, text, calls, said.tool_call_id)


def _call(call: _Call, where: str) -> ToolCall:
    arguments = call.function.arguments or {}
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise wrong("the arguments of a call are a JSON object, written as a string", f"{where}.function.arguments") from None
    return ToolCall(call.id, call.function.name, arguments)


def _tool(body: _ToolBody) -> ToolSpec:
    return ToolSpec(body.name, body.description or "", body.parameters or {})


# --- what is answered -------------------------------------------------------------------------------------------------------


class Told(msgspec.Struct, frozen=True):
    """A turn, as the API tells it."""

    id: str
    model: str
    created: int
    text: str
    calls: tuple[dict[str, Any], ...]
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: dict[str, int]


def told_of(spoke: ModelSpoke, request_id: str, model: str, created: int) -> Told:
    """A turn that is neither an answer nor calls that can be read is handed on as it was written: whoever asked judges it."""
    parsed = parse_turn(spoke.text)
    calls = parsed.calls if spoke.stop == "stop" and isinstance(parsed, Calls) else ()
    heard, said = spoke.context_tokens or len(spoke.context_ids), spoke.sampled_tokens or len(spoke.sampled_ids)
    return Told(
        request_id,
        model,
        created,
        "" if calls else spoke.text,
        tuple(
            {
                "id": f"call_{request_id.removeprefix('chatcmpl-')}_{i}",
                "type": "function",
                "function": {"name": name, "arguments": msgspec.json.encode(arguments).decode()},
            }
            for i, (name, arguments) in enumerate(calls)
        ),
        "tool_calls" if calls else "length" if spoke.stop == "length" else "stop",
        {"prompt_tokens": heard, "completion_tokens": said, "total_tokens": heard + said},
    )


def whole(told: Told) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": told.text or None, "refusal": None}
    if told.calls:
        message["tool_calls"] = told.calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": told.finish_reason}
    return _envelope(told, "chat.completion") | {"choices": [choice], "usage": told.usage}


def streamed(told: Told, tell_usage: bool) -> Iterator[bytes]:
    """Server-sent events. The sampler speaks in whole turns, so these come at once, once the turn is there."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in WORDS.findall(told.text)]
    deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(told.calls)]
    for delta in deltas:
        yield _event(_chunk(told, delta, None))
    yield _event(_chunk(told, {}, told.finish_reason))
    if tell_usage:
        yield _event(_envelope(told, "chat.completion.chunk") | {"choices": [], "usage": told.usage})
    yield b"data: [DONE]\n\n"


def _chunk(told: Told, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _envelope(told, "chat.completion.chunk") | {"choices": [choice]}


def _envelope(told: Told, kind: str) -> dict[str, Any]:
    return {"id": told.id, "object": kind, "created": told.created, "model": told.model}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
