"""`rft report`: a run told as one page from what lies in its folder, or several runs beside each other; and kept in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from agent_rft.commands.console import console
from agent_rft.commands.distribution import KEPT
from agent_rft.commands.parts import guards_of
from agent_rft.commands.run_folder import VERSIONS, RunFolder
from agent_rft.compose import load
from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.evaluation.compare import compare, verdict_told
from agent_rft.evaluation.distribution import DistributionCheck
from agent_rft.evaluation.figures import watched_by
from agent_rft.evaluation.inspect import grade_by, standing_grader
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.report.beside import left_out, render_beside
from agent_rft.evaluation.report.contents import RunReport, with_tries, without_words
from agent_rft.evaluation.report.head import headline
from agent_rft.evaluation.report.page import render_report
from agent_rft.evaluation.report.versions import masked
from agent_rft.settings import StoreSettings
from agent_rft.training.journal import MetricsFile
from observability import run_reports
from observability.cards import grades_by_id, of_one_tenant
from observability.redaction.detectors import detectors_of
from observability.store import Store, open_store

REPORT = "report.html"
BESIDE = "reports"
"""Folder beside the runs for what tells more than one of them."""
LONGEST_NAME = 240
"""Bytes of a page's name."""


def report(run_ids: Sequence[str], runs: Path) -> None:
    folders = found_all(run_ids, runs)
    told: list[RunReport] = []
    for folder in folders:
        settings = load(folder.settings_file).store
        one = with_regrade(told_of(folder), settings)
        told.append(without_words(one))  # the tries of one run at a time: those of six would fill the memory, and no other page shows them
        folder.keep(REPORT, render_report(one).encode())
        for line in _kept(one, settings):
            console.print(line)
        console.print(f"{one.run_id}: {headline(one)}\n  {folder.path / REPORT}")
        if one.regraded:
            console.print(f"  {one.regraded}", style="yellow")
    if len(told) > 1:
        place = runs / BESIDE / f"{_beside_name(folders, runs)}.html"
        place.parent.mkdir(exist_ok=True)
        place.write_text(render_beside(told), encoding="utf-8")
        console.print(f"beside each other: {place}")
        if others := left_out(told):
            console.print(others, style="yellow")


def _beside_name(folders: Sequence[RunFolder], runs: Path) -> str:
    """A file's name ends at 255 bytes. One that is cut, or names runs of another folder, tells the rest by a hash: else other runs that
    begin alike, or are called alike, would be written over."""
    whole = "+".join(folder.run_id for folder in folders)
    at_home = all(folder.path.resolve().parent == runs.resolve() for folder in folders)
    if at_home and len(whole.encode()) <= LONGEST_NAME:
        return whole
    digest = hashlib.sha256("\n".join(str(folder.path.resolve()) for folder in folders).encode()).hexdigest()[:12]
    return f"{whole.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors='ignore')}-{digest}"


def found_all(run_ids: Sequence[str], runs: Path) -> list[RunFolder]:
    """By their names or folders, each once."""
    typed: dict[Path, str] = {}
    for name in run_ids:
        typed.setdefault(RunFolder.named(name, runs).path.resolve(), name)
    folders = {name: RunFolder.named(name, runs) for name in typed.values()}
    if missing := [name for name, folder in folders.items() if not folder.settings_file.exists()]:
        there = sorted(one.parent.name for one in runs.glob("*/settings.yaml"))
        cure = f"there are {', '.join(there[-8:])}" if there else "`make train` makes one"
        raise UserError(f"no run {', '.join(missing)} in {runs}", cure)
    return list(folders.values())


def told_of(folder: RunFolder) -> RunReport:
    """What is there so far: a run that goes on, or was stopped, has no summary yet."""
    settings = load(folder.settings_file)
    summary: dict[str, Any] = folder.kept("summary.json", json.loads) or {}
    journal = MetricsFile(folder.path / "metrics.jsonl")
    metrics = tuple(journal.lines())
    if summary.get("halted") and metrics and metrics[-1].step > summary["steps"]:
        summary = {}  # it was halted once, and has gone on since
    versions = summary.get("versions") or folder.kept(VERSIONS, json.loads)
    if versions is None:
        raise UserError(f"run {folder.run_id} has not begun: its folder holds its settings only", "`make train` begins one")
    base, tuned, rounds = _tries(folder, Path(summary.get("checkpoint") or "").name)
    made = RunReport(
        run_id=folder.run_id,
        recipe=settings.recipe,
        finished_at=summary.get("finished_at") or _changed_at(folder),
        seconds=summary.get("seconds") or sum(line.seconds for line in metrics),
        versions=msgspec.convert(versions, Versions),
        settings=masked(settings.model_dump(mode="json")),
        prior=folder.kept("prior.json", lambda content: msgspec.json.decode(content, type=PriorCheck)),
        distribution=_distribution(folder),
        metrics=metrics,
        undone=tuple(journal.undone()),
        watched=watched_by(guards_of(settings)),
        comparison=compare(base, tuned) if base and tuned else None,
        rounds=rounds,
        halted=summary.get("halted", ""),
        next_step=summary.get("next_step") or ("" if summary else _goes_on(folder, begun=bool(metrics))),
    )
    return with_tries(made, base, tuned, settings.grader.pass_at)


