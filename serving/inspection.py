"""A run's rollouts out of the store, laid out for reading; and what a reader says of them, into it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from agent_rft.contracts.errors import did_you_mean
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.people import person
from agent_rft.contracts.ports import Grader, waits
from agent_rft.evaluation import triage
from agent_rft.evaluation.inspect import Looked, Try, grade_by, look, one_of_each, standing_grade, standing_grader
from agent_rft.graders.apply import grade_rollout
from agent_rft.graders.base import PASS_THRESHOLD
from agent_rft.graders.regrading import Patience, gradable
from agent_rft.rollouts.cards import row_tried
from observability import accesses, reviews
from observability.access import Caller
from observability.cards import RunCard, cards_by_id, cards_of_run, state_of_run
from observability.dossier import Change, NotThere, Review
from observability.graders import runs_to_label
from observability.queue import flags_of_run
from observability.records import StoredCard
from observability.store import Store

AUDIT = "audit"
"""Begins the names of flags that say nothing of the card: it was drawn."""
ASKED_AT_ONCE = 32
KEPT = 2
"""Runs whose rollouts are in memory."""


def looked_at(store: Store, tenant: str, run_id: str, wanted: str | None = None, holdouts: Sequence[Grader] = ()) -> Looked:
    """`wanted`: the grader version to look with; `holdouts` are asked now, and what they say is kept nowhere."""
    mine = store.of(tenant)
    cards = cards_of_run(mine, run_id)
    if not cards:
        runs = [name for name, _ in runs_to_label(mine)]
        raise NotThere(f"no card of run {run_id} is in {store.name}", did_you_mean(run_id, runs) if runs else "train first: make train")
    flags = {
        rollout_id: tuple(f"{one.reason.partition(':')[2]}: {one.why}" for one in given)
        for rollout_id, given in flags_of_run(mine, tenant, run_id).items()
        if not all(one.reason.partition(":")[2].startswith(AUDIT) for one in given)
    }
    base, tuned, flagged = _sides(cards, set(flags))
    stored, erased = dict[str, StoredCard](), list[str]()
    for one in cards_by_id(mine, [*base, *tuned, *flagged], tenant):
        if one.erased:
            erased.append(one.card.row_id)
        else:
            stored[one.card.rollout_id] = one
    given = {rollout_id: [dated.grade for dated in one.grades] for rollout_id, one in stored.items()}
    ref = standing_grader(list(given.values()), wanted)

    def tried(rollout_ids: Sequence[str]) -> list[Try]:
        made = (_try(stored[one], grade_by(given[one], ref), one_of_each(given[one], ref), flags) for one in rollout_ids if one in stored)
        heard = [one for one in made if one]
        for grader in holdouts:
            heard = _heard(heard, grader, given)
        return heard

    return look(run_id, ref, tried(base), tried(tuned), erased, tried(flagged))


def _sides(cards: Sequence[RunCard], flagged: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Ids of the base's tries, of the tuned model's, and of others that a guard flagged, which are read in any case. A run asks its base
    first, and the weights that it was left with last. One that ended before that is read by its newest step."""
    judged = [one for one in cards if one.kind == "eval" and one.step is None]
    checkpoints = list(dict.fromkeys(one.checkpoint for one in judged))
    base = [one.rollout_id for one in judged if checkpoints[0] == one.checkpoint]
    if len(checkpoints) > 1:
        tuned = [one.rollout_id for one in judged if checkpoints[-1] == one.checkpoint]
    else:
        newest = max((one.step for one in cards if one.step is not None), default=None)
        tuned = [one.rollout_id for one in cards if newest is not None and one.step == newest]
    if not tuned:  # an evaluation of one model, and nothing else
        base, tuned = [], base
    told = {*base, *tuned}
    return base, tuned, [one.rollout_id for one in cards if one.rollout_id in flagged and one.rollout_id not in told]


def _heard(tries: Sequence[Try], grader: Grader, given: Mapping[str, Sequence[Grade]]) -> list[Try]:
    """With what this grader says of them too, unless it has said it before. One that waits is asked in threads: a judge takes a second
    or more a rollout."""

    def said(one: Try) -> Grade | None:
        known = any(grade.grader.hash == grader.ref.hash for grade in given[one.id])
        return None if known else grade_rollout(one.row, one.graded.rollout, grader)

    heard, patience = list[Try](), Patience(grader)
    with ThreadPoolExecutor(ASKED_AT_ONCE if waits(grader) else 1, thread_name_prefix="grading") as pool:
        for one, grade in zip(tries, pool.map(said, tries), strict=True):
            heard.append(msgspec.structs.replace(one, grades=(*one.grades, grade)) if grade else one)
            if grade:
                patience.hear(grade)
    return heard


