"""A rollout as graders see it: OpenAI's `sample`, and how the rollout ended."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec

from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Rollout

FINISH_REASONS = {Ending.ANSWERED: "stop", Ending.OUT_OF_BUDGET: "length"}


def sample_of(rollout: Rollout) -> dict[str, Any]:
    """`output_json` is there only when the answer is valid JSON. A rollout without an answer has an empty `output_text`."""
    text = rollout.answer if rollout.ending is Ending.ANSWERED else ""
    message = {"role": "assistant", "content": text}
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": [_as_openai(call) for turn in rollout.turns for call in turn.calls],
        "choices": [{"index": 0, "message": message, "finish_reason": FINISH_REASONS.get(rollout.ending or Ending.MALFORMED, "stop")}],
        "ending": rollout.ending.value if rollout.ending else None,
        "tool_calls": rollout.tool_calls,
    }
    with contextlib.suppress(ValueError, RecursionError):
        sample["output_json"] = msgspec.json.decode(text)  # strict: no NaN, nothing that could not be sent on as JSON
    return sample


def _as_openai(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
    }
