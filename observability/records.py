"""A job card as rows of the store, and back. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import msgspec

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from observability.redaction.redact import Removal
from observability.texts import Blobs, from_json, storable, to_json

Values = dict[str, Any]
VERSIONS = ("code", "checkpoint", "dataset", "tool_set", "grader", "seed")
COSTS = ("context_tokens", "sampled_tokens", "tool_calls", "seconds", "tool_seconds")
JOB = ("rollout_id", "kind", "tenant", "run_id", "step", "row_id", "sample_index", "reference_answer", "metadata", "item", "advantage")
PICKED = (*JOB, *VERSIONS, *COSTS)
JOB_OF, VERSIONS_OF, COSTS_OF = attrgetter(*JOB), attrgetter(*VERSIONS), attrgetter(*COSTS)
NAMES_OF_VERSIONS = tuple((f"versions.{name}", name) for name in VERSIONS)
LONG = 1000
"""Characters from which on a tool's output is a blob: agents read the same documents again and again."""


LONGEST_ID, LONGEST_NAME = 200, 1000
"""Bytes of a rollout's id, and of a run's, a row's, a version's name: PostgreSQL's indexes hold 2,704 together."""


class RecordedCard(msgspec.Struct, frozen=True):
    """A card on its way into the store, and a line of the file that holds cards which did not get there."""

    card: JobCard
    recorded_at: dt.datetime
    removed: tuple[Removal, ...] | None = None
    """What redaction took out of it; None where nobody looked."""
    source: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Who recorded it."""
    number: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0
    """Which of that source's records it is, counted from 1; 0 where it does not number them."""


class DatedGrade(msgspec.Struct, frozen=True):
    grade: Grade
    graded_at: dt.datetime


class Erased(msgspec.Struct, frozen=True):
    at: dt.datetime
    by: str
    why: str


class StoredCard(msgspec.Struct, frozen=True):
    """A card as read back. Its rollout carries no token ids: the store keeps words and counts."""

    card: JobCard
    """Its grade is the newest one."""
    recorded_at: dt.datetime
    grades: tuple[DatedGrade, ...]
    """Every grade it was ever given, oldest first."""
    removed: tuple[Removal, ...] | None = None
    erased: Erased | None = None
    """How its words went, where they did: nothing but facts is left of it."""


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
    row: Values = dict(zip(PICKED, (*JOB_OF(card), *VERSIONS_OF(card.versions), *COSTS_OF(card.cost)), strict=True))
    row |= {
        "task_type": _text_or_none(card.metadata.get("task_type")),
        "difficulty": _text_or_none(card.metadata.get("difficulty")),
        "started_at": _moment(card.started_at) or recorded.recorded_at,
        "recorded_at": recorded.recorded_at,
        "ending": rollout.ending and rollout.ending.value,
        "reason": rollout.reason,
        "failed_part": rollout.failed_part,
        "answer": rollout.answer,
        "limits": msgspec.to_builtins(rollout.limits),
        "rollout_seed": rollout.seed,
        "opening": blobs.put(to_json(rollout.opening)),
        "tools": blobs.put(to_json(rollout.tools)),
        **_removals(recorded.removed),
    }
    its: Values = {"rollout_id": card.rollout_id, "tenant": card.tenant}
    steps = [with_blob(step, blobs) | its | {"position": position} for position, step in enumerate(_steps(rollout))]
    given = [grade_row(card.rollout_id, card.tenant, card.grade, recorded.recorded_at)] if card.grade else []
    return CardRows(row, steps, given, blobs.texts)


def _removals(removed: Sequence[Removal] | None) -> Values:
    """A path holds keys, which may be words of a person: paths are payload, kinds and counts are facts."""
    if removed is None:
        return {"removed": None, "removed_paths": None}
    kinds = [{"kind": one.kind, "start": one.start, "length": one.length} for one in removed]
    return {"removed": kinds, "removed_paths": [one.path for one in removed] or None}


