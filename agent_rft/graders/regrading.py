"""Stored rollouts under another grader, without running a model: what they are graded from, and what it would have changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

import msgspec

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.ports import Grader, waits
from agent_rft.contracts.rollouts import Ending, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.compare import Comparison, compare
from agent_rft.graders.agreement import SAME
from agent_rft.rollouts.cards import row_tried
from agent_rft.training.advantages import group_advantages, is_flat, shaped

AWAY = 32
"""Rollouts in a row without a score, from which on a grader that waits for others is taken to be away."""


class Versioned:
    """A grader under the name and the version that it was registered with. Its hash stays that of what decides."""

    def __init__(self, grader: Grader, name: str, version: str) -> None:
        self._grader = grader
        self.ref = GraderRef(name, version, grader.ref.hash)
        self.waits = waits(grader)

    def grade(self, item: dict[str, object], sample: dict[str, object]) -> Grade:
        return msgspec.structs.replace(self._grader.grade(item, sample), grader=self.ref)


def row_of(card: JobCard, rows: Mapping[str, Row]) -> tuple[Row, bool]:
    """What was asked, and whether all of it is known: an old card keeps neither the row's `expected` nor its own keys.

    `rows`, by id, fill that in. A row that has another reference answer by now is another row.
    """
    if card.item is not None:
        return row_tried(card), True
    known = rows.get(card.row_id)
    if known is not None and known.reference_answer == card.reference_answer:
        return known, True
    return row_tried(card), False


def gradable(rollout: Rollout) -> Rollout | None:
    """The rollout as a grader may judge it; None where infrastructure failed before there was anything to judge.

    Where only the grader failed, the answer is there all the same: a failed judge is asked again.
    """
    if rollout.ending is None:
        return None
    if rollout.ending.graded:
        return rollout
    if rollout.failed_part.startswith("grader:") and rollout.answer:
        return msgspec.structs.replace(rollout, ending=Ending.ANSWERED)
    return None


class Patience:
    """With a grader that waits for others, over many rollouts. To find out once that a judge is away takes two minutes of trying again;
    to find it out for each of ten thousand rollouts takes most of a day."""

    def __init__(self, grader: Grader) -> None:
        self._name, self._waits, self._failed = grader.ref.name, waits(grader), 0

    def hear(self, grade: Grade) -> None:
        """Of each rollout in its turn."""
        self._failed = self._failed + 1 if grade.reward is None else 0
        if self._waits and self._failed >= AWAY:
            what = f"it gave no score on {AWAY} rollouts in a row, on the last because of {grade.errors}"
            raise InfraError(
                f"grader {self._name}",
                what,
                "see that it answers, then give the same command again; where it is the rollouts' fault, name others",
            )


class Judged(msgspec.Struct, frozen=True):
    """A try of the base model or of the tuned one at a held-out row, under the grader of then and under the other."""

    run_id: str
    started_at: str
    checkpoint: str
    before: GradedRollout
    after: GradedRollout


class ReleaseEffect(msgspec.Struct, frozen=True, kw_only=True):
    """Base against tuned, under both graders. None where no row has a score on both sides."""

    run_id: str
    base: str
    tuned: str
    before: Comparison | None
    after: Comparison | None


def judged_by(card: JobCard, before: Grade, after: Grade) -> Judged | None:
    """None of the validations in the middle of training, whose cards have a step: no release hangs on them. Kept without its
    words, as thousands of them are."""
    rollout = gradable(card.rollout)
    if rollout is None or card.step is not None:
        return None
    row = Row(card.row_id, "", card.reference_answer, metadata=card.metadata)
    spare = msgspec.structs.replace(rollout, opening=(), tools=(), turns=[Turn("", calls=turn.calls) for turn in rollout.turns])
    sides = (GradedRollout(row, card.sample_index, spare, grade) for grade in (before, after))
    return Judged(card.run_id, card.started_at, card.versions.checkpoint, *sides)


def release_effects(judged: Iterable[Judged]) -> list[ReleaseEffect]:
    """Of each run that has tries of both. A run asks its base first, and the weights that it was left with last."""
    runs: dict[str, dict[str, list[Judged]]] = {}
    for one in sorted(judged, key=lambda one: one.started_at):
        runs.setdefault(one.run_id, {}).setdefault(one.checkpoint, []).append(one)
    return [_release_effect(run_id, checkpoints) for run_id, checkpoints in runs.items() if len(checkpoints) > 1]


def _release_effect(run_id: str, checkpoints: Mapping[str, Sequence[Judged]]) -> ReleaseEffect:
    names = list(checkpoints)
    base, tuned = checkpoints[names[0]], checkpoints[names[-1]]
    before = _compared([one.before for one in base], [one.before for one in tuned])
    after = _compared([one.after for one in base], [one.after for one in tuned])
    return ReleaseEffect(run_id=run_id, base=names[0], tuned=names[-1], before=before, after=after)


def _compared(base: Sequence[GradedRollout], tuned: Sequence[GradedRollout]) -> Comparison | None:
    try:
        return compare(base, tuned)
    except InfraError:
        return None


class Worth(msgspec.Struct, frozen=True):
    """A training rollout's reward under the grader that trained it, and under the other."""

    group: tuple[str, int | None, str]
    """Run, step and row: the tries that it was compared with."""
    before: float | None
    after: float | None
    tool_calls: int
    advantage: float | None
    """As it was recorded."""
    sample_index: int
    started_at: str


