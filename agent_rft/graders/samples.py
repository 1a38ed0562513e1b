"""A rollout as graders see it: OpenAI's `sample`, and beside its keys how the rollout went and ended.

OpenAI's keys are output_text, output_json, output_tools and choices. Ours: `rollout_id`, `ending`, `tool_calls`, and `trajectory`, the
turns in order, each {"text", "calls": [{"id", "name", "arguments", "output", "error", "seconds"}]}. `output` is None for a
call that never came back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn

FINISH_REASONS = {Ending.ANSWERED: "stop", Ending.OUT_OF_BUDGET: "length"}


NOT_JSON: Any = object()


def sample_of(rollout: Rollout) -> dict[str, Any]:
    """A rollout without an answer has an empty `output_text`."""
    text = rollout.answer if rollout.ending is Ending.ANSWERED else ""
    calls = [_as_openai(call) for turn in rollout.turns for call in turn.calls]
    return {
        **sample_of_text(text, calls, FINISH_REASONS.get(rollout.ending or Ending.MALFORMED, "stop")),
        "rollout_id": rollout.rollout_id,
        "ending": rollout.ending.value if rollout.ending else None,
        "tool_calls": rollout.tool_calls,
        "trajectory": [{"text": turn.text, "calls": [_as_seen(call, turn) for call in turn.calls]} for turn in rollout.turns],
    }


def sample_of_text(text: str, calls: Sequence[dict[str, Any]] = (), finish_reason: str = "stop") -> dict[str, Any]:
    """OpenAI's keys alone. `output_json` is there only when the answer is valid JSON."""
    message = {"role": "assistant", "content": text}
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": list(calls),
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    value = json_of(text)
    return sample if value is NOT_JSON else {**sample, "output_json": value}


def json_of(text: str) -> Any:
    """NOT_JSON for anything else. Strict: no NaN, nothing that could not be sent on as JSON."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return NOT_JSON


def _as_seen(call: ToolCall, turn: Turn) -> dict[str, Any]:
    """A call and what came of it, as the system observed it."""
    result = turn.results.get(call.call_id)
    return {
        "id": call.call_id,
        "name": call.name,
        "arguments": call.arguments,
        "output": result.output if result else None,
        "error": result.error if result else None,
        "seconds": result.seconds if result else None,
    }


def _as_openai(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
    }


SAID_NOTHING = sample_of(Rollout("", (), (), Limits(), ending=Ending.MALFORMED))
"""The sample of a try that brought nothing: every key that is always there, without content."""