def unfit(card: JobCard) -> str:
    """Which of the card's names no store can hold, in words; empty where all can be."""
    rollout, versions = card.rollout, card.versions
    names = {"rollout_id": card.rollout_id, "run_id": card.run_id, "row_id": card.row_id, "rollout.failed_part": rollout.failed_part}
    names |= {of: str(getattr(versions, name)) for of, name in NAMES_OF_VERSIONS}
    if card.grade:
        names |= {f"grade.grader.{name}": str(getattr(card.grade.grader, name)) for name in ("name", "version", "hash")}
    together = "".join(names.values())
    if together.isascii() and len(together) <= LONGEST_ID and "\0" not in together:  # as of nearly all
        return ""
    for name, value in names.items():
        most = LONGEST_ID if name == "rollout_id" else LONGEST_NAME
        if storable(value) != value:
            return f"its {name} holds a NUL or half a character"
        if len(value.encode()) > most:
            return f"its {name} is {len(value.encode())} bytes long, more than {most}"
    return ""


def fitting(name: str) -> str:
    """A name out of a trace as the store can hold it; the whole of it stays in the span."""
    return storable(name).encode()[:LONGEST_NAME].decode(errors="ignore")


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
        said = {"kind": "message", "said": turn.text, "context_tokens": turn.context_tokens, "sampled_tokens": turn.sampled_tokens}
        yield blank | said
        for call in turn.calls:
            yield blank | {"kind": "tool_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
        names = {call.call_id: call.name for call in turn.calls}
        for result in turn.results.values():
            yield blank | {"kind": "tool_result", "name": names.get(result.call_id)} | msgspec.to_builtins(result)


def card_of(
    row: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    grades: Sequence[Mapping[str, Any]],
    texts: Mapping[str, str],
    erased: Erased | None = None,
) -> StoredCard:
    """The rows of one card, steps by position and grades by id, as the card they were made from."""
    dated = tuple(DatedGrade(grade_of(grade), grade["graded_at"]) for grade in grades)
    card = JobCard(
        **{name: row[name] for name in JOB},
        started_at=row["started_at"].isoformat(),
        rollout=_rollout(row, steps, texts),
        grade=dated[-1].grade if dated else None,
        cost=Cost(**{name: row[name] for name in COSTS}),
        versions=Versions(**{name: row[name] for name in VERSIONS}),
    )
    return StoredCard(card, row["recorded_at"], dated, _removed(row), erased)


def _removed(row: Mapping[str, Any]) -> tuple[Removal, ...] | None:
    """Without the paths where they were erased. A card from before they were kept apart has them beside the kinds."""
    removed, paths = msgspec.convert(row["removed"], tuple[Removal, ...] | None), row["removed_paths"]
    if removed is None or paths is None:
        return removed
    return tuple(msgspec.structs.replace(one, path=path) for one, path in zip(removed, paths, strict=True))


def _rollout(row: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> Rollout:
    return Rollout(
        row["rollout_id"],
        msgspec.convert(_read(row["opening"], texts), tuple[Message, ...]),
        msgspec.convert(_read(row["tools"], texts), tuple[ToolSpec, ...]),
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


def _read(named: str | None, texts: Mapping[str, str]) -> Any:
    """Nothing at all, once the words are erased."""
    return () if named is None else from_json(texts[named])


def _turns(steps: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[Turn]:
    turns: list[Turn] = []
    for step in steps:
        if step["kind"] == "message":
            turns.append(Turn(step["said"], context_tokens=step["context_tokens"], sampled_tokens=step["sampled_tokens"]))
        elif step["kind"] == "erased":
            continue
        elif step["kind"] == "tool_call":
            turns[-1].calls += (ToolCall(step["call_id"], step["name"], step["arguments"]),)
        else:
            seen = {name: step[name] for name in ("call_id", "error", "seconds", "attempts")}
            output = texts[step["output_blob"]] if step["output_blob"] else step["output"]
            turns[-1].results[step["call_id"]] = ToolResult(output=output, **seen)
    return turns


def grade_of(row: Mapping[str, Any]) -> Grade:
    return Grade(GraderRef(row["grader"], row["version"], row["hash"]), row["reward"], row["passed"], row["parts"], row["errors"])


def _moment(text: str) -> dt.datetime | None:
    if not text:
        return None
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
