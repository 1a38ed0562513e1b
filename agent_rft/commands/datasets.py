"""`rft data ...`: versions of data sets, made from files, job cards, a stronger model or FinQA, and looked at."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agent_rft.commands.access import me
from agent_rft.commands.parts import console
from agent_rft.commands.run_folder import VERSIONS, RunFolder
from agent_rft.contracts.errors import FaultsFound, InfraError, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import JobCard, Versions
from agent_rft.contracts.rows import Row
from agent_rft.datasets.curriculum import COPY_OF, FEWEST_TRIES, NOTHING_LEFT_OUT, Curriculum, LeftOut, Met, curriculum
from agent_rft.datasets.filings import TOOLS
from agent_rft.datasets.finqa_files import write_finqa
from agent_rft.datasets.from_cards import Approved, Choice, Redact, rows_of_cards
from agent_rft.datasets.harvest import only_new
from agent_rft.datasets.leaks import leaks_and_turned, turned_told
from agent_rft.datasets.refresh import refresh as refreshed_by
from agent_rft.datasets.rows import dataset_hash, version_of
from agent_rft.datasets.rows_io import read_placed, read_rows, write_openai_rows, write_rows
from agent_rft.datasets.slices import select
from agent_rft.datasets.split import split_rows
from agent_rft.datasets.synthesis import Ask, Outcome, Plan, Source, accepted, run_trial
from agent_rft.datasets.version_files import CARD, card_files, read_card, read_version, write_version
from agent_rft.datasets.versions import NAMED, DatasetCard, Origin
from agent_rft.evaluation.inspect import standing_grade
from agent_rft.evaluation.prior import PriorCheck, RowPrior, row_prior
from agent_rft.evaluation.tries import score_of, tries_by_row
from agent_rft.graders.registry import load_grader
from agent_rft.graders.regrading import gradable
from agent_rft.graders.wire import Wire
from observability.accesses import note
from observability.cards import cards_by_id, count_cards, grades_by_id, of_one_tenant, recent_cards
from observability.redaction.redact import redact as redact_text
from observability.store import Store, open_store
from serving.tools.corpus import text_of

RETIRED, REVIEW = "retired.jsonl", "review.jsonl"
"""Beside a version's rows, those that it left out of training."""
LONGEST_DOCUMENT = 20_000
"""Characters of a document that a model is shown."""


def card(train: str, val: str | None, name: str, source: str) -> None:
    """The card of files that are there, made where there is none, or where they were changed since."""
    splits = {"train": Path(train)} | ({"val": Path(val)} if val else {})
    _show(card_files(splits, Origin(name=name or Path(train).absolute().parent.name, source=source, made_by=_command())))


def split(file: str, out: str, val_share: float, seed: int, group_by: str, name: str) -> None:
    """`group_by`: a key of the metadata; rows that share its value stay on one side. Empty for none."""
    rows = read_rows(Path(file))
    if group_by and (without := [row.id for row in rows if group_by not in row.metadata]):
        raise UserError(f"{len(without)} rows have no '{group_by}' in their metadata: {', '.join(without[:5])}", "group by another key")

    def group_of(row: Row) -> str:
        return str(row.metadata[group_by])

    train, val = split_rows(rows, val_share, seed, group_of if group_by else None)
    origin = Origin(name=name or Path(out).name, source=f"split of {file}", made_by=_command(), parents=_parents([Path(file)]))
    _show(write_version(Path(out), {"train": train, "val": val}, origin))


def check(train: str, val: str) -> None:
    """Every validation row that training already asks, in the same words or nearly, with the place of both."""
    placed = read_placed(Path(train)), read_placed(Path(val))
    leaks, turned = leaks_and_turned(*placed)
    if warning := turned_told(turned, len(placed[1])):
        console.print(f"warning: {warning}", style="yellow")
    if leaks:
        told = "row" if len(leaks) == 1 else "rows"
        raise FaultsFound(f"{len(leaks)} of {len(placed[1])} validation {told} leak:", [leak.fault() for leak in leaks])
    console.print(f"no leak: none of {len(placed[1])} validation rows is asked by the {len(placed[0])} training rows", style="green")