def _try(stored: StoredCard, grade: Grade | None, each: tuple[Grade, ...], flags: Mapping[str, tuple[str, ...]]) -> Try | None:
    """None where infrastructure left nothing to read."""
    card, rollout = stored.card, gradable(stored.card.rollout)
    if rollout is None:
        return None
    return Try(
        graded=GradedRollout(row_tried(card), card.sample_index, rollout, grade),
        checkpoint=card.versions.checkpoint,
        grades=each,
        flags=flags.get(card.rollout_id, ()),
    )


class Looks:
    """What was looked at last, for whoever goes through a run story by story: to read thousands of cards again for each takes seconds.
    Good for as long as nothing of the run has changed in the store."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], tuple[object, Looked]] = {}
        self._lock = threading.Lock()

    def at(self, store: Store, tenant: str, run_id: str) -> Looked:
        mine, key = store.of(tenant), (tenant, run_id)
        state = state_of_run(mine, run_id), flags_of_run(mine, tenant, run_id)
        with self._lock:
            kept = self._kept.pop(key, None)
        looked = kept[1] if kept and kept[0] == state else looked_at(store, tenant, run_id)
        with self._lock:
            self._kept[key] = (state, looked)
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return looked


# --- triage ---------------------------------------------------------------------------------------------------------------


class Triaged(msgspec.Struct, frozen=True, kw_only=True):
    review: Review
    change: Change | None
    """What is asked of whoever mends the row or the tool."""
    mending: triage.Mending | None
    """How the grader comes to be mended."""


def triaged(store: Store, caller: Caller, rollout_id: str, fault: str, words: str, address: str = "") -> Triaged:
    """`address`: of the store as it was typed; its own name hides a password."""
    blamed = triage.read_blamed(fault, words)
    mine = store.of(caller.tenant)
    stored = _stored(mine, caller.tenant, rollout_id)
    accesses.note(store, caller, "triage", rollout_id, [rollout_id])
    grade = _grade_of(stored)
    right = grade is not None and grade.reward is not None and grade.reward >= PASS_THRESHOLD
    said = (mine, caller.name, caller.tenant, rollout_id, triage.verdict_on(blamed, right), triage.note_of(blamed, words), None)
    if blamed in ("dataset", "tool"):
        review, change = reviews.add_with_change(*said, blamed)
        return Triaged(review=review, change=change, mending=None)
    review, where = reviews.add(*said), triage.Where(address or store.name, caller.tenant)
    return Triaged(review=review, change=None, mending=_mending(stored, review, where) if blamed == "grader" else None)


class Said(NamedTuple):
    by: str
    blamed: triage.Blamed


def blamed_each(store: Store, tenant: str, rollout_ids: Sequence[str]) -> dict[str, tuple[Said, ...]]:
    """What each person's newest triage of each of the cards says, the newest last: two who read a card may not be of one mind. A card
    that nobody has triaged is not there."""
    found: dict[str, dict[str, Said]] = {}
    for one in reviews.reviews_of_each(store.of(tenant), tenant, rollout_ids):
        if blamed := triage.blamed_in(one.note):
            said = found.setdefault(one.rollout_id, {})
            said.pop(person(one.by), None)
            said[person(one.by)] = Said(one.by, blamed)
    return {rollout_id: tuple(said.values()) for rollout_id, said in found.items()}


def mending_of(store: Store, tenant: str, rollout_id: str) -> triage.Mending | None:
    """What follows from the newest triage, where that blames the grader."""
    mine = store.of(tenant)
    newest = next((one for one in reversed(reviews.reviews_of(mine, tenant, rollout_id)) if triage.blamed_in(one.note)), None)
    if newest is None or triage.blamed_in(newest.note) != "grader":
        return None
    return _mending(_stored(mine, tenant, rollout_id), newest, triage.Where(store.name, tenant))


def _stored(mine: Store, tenant: str, rollout_id: str) -> StoredCard:
    stored = next(cards_by_id(mine, [rollout_id], tenant), None)
    if stored is None:
        raise NotThere(f"no card has the id {rollout_id[:200]}", "`rft inspect RUN` and the pages under /inspect show those of a run")
    return stored


def _grade_of(stored: StoredCard) -> Grade | None:
    return standing_grade([dated.grade for dated in stored.grades])


def _mending(stored: StoredCard, review: Review, where: triage.Where) -> triage.Mending | None:
    """None where no grader has scored it."""
    card, grade = stored.card, _grade_of(stored)
    if grade is None:
        return None
    ref, words = grade.grader, review.note.partition("\n")[2]
    case = triage.case_of(row_tried(card).item(), card.rollout.answer, right=review.verdict == "accept", words=words)
    return triage.mending(card.run_id, ref.name, ref.version, case, where)
