"""`rft regrade`: stored rollouts under any grader version, without running a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agent_rft.commands.parts import console, progress_bar
from agent_rft.commands.registered import Build, registered_grader
from agent_rft.commands.run_folder import RunFolder
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.ports import Grader, waits
from agent_rft.contracts.rows import Row
from agent_rft.datasets.rows_io import read_rows
from agent_rft.evaluation.compare import verdict_told
from agent_rft.graders.agreement import Changed, Difference, difference
from agent_rft.graders.apply import grade_rollout
from agent_rft.graders.regrading import (
    Judged,
    Patience,
    ReleaseEffect,
    TrainingEffect,
    Worth,
    gradable,
    judged_by,
    release_effects,
    row_of,
    training_effect,
)
from agent_rft.graders.reports import named
from observability.cards import card_ids, cards_by_id, of_one_tenant, whole_id
from observability.graders import append_grades
from observability.records import StoredCard
from observability.states import sealed_error, sealed_of
from observability.store import Store, open_store

WAITING = 16
"""Grades under way at once, of a grader that waits for others."""
KEPT_AT_ONCE = 100
"""Grades in a transaction: what a killed regrade has to do again."""
SHOWN = 20
"""Changed rollouts that are listed."""


class Rescored(msgspec.Struct, frozen=True):
    """A rollout under two graders, without the rollout: ten thousand of them would fill the memory."""

    rollout_id: str
    kind: str
    row: Row
    whole_row: bool
    """False where all that is known of the row is what an old card keeps."""
    first: Grade
    """What the rollout was trained or judged on; without a score where there was none."""
    grade: Grade
    new: bool
    """False where the store had this grader's grade."""
    worth: Worth | None
    """Where it was trained on."""
    judged: Judged | None
    """Where it was made to judge the run's weights."""


def regrade(
    url: str,
    name: str,
    build: Build,
    *,
    tenant: str = "default",
    run_id: str | None = None,
    cards: Sequence[str] = (),
    kind: str | None = None,
    rows: Sequence[str] = (),
    call_cost: float | None = None,
) -> None:
    """Scores stored rollouts again and adds the grades. Cards that have one by this very grader keep it: a stopped regrade goes on.

    Rows and `call_cost` that are not given come from the run's own folder, where it is there.
    """
    with closing(open_store(url)) as opened:
        grader = registered_grader(opened, name, build)
        store = of_one_tenant(opened, tenant, run_id, cards)
        named_ones = [whole_id(store, card) for card in cards]
        ids = list(dict.fromkeys(named_ones + (card_ids(store, run_id, kind) if run_id else [])))
        if not ids:
            raise UserError(f"no card of run {run_id} is in {store.name}" if run_id else "no card is named", "--run RUN, or --card ID ...")
        if sealed := sealed_of(store, ids):
            if len(sealed) == len(ids):
                raise sealed_error(sealed)
            console.print(f"{len(sealed)} of {len(ids)} cards are sealed and keep the grades that they have", style="yellow")
            ids = [one for one in ids if one not in set(sealed)]
        done, added = _graded_anew(store, ids, grader, rows_of(run_id, rows), name)
    _show_regrade(name, grader, len(ids), done, added)
    for release in release_effects([one.judged for one in done if one.judged]):
        _show_release(name, release)
    _show_training(done, _call_cost(run_id) if call_cost is None else call_cost)


def _graded_anew(store: Store, ids: Sequence[str], grader: Grader, rows: Mapping[str, Row], name: str) -> tuple[list[Rescored], int]:
    """And how many grades were added. Whatever stops it, those that were given by then are kept: a judge's were paid for."""
    done, fresh, added = list[Rescored](), list[tuple[str, Grade]](), 0
    try:
        for one in rescored(store, ids, grader, rows, f"regrading with {name}"):
            done.append(one)
            fresh += [(one.rollout_id, one.grade)] if one.new else []
            if len(fresh) >= KEPT_AT_ONCE:
                added += append_grades(store, fresh, store.tenant)
                fresh = []  # only now: what stopped the writing wrote nothing
    finally:
        added += append_grades(store, fresh, store.tenant)
    return done, added


def rescored(store: Store, ids: Sequence[str], grader: Grader, rows: Mapping[str, Row], title: str) -> Iterator[Rescored]:
    """Those of the cards that can be graded, in their order."""

    def score(stored: StoredCard) -> Rescored | None:
        rollout = gradable(stored.card.rollout)
        if rollout is None or stored.erased:
            return None
        row, whole = row_of(stored.card, rows)
        kept = _kept(stored, grader.ref)
        grade = kept or grade_rollout(row, rollout, grader)
        return grade and _rescored(stored, row, whole, grade, kept is None)

    patience = Patience(grader)
    with progress_bar(title, len(ids)) as step, ThreadPoolExecutor(WAITING if waits(grader) else 1) as pool:
        for first in range(0, len(ids), KEPT_AT_ONCE):
            for found in pool.map(score, cards_by_id(store, ids[first : first + KEPT_AT_ONCE])):
                step(1)
                if found:
                    yield found
                    patience.hear(found.grade)


def _kept(stored: StoredCard, ref: GraderRef) -> Grade | None:
    """The score that this very grader gave before. Where it failed it is asked again."""
    given = [dated.grade for dated in stored.grades if dated.grade.grader.hash == ref.hash and dated.grade.reward is not None]
    return given[-1] if given else None


