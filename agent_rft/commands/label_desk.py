"""Labelling over the job-card store: what `rft label` and the app's page both sit at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_rft.commands.registered import shipped
from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.people import same_person
from agent_rft.graders.labelling import Agreement, Round, Shown, agreements, blind_view, in_order
from agent_rft.graders.reports import named
from observability.cards import cards_by_id
from observability.graders import active_version, give_label_once, labels_of, rollouts_to_label, runs_to_label, withdraw_label
from observability.records import StoredCard
from observability.store import Store

Tell = Callable[[str, str, Sequence[str]], None]


class StoreDesk:
    """A `Desk` over a store, or over what of it one tenant sees. `tell` hears who is shown or says what of which rollouts, before it is
    so: (action, run id, rollout ids)."""

    def __init__(self, store: Store, tell: Tell = lambda *_: None) -> None:
        self._store, self._tell = store, tell

    def runs(self) -> Sequence[tuple[str, int]]:
        return runs_to_label(self._store)

    def next(self, round_: Round, start: str = "") -> Shown | None:
        ahead = self._ahead(round_, start)
        if not ahead:
            return None
        place, rollout_id = ahead[0]
        self._tell("show for a label", round_.run_id, [rollout_id])
        return Shown(place, blind_view(next(cards_by_id(self._store, [rollout_id])).card), len(ahead))

    def left(self, round_: Round) -> int:
        return len(self._ahead(round_, ""))

    def give(self, round_: Round, place: str, score: float) -> bool:
        rollout_id = self._at(round_, place)
        self._tell("label", round_.run_id, [rollout_id])
        return give_label_once(self._store, round_.who, rollout_id, score)

    def take_back(self, round_: Round, place: str) -> bool:
        rollout_id = self._at(round_, place)
        self._tell("take back label", round_.run_id, [rollout_id])
        return withdraw_label(self._store, round_.who, rollout_id)

    def agreement(self, round_: Round) -> Sequence[Agreement]:
        self._rollouts(round_)  # a run that is not there is an error, not a run without labels
        labels = labels_of(self._store, round_.run_id)
        own = [one.rollout_id for one in labels if same_person(one.who, round_.who)]
        self._tell("agreement of labels", round_.run_id, own)
        return agreements(round_.who, labels, self._standing_grades(own))

    def _ahead(self, round_: Round, start: str) -> list[tuple[str, str]]:
        order = in_order(round_, self._rollouts(round_))
        done = {one.rollout_id for one in labels_of(self._store, round_.run_id) if same_person(one.who, round_.who)}
        return [(place, rollout_id) for place, rollout_id in order if place >= start and rollout_id not in done]

    def _rollouts(self, round_: Round) -> list[str]:
        found = rollouts_to_label(self._store, round_.run_id, round_.kind)
        if found:
            return found
        what = f"no rollout of run {round_.run_id} to label is in {self._store.name}"
        runs = dict(self.runs())
        if not runs:
            raise UserError(f"{what}: it holds no run", "train first: make train; or name another store with store.url=...")
        if round_.run_id in runs:
            raise UserError(f"{what} of kind {round_.kind}", "leave the kind out, or name another")
        raise UserError(what, did_you_mean(round_.run_id, runs))

    def _at(self, round_: Round, place: str) -> str:
        """Of the whole run, whatever kind is being labelled."""
        for known, rollout_id in in_order(round_, rollouts_to_label(self._store, round_.run_id)):
            if known == place:
                return rollout_id
        raise UserError("the rollout that was labelled is not in the store", "go on with the next one")

    def _standing_grades(self, rollout_ids: Sequence[str]) -> dict[str, dict[str, Grade]]:
        """By the name of the grader that stands now; a rollout that it has not scored is left out."""
        refs: dict[str, GraderRef] = {}
        found: dict[str, dict[str, Grade]] = {}
        for stored in cards_by_id(self._store, rollout_ids):
            if stored.grades:
                first = stored.grades[0].grade.grader
                ref = refs.setdefault(first.name, _standing(self._store, first))
                given = _newest_by(stored, ref)
                found.setdefault(named(ref), {}).update({stored.card.rollout_id: given} if given else {})
        return found


def _standing(store: Store, first: GraderRef) -> GraderRef:
    """The version that stands under the name of the grader that the rollout had; its own where none does."""
    if active := active_version(store, first.name):
        return active.ref
    ships = shipped(first.name)
    return ships.ref if ships else first


def _newest_by(stored: StoredCard, ref: GraderRef) -> Grade | None:
    given = [dated.grade for dated in stored.grades if dated.grade.grader.hash == ref.hash and dated.grade.reward is not None]
    return given[-1] if given else None