def _goes_on(folder: RunFolder, begun: bool) -> str:
    """Of a run that has come to no end: the prior check alone leaves a folder, too."""
    return f"{'It goes on, or was stopped' if begun else 'It has not trained a step yet'}: `make resume RUN={folder.found_by}`"


def _changed_at(folder: RunFolder) -> str:
    """Older summaries do not say when the run ended."""
    newest = max(one.stat().st_mtime for one in folder.path.iterdir() if one.name != REPORT)
    return datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")


def _tries(folder: RunFolder, checkpoint: str) -> tuple[list[GradedRollout], list[GradedRollout], int]:
    """Of the newest round that both sides have: each draws the luck of its own. Base alone, while there is no tuned model. And how
    many such rounds there are."""
    base = folder.evaluations("base-*")
    tuned = folder.evaluations(f"tuned-{checkpoint}-*") or folder.evaluations("tuned-?") if checkpoint else {}
    both = base.keys() & tuned.keys()
    number = max(both, default=max(base, default=0))
    return _read(base.get(number)), _read(tuned.get(number)), len(both)


def _read(file: Path | None) -> list[GradedRollout]:
    if file is None:
        return []
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=list[GradedRollout])
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{file} cannot be read: {error}", "remove it, and `make evaluate RUN=...` makes it again") from None


def _distribution(folder: RunFolder) -> tuple[DistributionCheck, ...]:
    return folder.kept(KEPT, lambda content: msgspec.json.decode(content, type=tuple[DistributionCheck, ...])) or ()


def with_regrade(told: RunReport, settings: StoreSettings) -> RunReport:
    """With what the inspector's grader, a later version of the run's own, makes of the tries that are compared."""
    tries = [*told.base, *told.tuned]
    if told.comparison is None or settings.url.startswith(("http://", "https://")):
        return told
    try:
        with closing(open_store(settings.url)) as opened:
            store = of_one_tenant(opened, settings.tenant, told.run_id)
            given = grades_by_id(store, [one.rollout.rollout_id for one in tries])
    except (UserError, SQLAlchemyError):
        return told  # that the store does not answer is said where the report is kept in it
    by = standing_grader(list(given.values()))
    if by is None or all(one.grade is None or one.grade.grader == by for one in tries):
        return told
    base, tuned = (
        [msgspec.structs.replace(one, grade=grade_by(given.get(one.rollout.rollout_id, ()), by)) for one in side]
        for side in (told.base, told.tuned)
    )
    try:
        found = verdict_told(compare(base, tuned))
    except InfraError:
        return told  # it scored one side alone
    return msgspec.structs.replace(told, regraded=f"{by.name}@{by.version} has graded these tries since, and says: {found}")


# --- in the store -----------------------------------------------------------------------------------------------------


def keep_in(store: Store | None, told: RunReport, settings: StoreSettings) -> Iterator[str]:
    """The line to print where it could not be kept: that costs no run anything. A card server takes cards only."""
    if store is None:
        return
    try:
        detectors = detectors_of(settings.redact, settings.patterns, settings.tenant_patterns).of(settings.tenant)
        content = msgspec.to_builtins(without_words(told))
        made = run_reports.Made(told.run_id, told.recipe, headline(told), content)
        run_reports.keep(store, settings.tenant, made, detectors)
    except (UserError, SQLAlchemyError) as error:
        yield f"warning: the report is not in the store, so /runs does not show it: {error}"


def _kept(told: RunReport, settings: StoreSettings) -> Iterator[str]:
    if settings.url.startswith(("http://", "https://")):
        return
    try:
        store = open_store(settings.url)
    except (UserError, SQLAlchemyError) as error:
        yield f"warning: the report is not in the store, so /runs does not show it: {error}"
        return
    with closing(store):
        yield from keep_in(store, told, settings)
