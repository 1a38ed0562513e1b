"""One job card as a story for a person: what was asked, what the agent did and saw, what it claimed, what that was worth. Pure."""

from __future__ import annotations

import datetime as dt
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Rollout, ToolResult, Turn
from observability.dossier import Artifact, Change, Dossier, Label, Review
from observability.records import DatedGrade, StoredCard

LABEL = 11  # columns left of the text
RESULT_LINES = 8  # of a tool's result; the whole of it is in the store
CALL_BLOCK = re.compile(r"<tool_call>.*?</tool_call>", re.DOTALL)  # shown as calls, so not shown twice
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Escape codes and text-direction marks: what a model wrote must not drive or mislead the reader's terminal."""


def story(stored: StoredCard, width: int = 100, around: Dossier | None = None) -> str:
    """The card as plain text, no line wider than `width` where a space allows it; `around` is what people said of it and what made it."""
    card = stored.card
    sections = [
        ("JOB CARD", [*_header(card), *([f"state {around.state}"] if around else [])]),
        *_erased(stored),
        *([] if stored.erased else _words(card)),
        ("ENDING", [_ending(card.rollout)]),
        *_grades(stored),
        ("COST", _cost(card)),
        ("MADE BY", _made_by(card)),
        *(_around(around) if around else ()),
    ]
    return "\n\n".join(_section(label, lines, max(width, 40)) for label, lines in sections) + "\n"


