"""A job card as rows of the store, and back. Pure."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from observability.redaction.redact import Removal
from observability.texts import Blobs, to_json

Values = dict[str, Any]
VERSIONS = ("code", "checkpoint", "dataset", "tool_set", "grader", "seed")
COSTS = ("context_tokens", "sampled_tokens", "tool_calls", "seconds", "tool_seconds")
JOB = ("rollout_id", "kind", "tenant", "run_id", "step", "row_id", "sample_index", "reference_answer", "metadata", "item", "advantage")
LONG = 1000
"""Characters from which on a tool's output is a blob: agents read the same documents again and again."""


class RecordedCard(msgspec.Struct, frozen=True):
    """A card on its way into the store, and a line of the file that holds cards which did not get there."""

    card: JobCard
    recorded_at: dt.datetime
    removed: tuple[Removal, ...] | None = None
    """What redaction took out of it; None where nobody looked."""


class DatedGrade(msgspec.Struct, frozen=True):
    grade: Grade
    graded_at: dt.datetime


class StoredCard(msgspec.Struct, frozen=True):
    """A card as read back. Its rollout carries no token ids: the store keeps words and counts."""

    card: JobCard
    """Its grade is the newest one."""
    recorded_at: dt.datetime
    grades: tuple[DatedGrade, ...]
    """Every grade it was ever given, oldest first."""
    removed: tuple[Removal, ...] | None = None


class CardRows(NamedTuple):
    card: Values
    steps: list[Values]
    grades: list[Values]
    blobs: dict[str, str]
    """The texts that the rows name by their hash."""


def without_token_ids(card: JobCard) -> JobCard:
    """The card as it will be stored, sharing nothing that the rollout's owner may still change."""
    turns = [
        Turn(
            turn.text,
            context_tokens=turn.context_tokens or len(turn.context_ids),
            sampled_tokens=turn.sampled_tokens or len(turn.sampled_ids),
            calls=turn.calls,
            results=dict(turn.results),
        )
        for turn in card.rollout.turns
    ]
    return msgspec.structs.replace(card, rollout=msgspec.structs.replace(card.rollout, turns=turns))


def rows_of(recorded: RecordedCard) -> CardRows:
    """Of everything that makes up a card; its places in the ledger and its salts are for the store to give."""
    card, blobs = recorded.card, Blobs()
    rollout = card.rollout
    row: Values = {name: getattr(card, name) for name in JOB}
    row |= {name: getattr(card.versions, name) for name in VERSIONS}
    row |= {name: getattr(card.cost, name) for name in COSTS}
    row |= {name: _text_or_none(card.metadata.get(name)) for name in ("task_type", "difficulty")}
    row |= {"started_at": _moment(card.started_at) or recorded.recorded_at, "recorded_at": recorded.recorded_at}
    row |= {"ending": rollout.ending and rollout.ending.value, "reason": rollout.reason, "failed_part": rollout.failed_part}
    row |= {"answer": rollout.answer, "limits": msgspec.to_builtins(rollout.limits), "rollout_seed": rollout.seed}
    row |= {"opening": blobs.put(to_json(msgspec.to_builtins(rollout.opening)))}
    row["removed"] = None if recorded.removed is None else msgspec.to_builtins(recorded.removed)
    row["tools"] = blobs.put(to_json(msgspec.to_builtins(rollout.tools)))
    steps = [
        with_blob(step, blobs) | {"rollout_id": card.rollout_id, "tenant": card.tenant, "position": position}
        for position, step in enumerate(_steps(rollout))
    ]
    given = [grade_row(card.rollout_id, card.tenant, card.grade, recorded.recorded_at)] if card.grade else []
    return CardRows(row, steps, given, blobs.texts)


def grade_row(rollout_id: str, tenant: str, grade: Grade, graded_at: dt.datetime) -> Values:
    return {
        "rollout_id": rollout_id,
        "tenant": tenant,
        "grader": grade.grader.name,
        "version": grade.grader.version,
        "hash": grade.grader.hash,
        "reward": grade.reward,
        "passed": grade.passed,
        "parts": grade.parts,
        "errors": grade.errors,
        "graded_at": graded_at,
    }


def with_blob(step: Values, blobs: Blobs) -> Values:
    output = step["output"]
    if output is None or len(output) < LONG:
        return step | {"output_blob": None}
    return step | {"output": None, "output_blob": blobs.put(output)}


# --- steps --------------------------------------------------------------------------------------------------------------


NO_STEP: Values = dict.fromkeys(
    ("said", "call_id", "name", "arguments", "output", "error", "seconds", "attempts", "context_tokens", "sampled_tokens")
)


def _steps(rollout: Rollout) -> Iterator[Values]:
    """A turn is the agent's message, the calls it asks for, then what came back for them."""
    for number, turn in enumerate(rollout.turns):
        blank = NO_STEP | {"turn": number}
        tokens = {"context_tokens": turn.context_tokens, "sampled_tokens": turn.sampled_tokens}
        yield blank | tokens | {"kind": "message", "said": turn.text}
        for call in turn.calls:
            yield blank | {"kind": "tool_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
        names = {call.call_id: call.name for call in turn.calls}
        for result in turn.results.values():
            yield blank | {"kind": "tool_result", "name": names.get(result.call_id)} | msgspec.to_builtins(result)


def card_of(
    row: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], grades: Sequence[Mapping[str, Any]], texts: Mapping[str, str]
) -> StoredCard:
    """The rows of one card, steps by position and grades by id, as the card they were made from."""
    dated = tuple(DatedGrade(_grade(grade), grade["graded_at"]) for grade in grades)
    card = JobCard(
        **{name: row[name] for name in JOB},
        started_at=row["started_at"].isoformat(),
        rollout=_rollout(row, steps, texts),
        grade=dated[-1].grade if dated else None,
        cost=Cost(**{name: row[name] for name in COSTS}),
        versions=Versions(**{name: row[name] for name in VERSIONS}),
    )
    return StoredCard(card, row["recorded_at"], dated, msgspec.convert(row["removed"], tuple[Removal, ...] | None))


def _rollout(row: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> Rollout:
    return Rollout(
        row["rollout_id"],
        msgspec.convert(json.loads(texts[row["opening"]]), tuple[Message, ...]),
        msgspec.convert(json.loads(texts[row["tools"]]), tuple[ToolSpec, ...]),
        msgspec.convert(row["limits"], Limits),
        row["rollout_seed"],
        turns=_turns(steps, texts),
        ending=Ending(row["ending"]) if row["ending"] else None,
        reason=row["reason"],
        failed_part=row["failed_part"],
        answer=row["answer"],
        started_at=row["started_at"].isoformat(),
        seconds=row["seconds"],
    )


def _turns(steps: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[Turn]:
    turns: list[Turn] = []
    for step in steps:
        if step["kind"] == "message":
            turns.append(Turn(step["said"], context_tokens=step["context_tokens"], sampled_tokens=step["sampled_tokens"]))
        elif step["kind"] == "tool_call":
            turns[-1].calls += (ToolCall(step["call_id"], step["name"], step["arguments"]),)
        else:
            seen = {name: step[name] for name in ("call_id", "error", "seconds", "attempts")}
            output = texts[step["output_blob"]] if step["output_blob"] else step["output"]
            turns[-1].results[step["call_id"]] = ToolResult(output=output, **seen)
    return turns


def _grade(row: Mapping[str, Any]) -> Grade:
    return Grade(GraderRef(row["grader"], row["version"], row["hash"]), row["reward"], row["passed"], row["parts"], row["errors"])


def _moment(text: str) -> dt.datetime | None:
    if not text:
        return None
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