def _rescored(stored: StoredCard, row: Row, whole: bool, grade: Grade, new: bool) -> Rescored:
    card = stored.card
    first = stored.grades[0].grade if stored.grades else Grade(GraderRef("", "", ""), None)
    worth = _worth(card, first, grade) if card.kind == "train" else None
    judged = judged_by(card, first, grade) if card.kind == "eval" else None
    return Rescored(card.rollout_id, card.kind, row, whole, first, grade, new, worth, judged)


def _worth(card: JobCard, before: Grade, after: Grade) -> Worth:
    group, calls = (card.run_id, card.step, card.row_id), card.rollout.tool_calls
    return Worth(group, before.reward, after.reward, calls, card.advantage, card.sample_index, card.started_at)


def rows_of(run_id: str | None, files: Sequence[str]) -> dict[str, Row]:
    """By id, of the files that are named, else of those that the run was made from."""
    paths = [Path(file) for file in files]
    if not paths and (folder := run_id and RunFolder.found(run_id)):
        task = folder.settings([]).task
        paths = [path for path in (Path(task.train), Path(task.val)) if path.exists()]
    return {row.id: row for path in paths for row in read_rows(path)}


def _call_cost(run_id: str | None) -> float:
    folder = run_id and RunFolder.found(run_id)
    return folder.settings([]).algorithm.call_cost if folder else 0.0


# --- what is shown ------------------------------------------------------------------------------------------------------


def show_difference(found: Difference, by_kind: Mapping[str, Difference] | None = None) -> None:
    """`by_kind`: the same for training, evaluation and the rest apart, where there are several."""
    table = Table("", "rollouts", "mean reward", "after", "pass rate", "after", box=SIMPLE_HEAD)
    for name, one in {"all": found, **(by_kind or {})}.items():
        means, rates = (one.mean_before, one.mean_after), (one.pass_rate_before, one.pass_rate_after)
        table.add_row(name, str(one.samples), *map(_number, means), *map(_share, rates))
    console.print(table, soft_wrap=False)
    ranks = f"rank correlation {_number(found.spearman)} (Spearman), {_number(found.kendall)} (Kendall)"
    console.print(f"{found.scored_by_both} of {found.samples} rollouts scored by both; {ranks}")
    if found.changed:
        _show_changed(found.changed)


def _show_changed(changed: Sequence[Changed]) -> None:
    more = f", the first {SHOWN}" if len(changed) > SHOWN else ""
    table = Table(
        "rollout", "change", "before", "after", title=f"{len(changed)} rollouts change{more}", title_justify="left", box=SIMPLE_HEAD
    )
    flips = sorted(changed, key=lambda one: one.change == "other reward")  # a verdict that turns is seen first
    for one in flips[:SHOWN]:
        table.add_row(one.sample, one.change, _number(one.before), _number(one.after))
    console.print(table, soft_wrap=False)


def _show_regrade(name: str, grader: Grader, cards: int, done: Sequence[Rescored], added: int) -> None:
    console.print(f"{cards} cards: {added} grades of {name} added, {len(done) - added} had one, {cards - len(done)} have nothing to grade")
    failed = [one.grade for one in done if one.grade.reward is None]
    if failed:
        console.print(f"{len(failed)} got no score; the first: {json.dumps(failed[0].errors, ensure_ascii=False)}", style="yellow")
    tell_partial(sum(not one.whole_row for one in done))
    console.print(f"before: each rollout's first grade; after: {named(grader.ref)}")
    kinds = sorted({one.kind for one in done})
    by_kind = {kind: _difference([one for one in done if one.kind == kind]) for kind in kinds if len(kinds) > 1}
    show_difference(_difference(done), by_kind)


def _difference(done: Sequence[Rescored]) -> Difference:
    return difference({one.rollout_id: one.first for one in done}, {one.rollout_id: one.grade for one in done})


def tell_partial(cards: int) -> None:
    if cards:
        what = f"warning: of {cards} cards only question, reference answer and metadata are known, not the row's expected.* and own keys"
        console.print(f"{what}; --rows FILE.jsonl holds them", style="yellow")


def _show_training(done: Sequence[Rescored], call_cost: float) -> None:
    trained = [one.worth for one in done if one.worth]
    if not trained:
        return
    found = training_effect(trained, call_cost)
    console.print(f"training, within its {found.groups} groups: {_told(found)}")
    if found.unlike_record:
        what = f"warning: {found.unlike_record} recorded advantages are not those computed with a cost of {call_cost:g} a call"
        console.print(f"{what}; --call-cost names another", style="yellow")


def _show_release(name: str, found: ReleaseEffect) -> None:
    """Under one grader and the other, whether the tuned weights would be called better."""
    console.print(f"release of run {found.run_id}: {found.tuned} against {found.base}")
    sides = {"as it was graded": found.before, f"by {name}": found.after}
    for title, one in sides.items():
        console.print(f"  {title + ':':<20} {verdict_told(one)}")
    if found.before and found.after:
        stays = found.before.verdict == found.after.verdict
        console.print("  the verdict stays" if stays else "  the verdict would have been another")


def _told(found: TrainingEffect) -> str:
    flat = f"{found.flat_before} groups taught nothing, {found.flat_after} would"
    return f"{found.reversed} rollouts would be pushed the other way, advantages shift by {_number(found.mean_shift)} on average; {flat}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
