"""A job card laid out for a page: each turn's claims beside what the system observed of it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Rollout, ToolResult, Turn
from observability.story import CALL_BLOCK

LINES, CHARACTERS = 12, 1_500
"""Of a text that are shown before a click."""
PLAN = re.compile(r"<(think|plan|thinking)>(.*?)</\1>", re.DOTALL)


class Call(msgspec.Struct, frozen=True):
    number: int
    """Within the card, from 1."""
    position: int
    """Of its step."""
    name: str
    arguments: str
    result: ToolResult | None
    result_position: int | None


class TurnView(msgspec.Struct, frozen=True):
    number: int
    position: int
    """Of its message."""
    plan: str
    """What it thought aloud, where it did."""
    said: str
    raw: str
    """The words as they came; empty where `said` is all of them."""
    calls: tuple[Call, ...]
    context_tokens: int
    sampled_tokens: int
    tool_seconds: float
    """Calls of one turn run side by side, so the longest counts."""
    answers: bool
    """Whether its words are the answer, which is shown as such."""


class Long(msgspec.Struct, frozen=True):
    """A text in two: what is shown at once, and the rest."""

    head: str
    rest: str


def turns_of(rollout: Rollout) -> tuple[TurnView, ...]:
    views: list[TurnView] = []
    position = number = 0
    for turn in rollout.turns:
        view = _turn(turn, len(views) + 1, position, number, _answers(turn, rollout))
        position, number = position + 1 + len(turn.calls) + len(turn.results), number + len(turn.calls)
        views.append(view)
    return tuple(views)


def _turn(turn: Turn, number: int, position: int, calls_before: int, answers: bool) -> TurnView:
    """Positions are those of the stored steps: the message, its calls, then their results as they came."""
    results = {call_id: position + 1 + len(turn.calls) + place for place, call_id in enumerate(turn.results)}
    calls = tuple(
        Call(
            calls_before + place + 1,
            position + 1 + place,
            call.name,
            as_lines(call.arguments),
            turn.results.get(call.call_id),
            results.get(call.call_id),
        )
        for place, call in enumerate(turn.calls)
    )
    words = CALL_BLOCK.sub("", turn.text) if turn.calls else turn.text
    plan = "\n\n".join(found[1].strip() for found in PLAN.findall(words))
    said = PLAN.sub("", words).strip()
    whole = max((result.seconds for result in turn.results.values()), default=0.0)
    raw = turn.text if turn.text.strip() != said else ""
    return TurnView(number, position, plan, said, raw, calls, turn.context_tokens, turn.sampled_tokens, whole, answers)


def _answers(turn: Turn, rollout: Rollout) -> bool:
    return rollout.ending is Ending.ANSWERED and turn is rollout.turns[-1] and turn.text.strip() == rollout.answer


def prompt_of(opening: Sequence[Message]) -> str:
    """What the person asked last."""
    return next((message.content for message in reversed(opening) if message.role == "user"), "")


def as_lines(values: Mapping[str, Any]) -> str:
    """Arguments as a person reads them: one a line, texts as they are."""
    return "\n".join(f"{name}: {value if isinstance(value, str) else plain(value)}" for name, value in values.items())


def plain(value: object) -> str:
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def long(text: str, lines: int = LINES, characters: int = CHARACTERS) -> Long:
    """Cut at the end of a line where one ends in time."""
    head = text[:characters]
    if head.count("\n") >= lines:
        head = "\n".join(head.split("\n")[:lines])
    elif len(text) > characters and "\n" in head[characters // 2 :]:
        head = head[: head.rindex("\n")]
    rest = text[len(head) :]
    return Long(text, "") if len(rest) < 80 else Long(head, rest.removeprefix("\n"))


def share(value: object) -> float | None:
    """Of a grade's part that is a share of one, which a bar can show."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None
