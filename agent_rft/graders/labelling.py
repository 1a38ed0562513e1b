"""What a person who labels is shown, in which order, and how far they agreed: the same in the terminal and on the page.

Blind: the view holds what was asked, done and answered, and what was right. It has no field for a grade, an advantage, a
checkpoint, a step, a kind, a difficulty or another person's label. A rollout's id is left out as well, since it tells when
the rollout was made, and so whether by the base or by the tuned model. While labelling it goes by its place instead.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import JobCard, Kind
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.people import PersonsLabel, person, same_person
from agent_rft.contracts.rollouts import Ending, Rollout, ToolResult, Turn
from agent_rft.graders.agreement import SAME, Kappa
from agent_rft.graders.base import PASS_THRESHOLD
from agent_rft.graders.reports import Label, kappa_report
from agent_rft.rollouts.cards import own_keys
from agent_rft.rollouts.parsing import BLOCK
from agent_rft.rollouts.seeds import derive_seed

LONGEST_NAME = 100
RESULT_LINES, RESULT_CHARACTERS = 14, 1600
"""Of one tool result. The whole of it is on the job card, beside the grades."""
TEXT_CHARACTERS = 6000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Escape codes and text-direction marks: what a model wrote must not drive or mislead the reader's screen."""
KEYS = {"0": 0.0, "h": 0.5, "1": 1.0}
"""Scores at one key."""
UNSEEN = ("difficulty", "task_type")
"""Keys of a row that say how it is counted, not what is right."""

Part = Literal["asked", "said", "called", "returned", "answer", "reference"]


class Round(msgspec.Struct, frozen=True):
    """One person labelling one run."""

    run_id: str
    who: str
    kind: Kind | None = None
    """None: rollouts of every kind, mixed."""


class Passage(msgspec.Struct, frozen=True):
    part: Part
    title: str
    text: str


class Shown(msgspec.Struct, frozen=True):
    """The next rollout to label."""

    place: str
    passages: tuple[Passage, ...]
    ahead: int
    """How many are left from here on, this one included."""


class Differing(msgspec.Struct, frozen=True):
    rollout_id: str
    own: float
    other: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Of one person with a grader, or with another person, over the rollouts that both scored."""

    other: str
    is_grader: bool
    labelled: int
    """Rollouts of the run that have the person's label."""
    compared: int
    passing: Kappa
    """Pass or fail."""
    linear: Kappa
    quadratic: Kappa
    """Graded scores in quarters, by the two usual weights."""
    confusion: dict[tuple[bool, bool], int]
    """(the person says pass, the other says pass): how many."""
    differ: tuple[Differing, ...]
    """Other scores, the widest apart first."""

    @property
    def name(self) -> str:
        """NAME@VERSION where it is a grader."""
        return self.other.partition("#")[0] if self.is_grader else self.other


class Desk(Protocol):
    """Where labelling happens. Every method may wait for the store, and raises UserError where that cannot be had."""

    def runs(self) -> Sequence[tuple[str, int]]:
        """Each run that has rollouts to label, the newest first, with their number."""
        ...

    def next(self, round_: Round, start: str = "") -> Shown | None:
        """The first rollout from `start` on that the person has not labelled; None after the last."""
        ...

    def left(self, round_: Round) -> int:
        """How many the person has not labelled."""
        ...

    def give(self, round_: Round, place: str, score: float) -> bool:
        """Durable on return. False where this person had labelled it meanwhile: that label stays, and no second one is added."""
        ...

    def take_back(self, round_: Round, place: str) -> bool:
        """False where there is no label to take back."""
        ...

    def agreement(self, round_: Round) -> Sequence[Agreement]: ...


# --- order --------------------------------------------------------------------------------------------------------------


def place_of(round_: Round, rollout_id: str) -> str:
    """Where the rollout stands in this person's order. The same at every start, another for every person, and it tells nothing."""
    return f"{derive_seed('label', person(round_.who), round_.run_id, rollout_id):016x}"


def after(place: str) -> str:
    """Where to go on. Places are of one length, so none lies between."""
    return f"{place}~"


def in_order(round_: Round, rollout_ids: Iterable[str]) -> list[tuple[str, str]]:
    """(place, rollout id), shuffled."""
    return sorted((place_of(round_, one), one) for one in rollout_ids)


def asked_by(name: str) -> str:
    """Who labels, registers or approves, as they are stored."""
    shown = " ".join(CONTROL.sub("", name).split())
    if not any(letter.isalnum() for letter in shown):  # a zero-width space alone is as blank as a space
        raise UserError("nobody is named", "give a name: letters or digits")
    if len(shown) > LONGEST_NAME:
        raise UserError(f"a name of {len(shown)} characters", f"at most {LONGEST_NAME}")
    return shown


def read_score(text: str) -> float:
    """A key, or a number from 0 to 1."""
    word = text.strip().lower()
    try:
        score = KEYS[word] if word in KEYS else float(word.replace(",", "."))
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise UserError(f"{text.strip()[:40]!r} is no score", "0, h for a half, 1, or any number from 0 to 1")
    return score


# --- what is shown ------------------------------------------------------------------------------------------------------


def blind_view(card: JobCard) -> tuple[Passage, ...]:
    rollout = card.rollout
    return (
        *(passage for message in rollout.opening for passage in _asked(message)),
        *_actions(rollout),
        Passage("answer", "Answer", _text(rollout.answer) or "(none given)"),
        _reference(card),
    )


def _asked(message: Message) -> Iterator[Passage]:
    """Of an earlier turn that was nothing but calls, the calls are all there is to show."""
    title = "Prompt" if message.role == "user" else message.role.title()
    if message.content or not message.tool_calls:
        yield Passage("asked", title, _text(message.content))
    for call in message.tool_calls:
        yield Passage("asked", f"{title}'s call", _text(_call(call)))


