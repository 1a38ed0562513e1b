"""What a model's turn says: an answer, tool calls, or nothing that can be read.

Two ways of writing a call are known: `<tool_call>` blocks with `name` and `arguments` anywhere in the turn (Hermes, Qwen),
and a turn that is nothing but JSON with `name` and `parameters` (Llama 3). The words tell which; no answer of ours has the
second's shape.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

OPEN, CLOSE = "<tool_call>", "</tool_call>"
BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
PYTHON_TAG = "<|python_tag|>"
DECODER = json.JSONDecoder()
BARE_KEYS = ({"name", "parameters"}, {"type", "name", "parameters"})
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


class Answer(msgspec.Struct, frozen=True):
    text: str


class Calls(msgspec.Struct, frozen=True):
    calls: tuple[tuple[str, dict[str, Any]], ...]
    """Name and arguments, in the order written."""


class Malformed(msgspec.Struct, frozen=True):
    why: str


Said = Answer | Calls | Malformed


def parse_turn(text: str) -> Said:
    """Read a whole turn. One broken call spoils the turn: running the rest would reward half a sentence."""
    spoken = THOUGHT.sub("", text)
    if OPEN not in spoken and CLOSE not in spoken:
        return _parse_bare(spoken.strip())
    blocks = BLOCK.findall(spoken)
    if spoken.count(OPEN) != len(blocks) or spoken.count(CLOSE) != len(blocks):
        return Malformed(f"{OPEN} and {CLOSE} do not pair up")
    calls: list[tuple[str, dict[str, Any]]] = []
    for block in blocks:
        call = _parse_call(block)
        if isinstance(call, Malformed):
            return call
        calls.append(call)
    return Calls(tuple(calls))


def _parse_bare(spoken: str) -> Said:
    """A turn without tags: Llama's calls, one or several with a semicolon between, or an answer."""
    if not spoken:
        return Malformed("the turn is empty")
    rest = spoken.removeprefix(PYTHON_TAG).lstrip()
    calls: list[tuple[str, dict[str, Any]]] = []
    while rest:
        try:
            value, end = DECODER.raw_decode(rest)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict) or set(value) not in BARE_KEYS:
            break
        if not isinstance(value["name"], str) or not isinstance(value["parameters"], dict):
            break
        calls.append((value["name"], value["parameters"]))
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    if calls and not rest:
        return Calls(tuple(calls))
    if calls or spoken.startswith(PYTHON_TAG):
        return Malformed(f"a tool call is not JSON with name and parameters: {rest[:80]!r}")
    return Answer(spoken)


def _parse_call(block: str) -> tuple[str, dict[str, Any]] | Malformed:
    try:
        value = json.loads(block)
    except (ValueError, RecursionError):
        return Malformed(f"a tool call is not JSON: {block.strip()[:80]!r}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return Malformed("a tool call has no name")
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):  # some models write the arguments as a JSON string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return Malformed(f"the arguments of {value['name']} are not JSON")
    if not isinstance(arguments, dict):
        return Malformed(f"the arguments of {value['name']} are not an object")
    return value["name"], arguments