def slice_rows(file: str, where: list[str], out: str) -> None:
    """The rows for which every condition holds, as a file; its own card comes with `rft data card`."""
    chosen = select(read_rows(Path(file)), where)
    if not chosen:
        raise UserError(f"no row of {file} meets {' and '.join(where)}", "loosen a condition")
    write_rows(_new_file(out), chosen)
    console.print(f"{out}: {len(chosen)} rows, {dataset_hash(chosen)}")


def _new_file(out: str) -> Path:
    """Rows that are there are not written over: they may be the very ones that were read."""
    if os.path.lexists(out):
        raise UserError(f"there is a {out} already", "name another file with --out")
    return Path(out)


def export_openai(file: str, out: str) -> None:
    rows = read_rows(Path(file))
    write_openai_rows(_new_file(out), rows)
    console.print(f"{out}: {len(rows)} rows in OpenAI's RFT shape")


def finqa(train: str, val: str | None, out: str, keep_yes_no: bool) -> None:
    paths = {"train": Path(train)} | ({"val": Path(val)} if val else {})
    origin = Origin(name=Path(out).name, source=f"FinQA: {', '.join(map(str, paths.values()))}", made_by=_command())
    made = write_finqa(paths, Path(out), origin, keep_yes_no)
    _show(made)
    console.print(f"train with task=finqa tools=finqa {_named_rows(out)} {shlex.quote(f'tools.corpus={out}/reports')}")


def refresh_by_prior(folder: str, prior: str, out: str) -> None:
    """A new version from what a model can do: `prior` is the prior.json of a run on this data set's training rows."""
    try:
        measured = msgspec.json.decode(Path(prior).read_bytes(), type=PriorCheck)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"cannot read {prior}: {error}", "name a run's prior.json: `rft prior` writes one") from None
    _refresh(Path(folder), measured.rows, prior, Path(out))


def refresh_by_run(folder: str, run_id: str, store_url: str, out: str, tenant: str | None = None) -> None:
    """The same from what a run on these rows met in training: every try at a row, from the first step to the last, as graded
    now."""
    found = RunFolder.found(run_id)
    settings = found.settings([]) if found else None
    with closing(open_store(store_url)) as opened:
        store = of_one_tenant(opened, tenant or (settings.store.tenant if settings else "default"), run_id)
        tries = _trained_on(store, run_id)
        if not tries:
            raise UserError(f"no training card of run {run_id} is in {store.name}", "`rft card list` shows runs; --store names another")
    pass_at = settings.grader.pass_at if settings else 1.0
    rewards: dict[str, list[float | None]] = {}
    for row_id, _, reward in tries:
        rewards.setdefault(row_id, []).append(reward)
    measured = [
        row_prior(row_id, [one for one in given if one is not None], given.count(None), pass_at) for row_id, given in rewards.items()
    ]
    _refresh(Path(folder), measured, f"{len(tries)} training cards of run {run_id}, solved from reward {pass_at:g} on", Path(out))


def _refresh(folder: Path, measured: Sequence[RowPrior], by: str, out: Path) -> None:
    before, rows = read_version(folder)
    fresh = refreshed_by(rows["train"], measured)
    left_out = {"solved always, retired": len(fresh.retired), "never solved, for review": len(fresh.review)}
    source = f"{before.origin.name}, kept by {by}: solved sometimes, and {fresh.unmeasured} rows without a score"
    origin = Origin(name=out.name, source=source, made_by=_command(), parents=(before.hash,), left_out=left_out)
    made = write_version(out, {**rows, "train": fresh.kept}, origin)
    for file, held in ((RETIRED, fresh.retired), (REVIEW, fresh.review)):
        write_rows(out / file, held)
    _show(made)
    console.print(f"kept: {len(fresh.kept) - fresh.unmeasured} solved sometimes, {fresh.unmeasured} without a score there")


