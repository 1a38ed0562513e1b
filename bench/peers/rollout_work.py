"""What both sides of bench/rollouts.py are given: rows, tools, the right answer, and the model's script. Standard library only."""

from __future__ import annotations

import json

CALLS = 4
"""Turns that call a tool, before the one that answers."""
MODEL = "scripted"
SYSTEM = "You are a research assistant. Find the answer in the filings with the tools, then give the number alone."
ANSWER = "13.4%"
PAGE = "The operating margin of the third quarter was thirteen point four percent, up from twelve percent a year before. " * 8


def questions(count: int) -> list[str]:
    return [f"What was the operating margin of company {number} in the third quarter?" for number in range(count)]


def search(query: str) -> str:
    """Find passages in the filings.

    Args:
        query: what to look for
    """
    return f"2 hits for {query!r}\n{PAGE[:400]}"


def read(path: str) -> str:
    """Read a filing.

    Args:
        path: which one
    """
    return f"{path}\n{PAGE}"


TOOLS = {"search": search, "read": read}
SCRIPT = [("search", {"query": "operating margin Q3"}), ("read", {"path": "filings/10-Q.txt"})] * (CALLS // 2)


def completion(turn: int) -> bytes:
    """The scripted model's reply in OpenAI's shape: a call in each of the first turns, then the answer."""
    message: dict[str, object] = {"role": "assistant", "content": ANSWER}
    if turn < CALLS:
        name, arguments = SCRIPT[turn]
        call = {"id": f"made-{turn}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if turn < CALLS else "stop", "logprobs": None}
    prompt = 200 + 260 * turn
    usage = {"prompt_tokens": prompt, "completion_tokens": 24, "total_tokens": prompt + 24}
    whole = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [choice],
        "usage": usage,
    }
    return json.dumps(whole).encode()
