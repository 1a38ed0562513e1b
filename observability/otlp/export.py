"""A job card as a trace, in GenAI's names, with our own beside them for what they have no word for.

One span for the agent, one for each turn of its model, one for each result of a tool. A card keeps no time of each turn, so
these spans stand in the order of what happened, a tool's with its true length, a turn's with none. What OTLP does not carry:
token ids and log-probabilities (the store has none either), a start that is not in UTC, digits of a time below a nanosecond's.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn, answers_of
from observability.otlp import names
from observability.otlp.cards import NS, nanoseconds
from observability.otlp.ids import is_uuid7, span_id_of, started_ns, trace_id_of
from observability.otlp.names import OURS
from observability.otlp.spans import Event, Span
from observability.records import DatedGrade
from observability.texts import without_halves

INTERNAL, CLIENT = 1, 3  # kinds of spans
RESOURCE = {"service.name": "agent-rft"}
VERSIONS = ("code", "checkpoint", "dataset", "tool_set", "grader")


def spans_of(card: JobCard, grades: Sequence[DatedGrade] = ()) -> tuple[Span, ...]:
    """The card's trace, the agent's span first. `grades`: all it was ever given; else the one on the card."""
    start = _start_ns(card)
    end = start + round(card.rollout.seconds * NS) if card.rollout.ending else 0
    at = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=(end or start) // 1000)
    dated = grades or ([DatedGrade(card.grade, at)] if card.grade else [])
    main = _span(card, ("agent",), start, end, "invoke_agent", name="invoke_agent", kind=INTERNAL, attributes=_of_agent(card))
    main = msgspec.structs.replace(main, parent_id="", events=tuple(_evaluation(each) for each in dated))
    if card.rollout.ending is Ending.INFRA_FAILED:
        main = msgspec.structs.replace(main, failed=True, message=without_halves(card.rollout.reason))
    return (main, *_steps(card, start))


def _start_ns(card: JobCard) -> int:
    """A rollout that never started has only the time in its id."""
    if card.started_at:
        return nanoseconds(_in_utc(card.started_at))
    return max(1, started_ns(card.rollout_id)) if is_uuid7(card.rollout_id) else 1


def _in_utc(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _span(
    card: JobCard,
    place: tuple[str | int, ...],
    start_ns: int,
    end_ns: int,
    operation: str,
    *,
    name: str,
    kind: int,
    attributes: dict[str, Any],
) -> Span:
    """With the rollout's id on each, for they may come one by one."""
    return Span(
        trace_id=trace_id_of(card.rollout_id),
        span_id=span_id_of(card.rollout_id, *place),
        parent_id=span_id_of(card.rollout_id, "agent"),
        name=name,
        kind=kind,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes={names.OPERATION: operation, OURS + "rollout_id": card.rollout_id} | attributes,
        resource=RESOURCE,
        scope="agent_rft",
    )


def _of_agent(card: JobCard) -> dict[str, Any]:
    rollout = card.rollout
    told: dict[str, Any] = {
        names.INPUT: _messages(rollout.opening),
        names.DEFINITIONS: _json([tool.as_openai() for tool in rollout.tools]),
        OURS + "kind": card.kind,
        OURS + "tenant": card.tenant,
        OURS + "run_id": card.run_id,
        OURS + "row_id": card.row_id,
        OURS + "step": card.step,
        OURS + "sample_index": card.sample_index,
        OURS + "reference_answer": _json(card.reference_answer),
        OURS + "metadata": _json(card.metadata),
        OURS + "item": None if card.item is None else _json(card.item),
        OURS + "advantage": card.advantage,
        OURS + "ending": rollout.ending and rollout.ending.value,
        OURS + "reason": rollout.reason,
        OURS + "failed_part": rollout.failed_part,
        OURS + "limits": _json(msgspec.to_builtins(rollout.limits)),
        OURS + "cost": _json(msgspec.to_builtins(card.cost)),
        OURS + "seconds": float(rollout.seconds),
        OURS + "rollout_seed": str(rollout.seed),
        OURS + "seed": None if card.versions.seed is None else str(card.versions.seed),
        **{OURS + name: getattr(card.versions, name) for name in VERSIONS},
    }
    if rollout.ending is Ending.ANSWERED:
        told[names.OUTPUT] = _messages([Message("assistant", rollout.answer)])
    return {name: without_halves(value) if isinstance(value, str) else value for name, value in told.items() if value is not None}