# --- from an evaluation --------------------------------------------------------------------------------------------------


def curriculum_of(folder: RunFolder, out: str, results: str | None, store_url: str | None, heaviest: float, seed: int) -> None:
    """The next run's data set, from what the run's last evaluation and its training showed; `results`: another evaluation's tries."""
    settings = folder.settings([])
    paths = {"train": Path(settings.task.train), "val": Path(settings.task.val)}
    rows = {split: read_rows(path) for split, path in paths.items()}
    _hold_to(folder, version_of(rows))
    before = _left_out_before(paths["train"])
    known = [*rows["train"], *before.retired, *before.set_aside]
    by, evaluated, asked = _evaluations(folder, results, {row.id for row in known})
    with closing(open_store(store_url or settings.store.url)) as opened:
        store = of_one_tenant(opened, settings.store.tenant, folder.run_id)
        now = _as_graded_now(store, asked)
        evaluated = now if evaluated is asked else _as_graded_now(store, evaluated)
        met = _met(store, folder.run_id, known, now)
    made = curriculum(rows["train"], evaluated, met, before, pass_at=settings.grader.pass_at, heaviest=heaviest, seed=seed)
    left_out = {"solved on every newest try, retired": len(made.retired), "never earned anything, for review": len(made.set_aside)}
    heavy = ", ".join(f"{one.task_type} {one.difficulty} x{one.weight:.2f}" for one in made.slices if one.weight > 1) or "none"
    source = f"run {folder.run_id}, weighted by {by}{_graders_of(evaluated)} (mean reward {made.mean_reward:.3f}): weak slices {heavy}"
    origin = Origin(
        name=Path(out).name, source=f"{source}; seed {seed}", made_by=_command(), parents=(version_of(rows),), left_out=left_out
    )
    card = write_version(Path(out), {"train": made.train, "val": rows["val"]}, origin)
    write_rows(Path(out) / RETIRED, made.retired)
    write_rows(Path(out) / REVIEW, made.set_aside)
    reasons = {"slices": made.slices, "rows": made.decisions}
    (Path(out) / "curriculum.json").write_bytes(msgspec.json.format(msgspec.json.encode(reasons)) + b"\n")
    _show(card)
    _show_weights(made)
    _tell_unsolved(evaluated, rows["val"])
    console.print(f'train on it: `make train CONF={settings.recipe} ARGS="{_named_rows(out)}"`; why, row by row: {out}/curriculum.json')


def _left_out_before(train: Path) -> LeftOut:
    """Beside a version's training rows, those that it left out: without them a row that retired once could never come back."""
    files = [train.parent / name for name in (RETIRED, REVIEW)]
    if not (train.parent / CARD).exists():
        return NOTHING_LEFT_OUT
    return LeftOut(*(tuple(read_rows(file)) if file.exists() else () for file in files))


def _evaluations(folder: RunFolder, results: str | None, trained: set[str]) -> tuple[str, list[GradedRollout], list[GradedRollout]]:
    """What weighs the slices, in words and as tries, and what tells of single rows. Held-out rows weigh, whoever asked them: training
    rows only where nobody did, since of these a model may know the answers."""
    if results is None:
        by, tries = _last_evaluation(folder)
        return by, tries, tries
    asked = _read_tries(Path(results))
    if held_out := [one for one in asked if one.row.id not in trained]:
        return results, held_out, asked
    return (*(_last_evaluation(folder) if folder.evaluations("tuned-*") else (results, asked)), asked)


def _as_graded_now(store: Store, tries: Sequence[GradedRollout]) -> list[GradedRollout]:
    """A grader that was found wrong and mended, or was away and is back, has graded the run again since: the evaluation's file knows
    nothing of it."""
    standing = _standing_grades(store, [one.rollout.rollout_id for one in tries])
    return [
        msgspec.structs.replace(one, rollout=rollout, grade=standing[rollout.rollout_id])
        if (rollout := gradable(one.rollout)) and rollout.rollout_id in standing
        else one
        for one in tries
    ]


