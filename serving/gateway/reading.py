"""What the gateway looks at in a chat request, and how it is handed on. Pure.

Everything but a few keys stays the bytes that it came as: parsed no further than to find its end, and sent on unchanged.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent_rft.contracts.agents import Agent
from serving.gateway.declined import Declined

LONGEST_SESSION = 200
LONGEST_MODEL = 200
GUIDES = ("system", "developer")
SHAPE = 'the body must be JSON like {"model": "SERVICE", "messages": [{"role": "user", "content": "..."}]}'
Parts = dict[str, msgspec.Raw]


class _Said(msgspec.Struct):
    role: str


class _Told(msgspec.Struct):
    """Of `metadata` the one key that is ours."""

    session: str = ""


_decode_parts = msgspec.json.Decoder(Parts).decode
_decode_messages = msgspec.json.Decoder(list[_Said]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_flag = msgspec.json.Decoder(bool | None).decode
_decode_told = msgspec.json.Decoder(_Told | None).decode
_encode = msgspec.json.Encoder().encode


class Asked(msgspec.Struct):
    """A chat request as it came."""

    service: str
    stream: bool
    session: str
    """Empty where the caller named none."""
    guided: bool
    """Whether the conversation has instructions of the caller's own."""
    item: bytes
    """What graders see of it and the agent does not; empty for none."""
    parts: Parts


def read(body: bytes, session_header: str) -> Asked:
    """Raises Declined where it is no such request."""
    try:
        parts = _decode_parts(body)
        service = _decode_text(parts["model"])
        stream = bool(_decode_flag(parts["stream"])) if "stream" in parts else False
        messages = _decode_messages(parts["messages"])
        session = session_header or _session(parts)
    except KeyError as missing:
        raise Declined(400, "missing", f"the body has no {missing}", SHAPE) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Declined(400, "unreadable", f"the body is no chat request: {error}", SHAPE) from None
    if not messages:
        raise Declined(400, "empty", "the conversation has no messages", SHAPE)
    if "\0" in service or len(service) > LONGEST_MODEL:
        raise Declined(404, "model_not_found", "there is no such model", "GET /v1/models lists those of your key")
    if len(session) > LONGEST_SESSION or not session.isprintable():
        raise Declined(400, "session", f"a session's name has at most {LONGEST_SESSION} characters, all printable", "send a shorter one")
    item = bytes(parts.pop("item", b""))
    return Asked(service, stream, session, any(said.role in GUIDES for said in messages), item, parts)


def _session(parts: Parts) -> str:
    """The caller's own names for a conversation, by which it stays with one agent."""
    if (user := parts.get("user")) is not None and bytes(user) != b"null":
        return _decode_text(user)
    told = _decode_told(parts["metadata"]) if "metadata" in parts else None
    return told.session if told else ""


class Prompt:
    """What an agent brings to a chat request: its instructions, and what it may write, where the caller says nothing of either."""

    def __init__(self, agent: Agent) -> None:
        system = {"role": "system", "content": agent.system_prompt}
        self._instructions = _encode(system) if agent.system_prompt else b""
        self._defaults = {"temperature": msgspec.Raw(_encode(agent.temperature))}
        self._longest = msgspec.Raw(_encode(agent.limits.max_turn_tokens))

    def put_before(self, asked: Asked) -> Parts:
        parts = self._defaults | asked.parts
        if "max_tokens" not in parts and "max_completion_tokens" not in parts:
            parts["max_tokens"] = self._longest
        if self._instructions and not asked.guided:
            messages = bytes(parts["messages"]).lstrip()
            parts["messages"] = msgspec.Raw(b"[" + self._instructions + b"," + messages[1:])
        return parts


def body_for(parts: Parts, model: str) -> bytes:
    return _encode(parts | {"model": msgspec.Raw(_encode(model))})


# --- what came back ---------------------------------------------------------------------------------------------------------


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answered(msgspec.Struct):
    usage: _Usage | None = None


_decode_answered = msgspec.json.Decoder(_Answered).decode
CHUNK = b"data: {"


def tokens_of(answer: bytes, streamed: bool) -> int:
    """Tokens that were written, for quotas: as the upstream says, else one for each chunk of a stream."""
    if streamed:
        place = answer.rfind(b'"usage":{')
        if place >= 0:
            line = answer[answer.rfind(b"\n", 0, place) + 1 : answer.find(b"\n", place)]
            if told := _usage(line.removeprefix(b"data:")):
                return told
        return answer.count(CHUNK)
    return _usage(answer)


def _usage(text: bytes) -> int:
    try:
        usage = _decode_answered(text).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    return max(0, usage.completion_tokens) if usage else 0


def listed(services: list[str]) -> dict[str, Any]:
    """As OpenAI lists models."""
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "agent-rft"} for name in services]}