def _steps(card: JobCard, start: int) -> Iterator[Span]:
    """Each turn a nanosecond after what came before it; the results of its calls after it, side by side."""
    at, heard = start, card.rollout.opening
    for number, turn in enumerate(card.rollout.turns):
        at += 1
        yield _span(card, ("turn", number), at, at, "chat", name="chat", kind=CLIENT, attributes=_of_turn(card, turn, heard))
        calls = {call.call_id: call for call in turn.calls}
        longest = 0
        for position, result in enumerate(turn.results.values(), 1):
            lasted = round(result.seconds * NS)
            longest = max(longest, position + lasted)
            yield _tool_span(card, number, at + position, lasted, calls.get(result.call_id), result)
        at += longest
        heard = tuple(answers_of(turn))


def _of_turn(card: JobCard, turn: Turn, heard: Sequence[Message]) -> dict[str, Any]:
    return {
        "gen_ai.provider.name": "agent_rft",
        "gen_ai.request.model": without_halves(card.versions.checkpoint),
        names.INPUT: _messages(heard),
        names.OUTPUT: _messages([Message("assistant", turn.text, turn.calls)]),
        "gen_ai.usage.input_tokens": turn.context_tokens or len(turn.context_ids),
        "gen_ai.usage.output_tokens": turn.sampled_tokens or len(turn.sampled_ids),
    }


def _tool_span(card: JobCard, turn: int, at: int, lasted: int, call: ToolCall | None, result: ToolResult) -> Span:
    told: dict[str, Any] = {
        "gen_ai.tool.name": call and without_halves(call.name),
        "gen_ai.tool.call.id": without_halves(result.call_id),
        "gen_ai.tool.call.arguments": call and _json(call.arguments),
        "gen_ai.tool.call.result": without_halves(result.output),
        names.ERROR: result.error and without_halves(result.error),
        OURS + "attempts": result.attempts,
        OURS + "seconds": float(result.seconds),
    }
    attributes = {name: value for name, value in told.items() if value is not None}
    place = ("turn", turn, result.call_id)
    span = _span(card, place, at, at + lasted, "execute_tool", name="execute_tool", kind=INTERNAL, attributes=attributes)
    return msgspec.structs.replace(span, failed=bool(result.error))


def _evaluation(dated: DatedGrade) -> Event:
    grade = dated.grade
    told: dict[str, Any] = {
        names.EVALUATION_NAME: grade.grader.name,
        names.SCORE: grade.reward,
        names.LABEL: _label(grade),
        OURS + "grader.version": grade.grader.version,
        OURS + "grader.hash": grade.grader.hash,
        OURS + "grade.parts": _json(grade.parts),
        OURS + "grade.errors": _json(grade.errors),
    }
    attributes = {name: value for name, value in told.items() if value is not None}
    return Event(names.EVALUATION, nanoseconds(_in_utc(dated.graded_at.isoformat())), attributes)


def _label(grade: Grade) -> str | None:
    return None if grade.passed is None else "pass" if grade.passed else "fail"


def _messages(said: Sequence[Message]) -> str:
    return _json([{"role": message.role, "parts": [*_parts(message)]} for message in said])


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        yield {"type": "tool_call_response", "id": message.call_id, "response": message.content}
        return
    if message.content:
        yield {"type": "text", "content": message.content}
    for call in message.tool_calls:
        yield {"type": "tool_call", "id": call.call_id, "name": call.name, "arguments": call.arguments}


def _json(value: Any) -> str:
    return without_halves(json.dumps(value, ensure_ascii=False, default=str))
