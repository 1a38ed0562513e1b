"""Rows from stored job cards: what was really asked, as training rows. Pure: whoever calls reads the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending
from agent_rft.contracts.rows import Row
from agent_rft.datasets.harvest import HELD_OUT, Harvest, Newness, only_new
from agent_rft.rollouts.cards import own_keys, row_tried

Redact = Callable[[str], str]
Approved = Callable[[JobCard], bool]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which cards become rows. What is not said leaves none out."""

    kinds: tuple[str, ...] = ()
    least_reward: float | None = None
    most_reward: float | None = None
    """Of the newest grade. With either, a card without a score is left out."""
    tools: tuple[str, ...] = ()
    """Tools that the rollout called, each of them."""


def rows_of_cards(
    cards: Iterable[JobCard], choice: Choice, held_out: Sequence[Row], *, redact: Redact, approved: Approved | None = None
) -> Harvest:
    """One row for each question, the first card's that asks it.

    `approved` says whether a person has approved of a card; with it, others are left out, and the answer of a card that has no
    reference is the reference. A card whose prompt validation asks never becomes a row: it is compared before redaction and after.
    """
    newness, left_out, rows = Newness(held_out), Counter[str](), list[Row]()
    for card in cards:
        row = _row_of(card, approved)
        if why := _unwanted(card, choice, approved):
            left_out[why] += 1
        elif row is None:
            left_out["no reference answer"] += 1
        elif newness.held_out(row):
            left_out[HELD_OUT] += 1
        else:
            rows.append(redacted(row, redact))
    new = only_new(rows, held_out)
    return Harvest(new.rows, dict(left_out + Counter(new.left_out)))


def _unwanted(card: JobCard, choice: Choice, approved: Approved | None) -> str:
    if choice.kinds and card.kind not in choice.kinds:
        return "of another kind"
    if card.rollout.ending is Ending.INFRA_FAILED:
        return "spoilt by infrastructure"
    reward = card.grade.reward if card.grade else None
    least, most = choice.least_reward, choice.most_reward
    if least is not None or most is not None:
        if reward is None:
            return "without a score"
        if reward < (0.0 if least is None else least) or reward > (1.0 if most is None else most):
            return "of another reward"
    if not set(choice.tools) <= {call.name for turn in card.rollout.turns for call in turn.calls}:
        return "without the tools"
    if approved and not approved(card):
        return "not approved by a person"
    return ""


def _row_of(card: JobCard, approved: Approved | None) -> Row | None:
    """None without an answer to grade by, or where nobody asked anything. A row without a reference answer has one in its own keys
    if a grader could score it; it needs its messages, since only rows of OpenAI's shape may leave the reference out."""
    tried, own, reference, opening = row_tried(card), own_keys(card), card.reference_answer, card.rollout.opening
    if reference is None and approved and card.rollout.ending is Ending.ANSWERED:
        reference = card.rollout.answer
    gradable = reference not in (None, "") or (own and card.grade and card.grade.reward is not None)
    if not gradable or not tried.prompt.strip() or opening[-1].role != "user":
        return None
    return msgspec.structs.replace(
        tried,
        id=f"card-{card.rollout_id}",
        reference_answer=reference,
        metadata={**card.metadata, "from_row": card.row_id, "from_kind": card.kind},
        messages=opening if len(opening) > 1 or reference in (None, "") else (),
        extra=own,
    )


# --- redaction ----------------------------------------------------------------------------------------------------------


def redacted(row: Row, redact: Redact) -> Row:
    """Every text that a person or a tool may have written goes through `redact`; keys, ids, `expected` and tool descriptions do not."""
    return msgspec.structs.replace(
        row,
        prompt=redact(row.prompt),
        messages=tuple(_redacted_message(message, redact) for message in row.messages),
        reference_answer=_redacted_value(row.reference_answer, redact),
        metadata=_redacted_value(row.metadata, redact),
        extra=_redacted_value(row.extra, redact),
        as_given={},  # what was not gone through does not go along
    )


def _redacted_message(message: Message, redact: Redact) -> Message:
    calls = tuple(ToolCall(call.call_id, call.name, _redacted_value(call.arguments, redact)) for call in message.tool_calls)
    return msgspec.structs.replace(message, content=redact(message.content), tool_calls=calls)


def _redacted_value(value: Any, redact: Redact) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted_value(held, redact) for key, held in cast(dict[str, Any], value).items()}
    return [_redacted_value(held, redact) for held in cast(list[Any], value)] if isinstance(value, list) else value
