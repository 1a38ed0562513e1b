"""What people say of a card and what is known around it, beside the card itself. Pure."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

import msgspec

from agent_rft.contracts.errors import UserError
from observability.query import State
from observability.records import StoredCard

Verdict = Literal["accept", "reject", "coach", "note"]
VERDICTS: tuple[Verdict, ...] = ("accept", "reject", "coach", "note")
JUDGEMENTS: tuple[Verdict, ...] = ("accept", "reject", "coach")
"""The verdicts that settle a card. A note settles nothing."""
WITHDRAWN = "withdrawn"
"""A label that takes back the one before it: nothing is deleted."""
Target = Literal["dataset", "prompt", "tool"]
TARGETS: tuple[Target, ...] = ("dataset", "prompt", "tool")
Settled = Literal["done", "declined"]
OUTCOMES: tuple[Settled, ...] = ("done", "declined")
BEFORE_THE_ANSWER: tuple[State, ...] = ("opened", "planned", "in_progress", "blocked", "needs_human")
"""What whoever runs a job says of it until there is an answer; all that follows shows in the card itself."""


class NotThere(UserError):
    """A card, a request or a view that was asked for by its name, and is not there (or another tenant's, which is the same)."""


class Sealed(UserError):
    """Nothing more is said of these cards."""


class Review(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    rollout_id: str
    position: int | None
    """Of the step it is about; None where it is about the whole card."""
    verdict: Verdict
    note: str
    by: str
    at: dt.datetime
    entry: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    outcome: Settled
    how: str
    by: str
    at: dt.datetime


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants changed because of a card, and what came of it."""

    id: int
    rollout_id: str
    target: Target
    row_id: str
    wanted: str
    by: str
    at: dt.datetime
    outcome: Outcome | None
    """None while it is open."""


class Label(msgspec.Struct, frozen=True, kw_only=True):
    labeller: str
    score: float | None
    label: str | None
    note: str
    at: dt.datetime


class StateNote(msgspec.Struct, frozen=True, kw_only=True):
    state: State
    why: str
    by: str
    at: dt.datetime


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why a card is, or was, in the review queue."""

    rollout_id: str
    reason: str
    """audit, low_grade, disagreement, flag:NAME."""
    why: str
    at: dt.datetime


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, a base model, a data set, a tool set, a grader, a release."""

    kind: str
    id: str
    """As cards name it."""
    name: str
    run_id: str = ""
    parents: tuple[tuple[str, str], ...] = ()
    """(kind, id)."""
    facts: dict[str, Any] = {}
    known: bool = True
    """False of one that a card names and nobody registered."""


class Dossier(msgspec.Struct, frozen=True, kw_only=True):
    """One card and everything about it. A job that has no card yet has states only."""

    rollout_id: str
    state: State
    stored: StoredCard | None
    states: tuple[StateNote, ...] = ()
    reviews: tuple[Review, ...] = ()
    labels: tuple[Label, ...] = ()
    changes: tuple[Change, ...] = ()
    queue: tuple[Waiting, ...] = ()
    lineage: tuple[Artifact, ...] = ()
    """What made it, nearest first."""
    spans: int = 0
    """Of its trace, where it came as one; 0 where not."""
    late_spans: int = 0
    """Spans that came when the card was made already: they stand beside it."""
    erased: str = ""
    """Why and when its words were erased; empty where they were not."""


def state_of(*, notes: tuple[StateNote, ...], ended: bool | None, graded: bool, reviewed: bool) -> State:
    """How far a job has come. `ended` is None while there is no card. The same in SQL: observability/states.py."""
    if any(note.state == "sealed" for note in notes):
        return "sealed"
    if ended is None or not (ended or graded or reviewed):
        return notes[-1].state if notes else "in_progress"
    return "reviewed" if reviewed else "graded" if graded else "submitted"


def standing_verdict(reviews: tuple[Review, ...]) -> Verdict | None:
    """The newest judgement of the whole card or of a step of it."""
    return next((one.verdict for one in reversed(reviews) if one.verdict in JUDGEMENTS), None)
