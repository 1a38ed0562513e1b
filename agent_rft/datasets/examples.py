"""Worked examples: whole conversations with calls, results and an answer, in the shape of OpenAI's supervised fine-tuning."""

from __future__ import annotations

import io
from collections.abc import Sequence

from agent_rft.contracts.errors import Fault, FaultsFound
from agent_rft.contracts.messages import Message
from agent_rft.datasets.rows import conversation, json_object

SHAPE = 'an example is {"messages": [{"role": "user", ...}, {"role": "assistant", "tool_calls": [...]}, {"role": "tool", ...}, ...]}'
Example = tuple[Message, ...]


def parse_examples(name: str, content: bytes) -> list[Example]:
    """Each line's conversation, which ends with the assistant's answer; or every fault of the file at once."""
    examples: list[Example] = []
    faults: list[Fault] = []
    for number, line in enumerate(io.BytesIO(content.removeprefix(b"\xef\xbb\xbf")), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        value = json_object(line.strip(), where, SHAPE)
        if isinstance(value, Fault):
            faults.append(value)
            continue
        messages, found = conversation(value.get("messages"), "assistant")
        found = found or _out_of_order(messages)
        faults += [Fault(where, what, cure) for what, cure in found]
        examples.append(messages)
    if not examples and not faults:
        faults.append(Fault(name, "holds no examples", SHAPE))
    if faults:
        raise FaultsFound(f"{name} cannot be used:", faults)
    return examples


def _out_of_order(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Who may speak after whom, as it is in a rollout: otherwise the model would practise what it never meets."""
    found: list[tuple[str, str]] = []
    for at, (before, after) in enumerate(zip((None, *messages), messages, strict=False)):
        called = before is not None and (before.role == "tool" or bool(before.tool_calls))
        if after.role == "tool" and not called:
            found.append((f"messages[{at}] is a tool's, and nothing was called", "put the assistant's tool_calls before it"))
        if before is not None and before.tool_calls and after.role != "tool":
            found.append((f"messages[{at}] should be a tool's: messages[{at - 1}] calls one", "put what the tool returned after the call"))
        if after.role == "assistant" and (before is None or before.role == "assistant"):
            found.append((f"messages[{at}] is the assistant's, and nobody spoke before it", "a user's message, or what a tool returned"))
    return found
