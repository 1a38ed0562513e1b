"""What of a record is kept for ever, and what may be erased: the two halves that its ledger entry holds digests of. Pure.

The halves are made from rows, and come out the same from rows on their way in and rows read back: a moment is UTC to the
microsecond, a column of numbers with a point is one whatever Python type came in. Which columns belong to a half is listed,
never "all the others": a column that a later version adds must not change the digests of what was recorded before.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from observability.records import COSTS, VERSIONS
from observability.texts import from_json, to_json, unpacked

FORMAT = 1
"""Of the halves, told in the facts: records of a later format stand beside these."""
JOB_FACTS = ("rollout_id", "tenant", "kind", "run_id", "step", "row_id", "sample_index", "started_at", "recorded_at")
OUTCOME_FACTS = ("ending", "failed_part", "limits", "rollout_seed", "removed")
CARD_PAYLOAD = ("task_type", "difficulty", "reference_answer", "metadata", "item", "answer", "reason")
CARD_FACTS = (*JOB_FACTS, *OUTCOME_FACTS, *COSTS, *VERSIONS)
STEP_PAYLOAD = (
    "position", "turn", "kind", "said", "call_id", "name", "arguments", "error", "seconds", "attempts", "context_tokens",
    "sampled_tokens",
)  # fmt: skip
GRADE_FACTS = ("rollout_id", "tenant", "grader", "version", "hash", "reward", "passed", "graded_at")
GRADE_PAYLOAD = ("parts", "errors")
LABEL_FACTS = ("rollout_id", "tenant", "row_id", "labeller", "score", "label", "at")
LABEL_PAYLOAD = ("note",)
CREDIT_FACTS = ("rollout_id", "tenant", "advantage")
REVIEW_FACTS = ("rollout_id", "tenant", "position", "verdict", "by", "at")
CHANGE_FACTS = ("rollout_id", "tenant", "target", "row_id", "by", "at")
OUTCOME_OF_CHANGE_FACTS = ("request", "rollout_id", "tenant", "outcome", "by", "at")
STATE_FACTS = ("rollout_id", "tenant", "state", "by", "at")
HOLD_FACTS = ("name", "tenant", "act", "query", "reason", "by", "at")
ERASURE_FACTS = ("rollout_id", "tenant", "why", "by", "at")
ACCESS_FACTS = ("tenant", "action", "subject", "cards", "cards_digest", "by", "at")
SPANS_FACTS = ("rollout_id", "tenant", "trace_id", "spans", "late", "at")
RELEASE_FACTS = ("tenant", "service", "candidate", "live", "policy", "by", "at")
RELEASE_EVENT_FACTS = ("tenant", "release", "act", "stage", "share", "held", "cut", "why", "figures", "by", "at")
APPROVAL_FACTS = ("tenant", "rollout_id", "call_id", "tool", "arguments_hash", "expires_at", "by", "at")
DECISION_FACTS = ("tenant", "approval", "decision", "by", "at")
USE_FACTS = ("tenant", "approval", "by", "at")
REPORT_FACTS = ("tenant", "agent", "kind", "passed", "figures", "by", "at")
PLAIN = frozenset({str, type(None)})
JSON = (dict, list, tuple, float)
POINTED = {"seconds", "tool_seconds", "advantage", "reward", "score", "share"}

_SALTLESS: dict[str, Any] = {"salt": None}
ERASED: dict[str, dict[str, Any]] = {
    "card": _SALTLESS
    | dict.fromkeys((*CARD_PAYLOAD, "opening", "tools"))
    | {"metadata": {}, "answer": "", "reason": "", "removed_paths": None},
    "step": dict.fromkeys((*STEP_PAYLOAD[3:], "output", "output_blob")) | {"turn": 0, "kind": "erased"},
    "grade": _SALTLESS | {"parts": {}, "errors": {}},
    "label": _SALTLESS | {"note": ""},
    "review": _SALTLESS | {"note": ""},
    "change": _SALTLESS | {"wanted": ""},
    "outcome": _SALTLESS | {"how": ""},
    "state": _SALTLESS | {"why": ""},
    "spans": _SALTLESS | {"body": None},
    "approval": _SALTLESS | {"arguments": None},
    "approval decision": _SALTLESS | {"note": ""},
}
"""What stands in the rows of a record whose words are gone, by its kind. A step keeps its place, since the facts count them."""


class Halves(NamedTuple):
    facts: dict[str, Any]
    payload: dict[str, Any] | None = None
    """None where there are no words, or they were erased."""


def card_halves(card: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> Halves:
    """Of a row of job_cards, its steps by position, and the blobs that they name. Without one of these there are no words to hold
    against what was recorded."""
    facts = _facts(card, CARD_FACTS)
    facts["steps"] = len(steps)
    named = [card["opening"], card["tools"], *(step["output_blob"] for step in steps if step["output_blob"] is not None)]
    if not all(name in texts for name in named):
        return Halves(facts)
    given = {"opening": from_json(texts[card["opening"]]), "tools": from_json(texts[card["tools"]])}
    if (paths := card.get("removed_paths")) is not None:  # a card from before there were any has them among its facts
        given["removed_paths"] = paths
    told = [_picked(step, STEP_PAYLOAD) | {"output": _output(step, texts)} for step in steps]
    return Halves(facts, {**_picked(card, CARD_PAYLOAD), **given, "steps": told})


def _output(step: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
    """Words that somebody put beside a blob are told too, so that they give another digest, whichever of the two a reader takes."""
    said, blob = step["output"], step["output_blob"]
    if blob is None:
        return said
    return texts[blob] if said is None else [said, texts[blob]]


def credit_facts(card: Mapping[str, Any]) -> dict[str, Any]:
    """What a rollout was worth, which is known only when its group has ended: an entry of its own."""
    return _facts(card, CREDIT_FACTS)


def grade_halves(grade: Mapping[str, Any]) -> Halves:
    """What a grade is made of repeats words of the answer, so it can be erased with them."""
    return Halves(_facts(grade, GRADE_FACTS), _picked(grade, GRADE_PAYLOAD))


def label_halves(label: Mapping[str, Any]) -> Halves:
    return Halves(_facts(label, LABEL_FACTS), _picked(label, LABEL_PAYLOAD))


def review_halves(review: Mapping[str, Any]) -> Halves:
    return Halves(_facts(review, REVIEW_FACTS), _picked(review, ("note",)))


def change_halves(change: Mapping[str, Any]) -> Halves:
    return Halves(_facts(change, CHANGE_FACTS), _picked(change, ("wanted",)))


def outcome_halves(outcome: Mapping[str, Any]) -> Halves:
    return Halves(_facts(outcome, OUTCOME_OF_CHANGE_FACTS), _picked(outcome, ("how",)))


def state_halves(state: Mapping[str, Any]) -> Halves:
    return Halves(_facts(state, STATE_FACTS), _picked(state, ("why",)))


def hold_halves(hold: Mapping[str, Any]) -> Halves:
    return Halves(_facts(hold, HOLD_FACTS))


def erasure_halves(erasure: Mapping[str, Any]) -> Halves:
    return Halves(_facts(erasure, ERASURE_FACTS))


def access_halves(access: Mapping[str, Any]) -> Halves:
    return Halves(_facts(access, ACCESS_FACTS))


def spans_halves(part: Mapping[str, Any], text: str | None = None) -> Halves:
    """What one request brought of a trace, as text: that of its body, where nobody has it at hand."""
    if text is None and part["body"] is not None:
        text = unpacked(part["body"])
    return Halves(_facts(part, SPANS_FACTS), None if text is None else {"spans": text})


def release_halves(release: Mapping[str, Any]) -> Halves:
    return Halves(_facts(release, RELEASE_FACTS))


def release_event_halves(event: Mapping[str, Any]) -> Halves:
    return Halves(_facts(event, RELEASE_EVENT_FACTS))


def approval_halves(approval: Mapping[str, Any]) -> Halves:
    return Halves(_facts(approval, APPROVAL_FACTS), _picked(approval, ("arguments",)))


def decision_halves(decision: Mapping[str, Any]) -> Halves:
    return Halves(_facts(decision, DECISION_FACTS), _picked(decision, ("note",)))


def use_halves(use: Mapping[str, Any]) -> Halves:
    return Halves(_facts(use, USE_FACTS))


def report_halves(report: Mapping[str, Any]) -> Halves:
    return Halves(_facts(report, REPORT_FACTS))


def is_erased(kind: str, row: Mapping[str, Any]) -> bool:
    """Whether nothing but facts stands in the row. A half-erased one is something else."""
    return all(row[name] == blank for name, blank in ERASED.get(kind, {}).items())


def moment_text(moment: dt.datetime) -> str:
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def _facts(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    facts = _picked(row, names)
    facts["format"] = FORMAT
    return facts


def _picked(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What every database gives back as it was is told here: of most values no more than that is asked."""
    return {
        name: value if (kind := type(value := row[name])) in PLAIN or (kind is int and name not in POINTED) else _as_stored(name, value)
        for name in names
    }


def _as_stored(name: str, value: Any) -> Any:
    if name in POINTED:
        return float(value) + 0.0  # SQLite keeps no minus before a nothing
    if isinstance(value, dt.datetime):
        return moment_text(value)
    return _as_read(value) if isinstance(value, JSON) else value


def _as_read(value: Any) -> Any:
    try:
        return from_json(msgspec.json.encode(value))
    except UnicodeEncodeError:
        return json.loads(to_json(value))