def _standing_grades(store: Store, rollout_ids: Sequence[str]) -> dict[str, Grade]:
    """Of those that have a score. Another grader's opinion of a rollout, or its failure, is not what it was worth."""
    found = {rollout_id: standing_grade(given) for rollout_id, given in grades_by_id(store, rollout_ids).items()}
    return {rollout_id: grade for rollout_id, grade in found.items() if grade}


def _graders_of(tries: Sequence[GradedRollout]) -> str:
    names = sorted({f"{one.grade.grader.name}@{one.grade.grader.version}" for one in tries if one.grade and one.grade.reward is not None})
    return f" under {' and '.join(names)}" if names else ""


def _hold_to(folder: RunFolder, dataset: str) -> None:
    began = folder.kept(VERSIONS, lambda content: msgspec.json.decode(content, type=Versions))
    if began and began.dataset != dataset:
        what = f"the rows that run {folder.run_id} was made from have changed: version {began.dataset} then, {dataset} now"
        raise UserError(what, "put the old rows back, or evaluate the run's model on the new ones")


def _last_evaluation(folder: RunFolder) -> tuple[str, list[GradedRollout]]:
    """The tuned model's, of the latest round."""
    rounds = folder.evaluations("tuned-*")
    if not rounds:
        cure = f"`make evaluate RUN={folder.found_by}` makes one for a run that has ended; --results names another's"
        raise UserError(f"run {folder.run_id} has no evaluation of a tuned model", cure)
    latest = max(rounds)
    return f"evaluation {latest} of its tuned model", _read_tries(rounds[latest])


def _read_tries(path: Path) -> list[GradedRollout]:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=list[GradedRollout])
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"cannot read {path}: {error}", "name an evaluation's file, like runs/ID/evaluation/tuned-1.msgpack") from None


def _met(store: Store, run_id: str, rows: Sequence[Row], evaluated: Sequence[GradedRollout]) -> dict[str, Met]:
    """By training row: the run's training tries, and then the evaluation's, where it asked training rows. A copy's tries are its row's."""
    row_of = {row.id: str(row.metadata.get(COPY_OF, row.id)) for row in rows}
    tries = [(row_id, step or 0, reward) for row_id, step, reward in _trained_on(store, run_id)]
    if not tries:
        what = f"no training card of run {run_id} is in {store.name}: only the evaluation tells which training rows are solved"
        console.print(f"warning: {what}; --store names another store", style="yellow")
    after = max((step for _, step, _ in tries), default=0) + 1
    tries += [(one.row.id, after, score_of(one)) for one in evaluated]
    ever: dict[str, dict[int, list[float]]] = {}
    for row_id, step, reward in tries:
        if row_id in row_of and reward is not None:
            ever.setdefault(row_of[row_id], {}).setdefault(step, []).append(reward)
    return {
        row_id: Met(tuple(by_step[max(by_step)]), tuple(one for step in sorted(by_step) for one in by_step[step]))
        for row_id, by_step in ever.items()
    }


def _trained_on(store: Store, run_id: str) -> list[tuple[str, int | None, float | None]]:
    """Row, step and reward of each of the run's training tries."""
    lines = recent_cards(store, count_cards(store, run_id, "train"), run_id, "train")
    standing = _standing_grades(store, [line.rollout_id for line in lines])
    rewards = {rollout_id: grade.reward for rollout_id, grade in standing.items()}
    return [(line.row_id, line.step, rewards.get(line.rollout_id)) for line in lines]