class TrainingEffect(msgspec.Struct, frozen=True, kw_only=True):
    """What training would have been told: within each group, how much better than the others a try did."""

    groups: int
    flat_before: int
    flat_after: int
    """Groups that teach nothing."""
    reversed: int
    """Rollouts that were encouraged and would have been discouraged, or the other way round."""
    mean_shift: float | None
    """Mean distance between the two advantages."""
    unlike_record: int
    """Rollouts whose recorded advantage is not the one computed here: the run charged for calls otherwise."""


def training_effect(rollouts: Iterable[Worth], call_cost: float) -> TrainingEffect:
    groups: dict[tuple[str, int | None, str], list[Worth]] = {}
    for one in rollouts:
        groups.setdefault(one.group, []).append(one)
    pairs, flat_before, flat_after, unlike = list[tuple[float, float]](), 0, 0, 0
    compared = [go for tries in groups.values() for go in _goes(tries)]
    for tries in compared:
        before, after = (_trained_on(tries, rewards, call_cost) for rewards in ([t.before for t in tries], [t.after for t in tries]))
        flat_before += is_flat(before)
        flat_after += is_flat(after)
        old, new = group_advantages(before), group_advantages(after)
        pairs += [(one, other) for one, other in zip(old, new, strict=True) if one is not None and other is not None]
        unlike += sum(_unlike(one, held.advantage) for one, held in zip(old, tries, strict=True))
    return TrainingEffect(
        groups=len(compared),
        flat_before=flat_before,
        flat_after=flat_after,
        reversed=sum(one * other < -SAME for one, other in pairs),
        mean_shift=fmean(abs(one - other) for one, other in pairs) if pairs else None,
        unlike_record=unlike,
    )


def _goes(tries: Sequence[Worth]) -> list[list[Worth]]:
    """A step that was killed, and made again by the run that went on, has its tries twice: each go was compared within itself. They are
    read from the end: the last go is whole, and of one that was killed any try may have come to its end."""
    goes: list[list[Worth]] = []
    for one in sorted(tries, key=lambda one: one.started_at, reverse=True):
        if not goes or any(one.sample_index == other.sample_index for other in goes[-1]):
            goes.append([])
        goes[-1].append(one)
    return goes


def _trained_on(tries: Sequence[Worth], rewards: Sequence[float | None], call_cost: float) -> list[float | None]:
    return [None if reward is None else shaped(reward, one.tool_calls, call_cost) for one, reward in zip(tries, rewards, strict=True)]


def _unlike(computed: float | None, recorded: float | None) -> bool:
    return computed is not None and recorded is not None and abs(computed - recorded) > 1e-4
