"""Which rollouts to read first: the rows that got worst, answers that are suspiciously right, rollouts over which graders disagree.

A mean says how much; only reading says why, and nobody reads a thousand rollouts. Each list names one try a row, the most telling one,
beside the same row under the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Literal, TypeAlias

import msgspec

from agent_rft.contracts.errors import InfraError, UserError, did_you_mean
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.compare import RowDiff, compare, sign
from agent_rft.evaluation.tries import score_of
from agent_rft.graders.agreement import SAME
from agent_rft.graders.base import PASS_THRESHOLD
from agent_rft.graders.reports import named
from agent_rft.guards.hacking import is_copied, is_lucky

Which: TypeAlias = Literal["worst", "suspicious", "graders"]
LISTS: dict[Which, str] = {
    "worst": "rows that got worse",
    "suspicious": "answers that are suspiciously right",
    "graders": "rollouts over which graders disagree",
}
SHORT = 4
"""A try this many times shorter than the other right ones at its row hardly did the work."""
SIBLINGS = 3
"""Other right tries that it takes to say so."""
WEIGHTS = {"copied": 4, "lucky": 3, "flagged": 2, "short": 1}


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """A stored rollout, and all that was made of it."""

    graded: GradedRollout
    """Under the grader that the run is looked at with."""
    checkpoint: str
    grades: tuple[Grade, ...] = ()
    """What each grader makes of it."""
    flags: tuple[str, ...] = ()
    """What guards said of it."""

    @property
    def id(self) -> str:
        return self.graded.rollout.rollout_id

    @property
    def row(self) -> Row:
        return self.graded.row

    @property
    def right(self) -> bool:
        reward = score_of(self.graded)
        return reward is not None and reward >= PASS_THRESHOLD


Rows: TypeAlias = dict[str, list[Try]]


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """A try that is worth reading, and why."""

    shown: Try
    beside: Try | None
    """The same row under the base model, where there is one."""
    why: tuple[str, ...]
    weight: float
    """The list begins with the greatest."""


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """A run, laid out for reading."""

    run_id: str
    grader: GraderRef | None
    """That it is looked at with; None where nothing has a score."""
    base: tuple[Try, ...]
    tuned: tuple[Try, ...]
    lists: dict[Which, tuple[Story, ...]]
    erased: tuple[str, ...] = ()
    """The row of each try whose words were erased: it can be read no more, and is in nothing else here."""

    def of_row(self, row_id: str) -> Story:
        """As it stands in a list, or as it is where nothing is wrong with it."""
        for story in (story for stories in self.lists.values() for story in stories):
            if story.shown.row.id == row_id:
                return story
        base, tuned = ([one for one in side if one.row.id == row_id] for side in (self.base, self.tuned))
        if not (base or tuned) and row_id in self.erased:
            raise UserError(f"the words of every try of run {self.run_id} at row {row_id} were erased", "`rft card show` says when and why")
        if not (base or tuned):
            raise UserError(f"run {self.run_id} has no row {row_id}", did_you_mean(row_id, {one.row.id for one in self.base + self.tuned}))
        shown, beside = (tuned[0], base[0] if base else None) if tuned else (base[0], None)
        return Story(shown=shown, beside=beside, why=("it is in none of the lists",), weight=0.0)


def look(
    run_id: str,
    grader: GraderRef | None,
    base: Sequence[Try],
    tuned: Sequence[Try],
    erased: Sequence[str] = (),
    flagged: Sequence[Try] = (),
) -> Looked:
    """`base` is empty where a run ended before its evaluation: then no row is worse than it was, and all else shows. `flagged` are tries
    of earlier steps that a guard points at: to be read, and no part of what the tuned model is held to."""
    every = (*tuned, *flagged)
    before, after = _by_row(base), _by_row(every)
    lists: dict[Which, tuple[Story, ...]] = {
        "worst": tuple(_worst(before, _by_row(tuned))),
        "suspicious": _one_a_row(_suspicious(before, after)),
        "graders": _one_a_row(_disagreements(before, after)),
    }
    return Looked(run_id=run_id, grader=grader, base=tuple(base), tuned=every, lists=lists, erased=tuple(erased))


# --- the lists ----------------------------------------------------------------------------------------------------------


def _worst(base: Rows, tuned: Rows) -> Iterator[Story]:
    before, after = ([one.graded for tries in side.values() for one in tries] for side in (base, tuned))
    try:
        rows = compare(before, after).rows
    except InfraError:  # no row has a score on both sides
        return
    for diff in rows:
        if sign(diff.d_reward) < 0:
            old, new = ([one for one in side[diff.row_id] if score_of(one.graded) is not None] for side in (base, tuned))
            shown, beside = min(new, key=_reward), max(old, key=_reward)
            yield Story(shown=shown, beside=beside, why=(_moved(diff, len(old), len(new)),), weight=-diff.d_reward)


def _moved(diff: RowDiff, before: int, after: int) -> str:
    tries = f", means over {before} and {after} tries" if max(before, after) > 1 else ""
    return (
        f"Δreward {diff.d_reward:+.2f} ({diff.base_reward:.2f} to {diff.tuned_reward:.2f}), "
        f"Δtools {diff.d_tools:+.1f} ({diff.base_calls:.1f} to {diff.tuned_calls:.1f}){tries}"
    )


def _suspicious(base: Rows, tuned: Rows) -> Iterator[Story]:
    for row_id, tries in tuned.items():
        for one in tries:
            if one.right and (signs := dict(_signs(one, [*base.get(row_id, ()), *tries]))):
                weight = sum(WEIGHTS[name] for name in signs)
                yield Story(shown=one, beside=_best(base.get(row_id, ())), why=tuple(signs.values()), weight=weight)


def _signs(one: Try, tries: Sequence[Try]) -> Iterator[tuple[str, str]]:
    """By name, what makes a right answer doubtful."""
    graded = one.graded
    if is_copied(graded, ()):
        yield "copied", "its answer stands in the prompt"
    if is_lucky(graded):
        yield "lucky", _without(graded)
    if one.flags:
        yield "flagged", "; ".join(one.flags)
    others = [other.graded.rollout.sampled_tokens for other in tries if other.right and other.id != one.id]
    own, usual = graded.rollout.sampled_tokens, median(others or [0])
    if len(others) >= SIBLINGS and own * SHORT <= usual:
        yield "short", f"it wrote {own} tokens, where other right tries at the row wrote {usual:.0f}"


def _without(graded: GradedRollout) -> str:
    """What a lucky guess did without."""
    expected, called = graded.row.expected, {call.name for turn in graded.rollout.turns for call in turn.calls}
    if unused := [tool for tool in expected.must_use_tools if tool not in called]:
        return f"right without {' and '.join(unused)}, which the row asks for"
    paths = (expected.evidence_path,) if isinstance(expected.evidence_path, str) else expected.evidence_path or ()
    return f"right without having come across {' or '.join(paths)}"


def _disagreements(base: Rows, tuned: Rows) -> Iterator[Story]:
    for one in (one for tries in tuned.values() for one in tries):
        given = sorted(((grade.reward, grade.grader) for grade in one.grades if grade.reward is not None), key=lambda each: each[0])
        if given and given[-1][0] - given[0][0] > SAME:
            told = ", ".join(f"{_name(ref, [other for _, other in given])} gives {reward:.2f}" for reward, ref in reversed(given))
            yield Story(shown=one, beside=_best(base.get(one.row.id, ())), why=(told,), weight=given[-1][0] - given[0][0])


def _name(ref: GraderRef, among: Sequence[GraderRef]) -> str:
    """With its hash where another one goes by the same name and version."""
    twice = sum((ref.name, ref.version) == (other.name, other.version) for other in among) > 1
    return named(ref) if twice else f"{ref.name}@{ref.version}"


def _one_a_row(found: Iterator[Story]) -> tuple[Story, ...]:
    """The most telling, the worst first."""
    by_row: dict[str, Story] = {}
    for story in sorted(found, key=lambda one: (-one.weight, one.shown.row.id, one.shown.graded.sample_index)):
        by_row.setdefault(story.shown.row.id, story)
    return tuple(by_row.values())


def _by_row(tries: Sequence[Try]) -> Rows:
    rows: Rows = {}
    for one in tries:
        rows.setdefault(one.row.id, []).append(one)
    return rows


def _best(tries: Sequence[Try]) -> Try | None:
    return max(tries, key=_reward, default=None)


def _reward(one: Try) -> float:
    reward = score_of(one.graded)
    return -1.0 if reward is None else reward


# --- which grader -------------------------------------------------------------------------------------------------------


def standing_grader(given: Sequence[Sequence[Grade]], wanted: str | None = None) -> GraderRef | None:
    """The grader that a run is looked at with: of the versions of the one that graded it first, that which scored the most of its
    rollouts, and of several the newest. So a run that was regraded as a whole is seen through the new version, and one of which only
    a card or two were is not. `wanted`: NAME@VERSION, instead. `given`: each rollout's grades, oldest first."""
    scored = {grade.grader: None for grades in given for grade in grades if grade.reward is not None}
    if wanted is not None:
        names = {f"{ref.name}@{ref.version}": ref for ref in scored}
        if wanted not in names:
            raise UserError(f"{wanted} has scored no rollout of this run", did_you_mean(wanted, names) if names else "no grader has")
        return names[wanted]
    first = next(iter(scored), None)
    return max((ref for ref in scored if first and ref.name == first.name), key=lambda ref: _weight(given, ref), default=None)