def _section(label: str, lines: list[str], width: int) -> str:
    """A label in the margin, the text beside it; lines that a tool or a model indented keep their indent when they wrap."""
    text: list[str] = []
    for line in (part for block in lines for part in block.splitlines() or [""]):
        clean = CONTROL.sub("\N{REPLACEMENT CHARACTER}", line.expandtabs(4)).rstrip()
        hanging = " " * min(len(clean) - len(clean.lstrip()), width // 3)
        wrapped = textwrap.wrap(clean, width - LABEL, subsequent_indent=hanging, break_on_hyphens=False, drop_whitespace=True)
        text += wrapped or [""]
    margin = " " * LABEL
    return "\n".join((label.ljust(LABEL) if number == 0 else margin) + line for number, line in enumerate(text)).rstrip()


def _header(card: JobCard) -> list[str]:
    step = "" if card.step is None else f", step {card.step}"
    kinds = ", ".join(str(card.metadata[name]) for name in ("task_type", "difficulty") if card.metadata.get(name))
    started = dt.datetime.fromisoformat(card.started_at).strftime("%Y-%m-%d %H:%M:%S UTC") if card.started_at else "unknown"
    return [
        card.rollout_id,
        f"{card.kind} in run {card.run_id}{step}",
        f"row {card.row_id}" + (f" ({kinds})" if kinds else "") + f", try {card.sample_index + 1}",
        f"started {started}, tenant {card.tenant}",
    ]


def _erased(stored: StoredCard) -> Iterator[tuple[str, list[str]]]:
    if gone := stored.erased:
        told = f"on {gone.at:%Y-%m-%d %H:%M} UTC by {gone.by}: {gone.why}"
        yield "ERASED", [told, "Its words are gone for good; what is told here are facts, which the ledger still proves."]


def _words(card: JobCard) -> Iterator[tuple[str, list[str]]]:
    yield from _opening(card.rollout)
    yield from _actions(card.rollout)
    yield "ANSWER", [card.rollout.answer or "(none given)"]
    yield "REFERENCE", [_plain(card.reference_answer)]


def _opening(rollout: Rollout) -> Iterator[tuple[str, list[str]]]:
    for message in rollout.opening:
        yield ("PROMPT" if message.role == "user" else message.role.upper()), [message.content]
    if rollout.tools:
        yield "TOOLS", [", ".join(tool.name for tool in rollout.tools)]


# --- what the agent did -----------------------------------------------------------------------------------------------


def _actions(rollout: Rollout) -> Iterator[tuple[str, list[str]]]:
    number = 0
    for turn in rollout.turns:
        last = turn is rollout.turns[-1]
        if said := _said(turn, rollout, last):
            yield "SAID", [said]
        parallel = f", in parallel with {len(turn.calls) - 1} more" if len(turn.calls) > 1 else ""
        for call in turn.calls:
            number += 1
            yield f"CALL {number}", [*_call(call, turn.results.get(call.call_id), parallel)]


def _said(turn: Turn, rollout: Rollout, last: bool) -> str:
    """The agent's words beside its calls. The turn that is the answer is shown as the answer; one that could not be read, whole."""
    if turn.calls:
        return CALL_BLOCK.sub("", turn.text).strip()
    return "" if last and rollout.ending is Ending.ANSWERED and turn.text.strip() == rollout.answer else turn.text.strip()


def _call(call: ToolCall, result: ToolResult | None, parallel: str) -> Iterator[str]:
    arguments = ", ".join(f"{name}={_plain(value, quoted=True)}" for name, value in call.arguments.items())
    yield f"{call.name}({arguments})"
    if result is None:
        yield f"=> nothing came back{parallel}"
        return
    tries = f" after {result.attempts} attempts" if result.attempts > 1 else ""
    error = f"{result.error}, " if result.error else ""
    yield f"=> {error}{_seconds(result.seconds)}{tries}{parallel}"
    lines = result.output.splitlines() or ["(empty)"]
    yield from (f"   {_shortened(line)}" for line in lines[:RESULT_LINES])
    if (hidden := len(lines) - RESULT_LINES) > 0:
        yield f"   ... {hidden} more line{'s' if hidden > 1 else ''}"


def _shortened(line: str, most: int = 400) -> str:
    return line if len(line) <= most else f"{line[:most]} ... {len(line) - most} more characters"


# --- what came of it --------------------------------------------------------------------------------------------------


def _ending(rollout: Rollout) -> str:
    if rollout.ending is None:
        return "not ended"
    why = f": {rollout.reason}" if rollout.reason and rollout.ending is not Ending.ANSWERED else ""
    return rollout.ending.value.replace("_", " ") + why


def _grades(stored: StoredCard) -> Iterator[tuple[str, list[str]]]:
    if not stored.grades:
        yield "GRADE", ["none: the infrastructure failed, so no score exists" if _infra_failed(stored) else "none yet"]
    for number, dated in enumerate(stored.grades, 1):
        yield (f"GRADE {number}" if len(stored.grades) > 1 else "GRADE"), [*_grade(dated)]
    if stored.card.advantage is not None:
        yield "ADVANTAGE", [f"{stored.card.advantage:+.3f} against its group"]


def _infra_failed(stored: StoredCard) -> bool:
    return stored.card.rollout.ending is Ending.INFRA_FAILED


def _grade(dated: DatedGrade) -> Iterator[str]:
    grade, grader = dated.grade, dated.grade.grader
    yield _verdict(grade)
    yield f"by {grader.name} {grader.version} ({grader.hash[:12]}) on {dated.graded_at:%Y-%m-%d %H:%M} UTC"
    yield from _pairs(grade.parts)
    if grade.errors:
        yield "errors: " + ", ".join(f"{name}: {_plain(value)}" for name, value in grade.errors.items())


def _verdict(grade: Grade) -> str:
    reward = "no score" if grade.reward is None else f"{grade.reward:.2f}"
    return reward + {True: ", passed", False: ", not passed", None: ""}[grade.passed]


def _pairs(parts: Mapping[str, Any]) -> Iterator[str]:
    longest = max(map(len, parts), default=0)
    yield from (f"{name.ljust(longest)}  {_plain(value)}" for name, value in parts.items())


def _cost(card: JobCard) -> list[str]:
    cost = card.cost
    calls = f"{cost.tool_calls} tool call{'' if cost.tool_calls == 1 else 's'}"
    return [
        f"{calls}, {cost.context_tokens + cost.sampled_tokens:,} tokens ({cost.context_tokens:,} read, {cost.sampled_tokens:,} written)",
        f"{_seconds(cost.seconds)}, of which the tools took {_seconds(cost.tool_seconds)}",
    ]


def _made_by(card: JobCard) -> list[str]:
    made = card.versions
    named = {"checkpoint": made.checkpoint, "dataset": made.dataset, "tools": made.tool_set, "grader": made.grader, "code": made.code}
    return [*_pairs({name: value for name, value in (named | {"seed": made.seed}).items() if value not in ("", None)})]


# --- what is known around it --------------------------------------------------------------------------------------------


def _around(known: Dossier) -> Iterator[tuple[str, list[str]]]:
    told = {
        "LINEAGE": [line for one in known.lineage if one.known for line in _artifact(one)],
        "LATE": [f"{known.late_spans} of {known.spans} spans came after the card was made and stand beside it"] if known.late_spans else [],
        "STATES": [f"{_when(one.at)} {one.state}, by {one.by}" + _colon(one.why) for one in known.states],
        "LABELS": [f"{_when(one.at)} {_label(one)}, by {one.labeller}" + _colon(one.note) for one in known.labels],
        "REVIEWS": [f"{_when(one.at)} {one.verdict}{_of_step(one)}, by {one.by}" + _colon(one.note) for one in known.reviews],
        "CHANGES": [line for one in known.changes for line in _change(one)],
        "QUEUE": [f"{one.reason}: {one.why}" for one in known.queue],
    }
    yield from ((label, lines) for label, lines in told.items() if lines)


def _artifact(one: Artifact) -> Iterator[str]:
    """Whatever it was made from stands below it, under its own name."""
    facts = ", ".join(f"{name} {_plain(value)}" for name, value in one.facts.items())
    yield f"{one.kind} {one.id}" + (f" ({one.name})" if one.name != one.id else "") + _colon(facts)
    if one.parents:
        yield "  from " + ", ".join(f"{kind} {name}" for kind, name in one.parents)


def _change(one: Change) -> Iterator[str]:
    yield f"{one.id}: {one.target}, row {one.row_id}, wanted by {one.by}{_colon(one.wanted)}"
    yield f"  {one.outcome.outcome} by {one.outcome.by}{_colon(one.outcome.how)}" if one.outcome else "  open"


def _label(one: Label) -> str:
    return one.label or f"{one.score:g}"


def _of_step(one: Review) -> str:
    return "" if one.position is None else f" of step {one.position}"


def _colon(words: str) -> str:
    return f": {words}" if words else ""


def _when(at: dt.datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _plain(value: object, quoted: bool = False) -> str:
    if isinstance(value, str) and not quoted:
        return value
    return "none" if value is None and not quoted else json.dumps(value, ensure_ascii=False, default=str)
