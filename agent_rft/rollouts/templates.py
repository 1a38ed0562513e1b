"""What a chat template puts around the words: as text it is the template's affair, as tokens it is ours.

A rollout's tokens are never made twice. The opening is rendered and encoded once; what the model samples is kept as
sampled, its end-of-turn token included; and before the next turn only the template's own tokens between the two turns
are added. Rendering the whole conversation anew would re-tokenise the model's words, and the ids trained on would no
longer be the ids sampled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.rollouts.parsing import Calls, parse_turn

CURE = (
    "use a model whose chat template knows tool messages and writes calls as <tool_call> blocks (Qwen2.5-Instruct's) or as JSON with"
    " name and parameters (Llama 3's), or put such a template into its tokenizer"
)
SENTINEL = "zqxturnzqx"
PROBES = ("zqxonezqx", "zqxtwozqx")
CACHED = 4096


class Render(Protocol):
    def __call__(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool) -> str: ...


class ChatTemplate:
    """The tokens before the model's first turn, and those between a turn of its and the next."""

    def __init__(self, render: Render, encode: Callable[[str], list[int]], turn_ends: Sequence[str]) -> None:
        """`turn_ends` are the texts of the tokens that the model may end its turn with."""
        self._render = render
        self._turn_ends = tuple(turn_ends)
        self._encode = encode
        self._opening = functools.lru_cache(CACHED)(self._encode_opening)
        self._between = functools.lru_cache(CACHED)(self._encode_between)
        self._check()

    def opening_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        """The conversation so far, up to where the model speaks."""
        return list(self._opening(msgspec.json.encode((messages, tools))))

    def between_ids(self, tool_messages: Sequence[Message]) -> list[int]:
        """What follows the model's own end-of-turn token: the tool results, up to where the model speaks again."""
        return list(self._between(tuple((message.content, message.call_id) for message in tool_messages)))

    def _encode_opening(self, key: bytes) -> tuple[int, ...]:
        messages, tools = msgspec.json.decode(key, type=tuple[tuple[Message, ...], tuple[ToolSpec, ...]])
        text = self._render([as_chat(m) for m in messages], [t.as_openai() for t in tools] or None, add_generation_prompt=True)
        return tuple(self._encode(text))

    def _encode_between(self, results: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
        return tuple(self._encode(self.between_text([Message("tool", content, call_id=call_id) for content, call_id in results])))

    def between_text(self, tool_messages: Sequence[Message]) -> str:
        """The text that `between_ids` encodes."""
        said = [Message("user", "?"), Message("assistant", SENTINEL), *tool_messages]
        text = self._render([as_chat(message) for message in said], None, add_generation_prompt=True)
        after = text.partition(SENTINEL)[2]
        for end in self._turn_ends:
            if after.startswith(end):
                return after[len(end) :]
        raise UserError(f"the chat template does not end the model's turn with one of {self._turn_ends}, but with {after[:20]!r}", CURE)

    def _check(self) -> None:
        """Fail when the model is loaded, not at the first tool call."""
        try:
            between = self.between_text([Message("tool", probe, call_id=f"call-{i}") for i, probe in enumerate(PROBES)])
        except UserError:
            raise
        except Exception as error:  # a template is a program of somebody else's: it may raise anything
            raise UserError(f"the chat template does not render tool messages: {error}", CURE) from error
        first, second = (between.find(probe) for probe in PROBES)
        if not 0 <= first < second:
            raise UserError("the chat template leaves tool results out, or changes their order", CURE)
        without = self._render([as_chat(Message("user", "?"))], None, add_generation_prompt=False)
        prompt = self._render([as_chat(Message("user", "?"))], None, add_generation_prompt=True)[len(without) :]
        if not prompt or not between.endswith(prompt):
            raise UserError("the chat template does not hand the turn back to the model after tool results", CURE)
        self._check_calls()

    def _check_calls(self) -> None:
        """The way in which the template writes a call is the one the model has learnt: it has to be one that we read."""
        name, value = PROBES
        call = ToolCall("call-1", name, {"query": value})
        asked, tools = [as_chat(Message("user", "?"))], [ToolSpec(name).as_openai()]
        before = self._render(asked, tools, add_generation_prompt=True)
        try:
            after = self._render([*asked, as_chat(Message("assistant", "", (call,)))], tools, add_generation_prompt=False)
        except Exception as error:
            raise UserError(f"the chat template does not render tool calls: {error}", CURE) from error
        said = after[next((i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), len(before)) :]
        for end in self._turn_ends:
            said = said.partition(end)[0]
        if name in said and parse_turn(said) != Calls(((call.name, call.arguments),)):  # one that leaves calls out tells nothing
            raise UserError(f"the chat template writes a tool call in a way that is not read here: {said.strip()[:120]!r}", CURE)


def as_chat(message: Message) -> dict[str, Any]:
    """The shape that chat templates read."""
    chat: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        chat["tool_calls"] = [
            {"type": "function", "id": call.call_id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.call_id:
        chat["tool_call_id"] = message.call_id
    return chat