def _reference(card: JobCard) -> Passage:
    """A row of OpenAI's shape has its answer under a key of its own, which only its grader can name: so all of them are shown."""
    if card.reference_answer not in (None, ""):
        return Passage("reference", "Reference answer", _text(_plain(card.reference_answer)))
    own = "\n".join(f"{key}: {_plain(held)}" for key, held in own_keys(card).items() if key not in UNSEEN)
    return Passage("reference", "The row's own keys" if own else "Reference answer", _text(own) or "(none)")


def _actions(rollout: Rollout) -> Iterator[Passage]:
    number = 0
    for turn in rollout.turns:
        if said := _said(turn, rollout):
            yield Passage("said", "Agent", _text(said))
        for call in turn.calls:
            number += 1
            yield Passage("called", f"Call {number}", _text(_call(call)))
            yield Passage("returned", f"Result {number}", _result(turn.results.get(call.call_id)))


def _said(turn: Turn, rollout: Rollout) -> str:
    """The agent's words beside its calls; the turn that is the answer is shown as the answer."""
    if turn.calls:
        return BLOCK.sub("", turn.text).strip()
    is_answer = turn is rollout.turns[-1] and rollout.ending is Ending.ANSWERED and turn.text.strip() == rollout.answer.strip()
    return "" if is_answer else turn.text.strip()


def _call(call: ToolCall) -> str:
    return f"{call.name}({', '.join(f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in call.arguments.items())})"


def _result(result: ToolResult | None) -> str:
    if result is None:
        return "(nothing came back)"
    lines = result.output.splitlines()
    hidden = len(lines) - RESULT_LINES
    more = f"\n... {hidden} more line{'s' if hidden > 1 else ''}" if hidden > 0 else ""
    error = f"{result.error}: " if result.error else ""
    return _text(error + "\n".join(lines[:RESULT_LINES]), RESULT_CHARACTERS) + more or "(empty)"


def _text(text: str, most: int = TEXT_CHARACTERS) -> str:
    """Fit to be shown: shortened, no control characters, no half of a surrogate pair."""
    whole = text.expandtabs(4).encode("utf-8", "replace").decode()
    clean = CONTROL.sub("\N{REPLACEMENT CHARACTER}", whole.replace("\r\n", "\n")[:most])
    return clean if len(whole) <= most else f"{clean} ... {len(whole) - most} more characters"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, indent=1)


# --- agreement ----------------------------------------------------------------------------------------------------------


def agreements(who: str, labels: Sequence[PersonsLabel], graded: Mapping[str, Mapping[str, Grade]]) -> list[Agreement]:
    """With each grader, whose grades stand by rollout id under its name, then with each other person who labelled the same."""
    own = {one.rollout_id: one.score for one in labels if same_person(one.who, who)}
    people: dict[str, dict[str, Grade]] = {}
    for one in labels:
        if not same_person(one.who, who) and one.rollout_id in own:
            people.setdefault(one.who, {})[one.rollout_id] = _as_grade(one)
    if not own:
        return []
    graders = [agreement(own, grades, grader, is_grader=True) for grader, grades in graded.items()]
    return graders + [agreement(own, people[name], name, is_grader=False) for name in sorted(people, key=person)]


def _as_grade(label: PersonsLabel) -> Grade:
    return Grade(GraderRef(label.who, "", ""), label.score, label.score >= PASS_THRESHOLD)


def agreement(own: Mapping[str, float], grades: Mapping[str, Grade], other: str, *, is_grader: bool) -> Agreement:
    """By the figures that a grader version's kappa report has."""
    scored = {key: grade for key, grade in grades.items() if key in own and grade.reward is not None}
    figures = kappa_report([Label(key, own[key]) for key in scored], scored).figures
    apart = [Differing(key, own[key], grade.reward) for key, grade in scored.items() if grade.reward is not None]
    return Agreement(
        other=other,
        is_grader=is_grader,
        labelled=len(own),
        compared=len(scored),
        passing=msgspec.convert(figures["pass or fail"], Kappa),
        linear=msgspec.convert(figures["linear"], Kappa),
        quadratic=msgspec.convert(figures["quadratic"], Kappa),
        confusion=dict(Counter((own[key] >= PASS_THRESHOLD, bool(grade.passed)) for key, grade in scored.items())),
        differ=tuple(
            sorted((one for one in apart if abs(one.own - one.other) > SAME), key=lambda one: (-abs(one.own - one.other), one.rollout_id))
        ),
    )


def figures(found: Agreement) -> list[tuple[str, str]]:
    """For the terminal and the page alike."""
    cells = {"both pass": (True, True), "both fail": (False, False), "only you pass": (True, False), "only they pass": (False, True)}
    compared = ("compared", f"{found.compared} of {found.labelled} labelled")
    if not found.compared:
        return [compared]
    return [
        compared,
        ("kappa, pass or fail", _told(found.passing)),
        ("weighted, linear", _told(found.linear)),
        ("weighted, quadratic", _told(found.quadratic)),
        *((title, str(found.confusion.get(cell, 0))) for title, cell in cells.items()),
    ]


def unscored(found: Agreement, run_id: str) -> str:
    """What to do about labelled rollouts that the grader has not scored; empty where it has them all."""
    missing = found.labelled - found.compared if found.is_grader else 0
    return f"{missing} without a score by it: rft regrade --grader {shlex.quote(found.name)} --run {shlex.quote(run_id)}" if missing else ""


def _told(kappa: Kappa) -> str:
    if kappa.kappa is None or kappa.low is None or kappa.high is None:
        return "not defined: both say the same of all"
    return f"{kappa.kappa:.2f} (95%: {kappa.low:.2f} to {kappa.high:.2f})"