def standing_grade(grades: Sequence[Grade]) -> Grade | None:
    """The same of one rollout, where the run is not at hand: the newest score by the grader that scored it first, in whatever version.
    What another grader makes of it is an opinion, and a failure is no score."""
    scored = [one for one in grades if one.reward is not None]
    return next((one for one in reversed(scored) if one.grader.name == scored[0].grader.name), None)


def _weight(given: Sequence[Sequence[Grade]], ref: GraderRef) -> tuple[int, int]:
    """How many rollouts it scored, and how late."""
    places = [place for grades in given for place, one in enumerate(grades) if one.grader == ref and one.reward is not None]
    return sum(grade_by(grades, ref) is not None for grades in given), max(places)


def grade_by(grades: Sequence[Grade], ref: GraderRef | None) -> Grade | None:
    """The newest score of this grader."""
    return next((one for one in reversed(grades) if one.grader == ref and one.reward is not None), None)


def one_of_each(grades: Sequence[Grade], ref: GraderRef | None) -> tuple[Grade, ...]:
    """By the grader's name: another version's score is no other opinion. Of the grader that the run is looked at with it is that
    version's, or the grade beside a reward would not be the one that gave it; of any other the newest."""
    scored = {one.grader.name: one for one in grades if one.reward is not None}
    standing = grade_by(grades, ref)
    return tuple((scored | {standing.grader.name: standing} if standing else scored).values())