def _show_weights(made: Curriculum) -> None:
    title = "what became of the training rows"
    table = Table("slice", "reward", title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("weight", "kept", "copies", "retired", "review"):
        table.add_column(name, justify="right")
    for one in made.slices:
        reward = one.reward.told(".2f") if one.reward else "not evaluated"
        counts = (one.kept, one.copies, one.retired, one.set_aside)
        table.add_row(f"{one.task_type} {one.difficulty}", reward, f"{one.weight:.2f}", *map(str, counts))
    console.print(table, soft_wrap=False)


def _tell_unsolved(evaluated: Sequence[GradedRollout], val: Sequence[Row]) -> None:
    """Held-out rows stay, or the next run would not compare; but a person should look at those that nobody solves."""
    held_out = {row.id for row in val}
    tried = [(row_id, tries) for row_id, tries in tries_by_row(evaluated).items() if row_id in held_out and tries.scored]
    never = [row_id for row_id, tries in tried if len(tries.rewards) >= FEWEST_TRIES and max(tries.rewards) <= 0]
    if never:
        more = f" and {len(never) - NAMED} more" if len(never) > NAMED else ""
        told = f"{len(never)} held-out rows earned nothing on any try; they stay, but look at them: {', '.join(never[:NAMED])}{more}"
        console.print(told, style="yellow")


# --- from job cards -----------------------------------------------------------------------------------------------------


def from_cards(
    store_url: str,
    out: str,
    val: str | None,
    choice: Choice,
    run_id: str | None,
    limit: int,
    *,
    tenant: str = "default",
    approved: Approved | None = None,
    redact: Redact = lambda text: redact_text(text).text,
) -> None:
    """Training rows from the newest `limit` cards of one tenant. `val`: what is held out; it becomes the new version's validation split."""
    held_out = read_rows(Path(val)) if val else []
    harvest = rows_of_cards(_cards(store_url, choice, run_id, limit, tenant), choice, held_out, redact=redact, approved=approved)
    if not harvest.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in harvest.left_out.items())
        raise UserError(f"no card became a row: {why or 'the store holds none that fits'}", "loosen a filter; `rft card list` shows cards")
    splits = {"train": harvest.rows} | ({"val": held_out} if val else {})
    parents = _parents([Path(val)]) if val else ()
    source = f"{len(harvest.rows)} job cards"
    origin = Origin(name=Path(out).name, source=source, made_by=_command(), parents=parents, left_out=harvest.left_out)
    _show(write_version(Path(out), splits, origin))


def _cards(store_url: str, choice: Choice, run_id: str | None, limit: int, tenant: str) -> Iterator[JobCard]:
    """What they hold leaves the store with the rows, as with any export."""
    with closing(open_store(store_url)) as opened:
        store = of_one_tenant(opened, tenant, run_id)
        kind = choice.kinds[0] if len(choice.kinds) == 1 else None
        ids = [line.rollout_id for line in recent_cards(store, limit, run_id, kind)]
        note(opened, me(store.tenant or tenant), "export", f"rows from cards{f' of run {run_id}' if run_id else ''}", ids)
        yield from (stored.card for stored in cards_by_id(store, ids) if not stored.erased)


# --- from a stronger model ----------------------------------------------------------------------------------------------


def synthesise(
    corpus: str, out: str, val: str | None, url: str, model: str, key_variable: str, grader: str, count: int, plan: Plan, threads: int
) -> None:
    """One proposal for each of the corpus's first `count` documents. `key_variable` names the variable that holds the API key."""
    sources, judge = _sources(Path(corpus), count), load_grader(grader)
    plan = msgspec.structs.replace(plan, tools=plan.tools or TOOLS)
    held_out = read_rows(Path(val)) if val else []
    with Wire() as wire, ThreadPoolExecutor(threads) as pool:
        ask = asks_endpoint(wire, url, model, os.environ.get(key_variable, ""))
        outcomes = list(pool.map(lambda at: run_trial(sources[at], at, judge, plan, ask), range(len(sources))))
    harvest = only_new(accepted(outcomes), held_out)
    left_out = {**_reasons(outcomes), **harvest.left_out}
    if not harvest.rows:
        _nothing_made(outcomes, left_out)
    splits = {"train": harvest.rows} | ({"val": held_out} if val else {})
    source = f"{model} asked about {len(sources)} documents of {corpus}, {plan.solves} solves each"
    parents = _parents([Path(val)]) if val else ()
    origin = Origin(name=Path(out).name, source=source, made_by=_command(), parents=parents, left_out=left_out)
    _show(write_version(Path(out), splits, origin))


