"""From the bytes of a chat request and its answer to a job card, and to what the release counts. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.agents import Agent, Arm
from agent_rft.contracts.messages import Message, Role, ToolCall, ToolSpec
from agent_rft.contracts.releases import Turn as ReleaseTurn
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.release.violations import Watch
from observability.otlp.messages import arguments_of, plain
from observability.records import fitting
from serving.gateway.ending import Ran, release_turn

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
DONE = "[DONE]"
Object = dict[str, Any]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a request once it is over, as it waits on the disk to become a card."""

    rollout_id: str
    tenant: str
    service: str
    session: str
    agent: str
    arm: Arm
    release: int
    """0: it counts for none."""
    shadow: bool = False
    """Of the live agent's: it was mirrored. Of a candidate's: it is the mirrored one, which nobody saw."""
    graded_share: float = 0.0
    checkpoint: str
    tool_set: str
    limits: Limits
    started_at: str
    """UTC, ISO 8601."""
    seconds: float
    status: int
    trouble: str = ""
    """Why there was no answer; empty where there was one."""
    failed_part: str = ""
    caller: str = ""
    streamed: bool = False
    item: bytes = b""
    asked: bytes
    """The body that the model server was sent."""
    answered: bytes = b""
    parent: str = ""
    """The traceparent header that the request came with."""


def ran_of(kept: Kept) -> Ran:
    """One turn of an agent, as a run that is over."""
    asked, events = _object(kept.asked), events_of(kept.answered, kept.streamed)
    turn, trouble = turn_of(events, kept.streamed), kept.trouble or trouble_in(events)
    opening = tuple(_message(each) for each in _objects(asked.get("messages")))
    rollout = Rollout(
        kept.rollout_id,
        opening,
        tuple(_tools(_objects(asked.get("tools")))),
        kept.limits,
        turns=[turn] if kept.answered else [],
        ending=Ending.INFRA_FAILED if trouble else Ending.ANSWERED,
        reason=trouble,
        failed_part=fitting(kept.failed_part or (kept.checkpoint if trouble else "")),
        answer="" if trouble else turn.text,
        started_at=kept.started_at,
        seconds=kept.seconds,
    )
    return Ran(
        tenant=kept.tenant,
        service=kept.service,
        session=kept.session,
        run_id=kept.rollout_id,
        agent=Agent(checkpoint=kept.checkpoint, tool_set=kept.tool_set, limits=kept.limits),
        agent_id=kept.agent,
        arm=kept.arm,
        release=kept.release,
        caller=kept.caller,
        said=opening,
        rollout=rollout,
        item=_object(kept.item),
        metadata=_one(asked.get("metadata")),
    )


def counted(kept: Kept, ran: Ran) -> ReleaseTurn | None:
    """What it adds to its session; nothing outside a release."""
    over = dt.datetime.fromisoformat(kept.started_at) + dt.timedelta(seconds=kept.seconds)
    return release_turn(ran, over, shadow=kept.shadow, graded_share=kept.graded_share, watch=Watch()) if kept.release else None


# --- the answer -------------------------------------------------------------------------------------------------------------


def events_of(answered: bytes, streamed: bool) -> list[Object]:
    """What came back, a stream's chunk by chunk."""
    return list(_events(answered)) if streamed else [_object(answered)]


def turn_of(events: Iterable[Object], streamed: bool) -> Turn:
    """What the model said. A stream that broke off is as much of it as came."""
    texts: list[str] = []
    calls: dict[int, Object] = {}
    usage: Object = {}
    chunks = 0
    for event in events:
        usage = _one(event.get("usage")) or usage
        for choice in _objects(event.get("choices"))[:1]:
            said = _one(choice.get("delta")) or _one(choice.get("message"))
            chunks += bool(said.get("content") or said.get("tool_calls"))
            texts.append(plain(said.get("content") or ""))
            _gather(calls, _objects(said.get("tool_calls")))
    return Turn(
        "".join(texts),
        context_tokens=_count(usage.get("prompt_tokens")),
        sampled_tokens=_count(usage.get("completion_tokens")) or (chunks if streamed else 0),
        calls=tuple(_call(call) for _, call in sorted(calls.items())),
    )


def trouble_in(events: Sequence[Object]) -> str:
    """Why what came with a good status is no answer. A server that fails within its stream can say so only there."""
    if wrong := next((event["error"] for event in events if event.get("error")), None):
        return f"answered with an error: {plain(_one(wrong).get('message') or wrong)[:300]}"
    return "" if any(_objects(event.get("choices")) for event in events) else "its answer held no answer"


def _events(answered: bytes) -> Iterator[Object]:
    for line in answered.decode(errors="replace").splitlines():
        if line.startswith("data:") and (text := line[5:].strip()) != DONE:
            yield _object(text)


def _gather(calls: dict[int, Object], parts: Iterable[Object]) -> None:
    """A stream tells a call piece by piece, by its number."""
    for position, part in enumerate(parts):
        number = part["index"] if isinstance(part.get("index"), int) else position
        call, function = calls.setdefault(number, {"id": "", "name": "", "arguments": ""}), _one(part.get("function"))
        call["id"] = call["id"] or plain(part.get("id") or "")
        call["name"] += plain(function.get("name") or "")
        call["arguments"] += plain(function.get("arguments") or "")


# --- what was asked ---------------------------------------------------------------------------------------------------------


def _message(said: Object) -> Message:
    calls = tuple(
        _call({"id": call.get("id"), **{name: _one(call.get("function")).get(name) for name in ("name", "arguments")}})
        for call in _objects(said.get("tool_calls"))
    )
    return Message(ROLES.get(plain(said.get("role")), "user"), _text(said.get("content")), calls, plain(said.get("tool_call_id") or ""))


def _text(content: Any) -> str:
    """Pictures and the like stand as a mark of what they were."""
    if not isinstance(content, list):
        return plain(content or "")
    parts = cast(list[Any], content)
    return "".join(plain(part["text"]) if isinstance(part, dict) and "text" in part else f"[{_kind(part)}]" for part in parts)


def _kind(part: Any) -> str:
    return plain(_one(part).get("type") or "part")


def _call(call: Object) -> ToolCall:
    return ToolCall(plain(call.get("id") or ""), plain(call.get("name") or ""), arguments_of(call.get("arguments")))


def _tools(tools: Iterable[Object]) -> Iterator[ToolSpec]:
    for tool in tools:
        told = _one(tool.get("function")) or tool
        yield ToolSpec(plain(told.get("name") or ""), plain(told.get("description") or ""), _one(told.get("parameters")))


def _object(text: bytes | str) -> Object:
    try:
        return _one(msgspec.json.decode(text)) if text else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _one(value: Any) -> Object:
    return cast(Object, value) if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Object]:
    return [_one(each) for each in cast(list[Any], value)] if isinstance(value, list) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0