def asks_endpoint(wire: Wire, url: str, model: str, key: str) -> Callable[[Ask], str]:
    """Asks an OpenAI-compatible server; `url` is its base, like http://host:8000/v1."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(wanted: Ask) -> str:
        messages = [{"role": message.role, "content": message.content} for message in wanted.messages]
        payload = {"model": model, "messages": messages, "temperature": wanted.temperature, "seed": wanted.seed}
        reply = wire.post(f"{url.rstrip('/')}/chat/completions", payload, headers)
        try:
            said: Any = msgspec.json.decode(reply)["choices"][0]["message"]["content"]
        except (msgspec.MsgspecError, KeyError, IndexError, TypeError) as error:
            raise InfraError("model", f"{url} answers in another shape: {reply[:200].decode(errors='replace')}") from error
        return said if isinstance(said, str) else ""

    return ask


def _sources(corpus: Path, count: int) -> list[Source]:
    files = [file for file in sorted(corpus.rglob("*")) if file.suffix in (".html", ".txt")][:count]
    if not files:
        raise UserError(f"corpus folder {corpus} holds no .html or .txt file", "`make data` makes the running example's")
    root = corpus.absolute().parent
    texts = [text_of(file.read_text(encoding="utf-8", errors="replace"))[:LONGEST_DOCUMENT] for file in files]
    return [Source(file.absolute().relative_to(root).as_posix(), text) for file, text in zip(files, texts, strict=True)]


def _reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    prefix = {"rejected": "", "infra_failed": "infrastructure: "}
    return dict(Counter(prefix[one.ending] + one.why for one in outcomes if one.ending in prefix))


def _nothing_made(outcomes: Sequence[Outcome], left_out: dict[str, int]) -> None:
    failed = [one for one in outcomes if one.ending == "infra_failed"]
    if len(failed) == len(outcomes):
        raise InfraError(failed[0].why, failed[0].detail, "is the server up, and the model's name right?")
    why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    raise UserError(f"no proposal became a row: {why}", "a stronger model, fewer solves, or other documents")


# --- what every command tells -------------------------------------------------------------------------------------------


def _command() -> str:
    """As it was typed, without the password of a store."""
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", shlex.join(["rft", *sys.argv[1:]]))


def _named_rows(folder: str) -> str:
    """A version's rows as a training takes them, on a command line."""
    return shlex.join(f"task.{split}={folder}/{split}.jsonl" for split in ("train", "val"))


def _parents(files: Sequence[Path]) -> tuple[str, ...]:
    """The versions that files belong to; the rows' own hash where they have no card."""
    return tuple(_version_holding(file) or dataset_hash(read_rows(file)) for file in files)


def _version_holding(file: Path) -> str | None:
    if not (file.parent / CARD).exists():
        return None
    found = read_card(file.parent)
    hashes = {part.file: part.hash for part in found.splits.values()}
    return found.hash if hashes.get(file.name) == dataset_hash(read_rows(file)) else None


def _show(made: DatasetCard) -> None:
    title = f"{made.origin.name}, version {made.hash}: {made.rows} rows"
    table = Table("split", "task_type", "difficulty", title=title, title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for count in made.slices:
        table.add_row(count.split, count.task_type, count.difficulty, str(count.rows), f"{count.share:.0%}")
    console.print(table)
    for why, count in made.origin.left_out.items():
        console.print(f"left out: {count} {why}")
    if made.origin.parents:
        console.print(f"made from {', '.join(made.origin.parents)}")
    for leak in made.leaks.named:
        console.print(f"leak: {leak.fault()}", style="yellow")
    if (hidden := made.leaks.same + made.leaks.near - len(made.leaks.named)) > 0:
        console.print(f"and {hidden} more leaks; `rft data check` names them all", style="yellow")
