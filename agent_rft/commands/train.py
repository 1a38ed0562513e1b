"""`rft train`, `rft resume`, `rft prior`, `rft evaluate`: from a recipe to a tuned agent and its report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent_rft.commands.parts import (
    Data,
    Parts,
    algorithm_of,
    console,
    grader_of,
    guards_of,
    limits_of,
    model_of,
    opened,
    read_data,
    new_run_folder,
)
from agent_rft.commands.results import Results
from agent_rft.compose import load, settings_for
from agent_rft.contracts.errors import Halted, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Kind
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import Outcome, TrainingJob
from agent_rft.evaluation.live import LiveTable, progress
from agent_rft.evaluation.plots import plot_prior
from agent_rft.evaluation.prior import PriorCheck, check_prior, describe_prior
from agent_rft.evaluation.suite import evaluate
from agent_rft.settings import Settings, range_warnings


def train(recipe: str, overrides: list[str]) -> None:
    settings = settings_for(recipe, overrides)
    grader = grader_of(settings)
    data = read_data(settings, grader)
    folder = new_run_folder(settings)
    _announce(settings, folder, data)
    asyncio.run(_train(settings, folder, data, grader, resume=False))


def resume(run_id: str, runs: str) -> None:
    folder = Path(runs) / run_id
    settings = load(folder / "settings.yaml")
    grader = grader_of(settings)
    data = read_data(settings, grader)
    console.print(f"going on with run {run_id}")
    asyncio.run(_train(settings, folder, data, grader, resume=True))


def _announce(settings: Settings, folder: Path, data: Data) -> None:
    rows = f"{len(data.train)} training rows, {len(data.val)} held out"
    console.print(f"run {folder.name}: {settings.model.path}, {rows}, seed {settings.seed}")
    for warning in range_warnings(settings):
        console.print(f"warning: {warning}", style="yellow")


async def _train(settings: Settings, folder: Path, data: Data, grader: Grader, resume: bool) -> None:
    began = time.monotonic()
    async with opened(settings, folder, data, grader) as parts:
        prior = await _prior(parts, folder, data)
        if prior.verdict == "no go" and not settings.prior.override:
            raise Halted(f"the prior check says no go: {prior.why}", prior.cure)
        base = await _evaluated(parts, folder, data, "base", None)
        outcome = await _trained(parts, folder, data, resume)
        tuned = [] if outcome.halted else await _evaluated(parts, folder, data, "tuned", outcome.checkpoint)
    results = Results(folder=folder, parts=parts, prior=prior, outcome=outcome, base=base, tuned=tuned, seconds=time.monotonic() - began)
    for line in results.leave():
        console.print(line)
    if outcome.halted:
        raise Halted(outcome.halted, f"{outcome.cure}; then `make resume RUN={folder.name}`")


async def _prior(parts: Parts, folder: Path, data: Data) -> PriorCheck:
    """Asked once a run: a resumed one has its answer."""
    kept = folder / "prior.json"
    if kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=PriorCheck)
    settings = parts.settings
    rows = data.val[: settings.prior.prompts]
    graded = await _run_rows(parts, rows, settings.prior.rollouts, "prior", None, "prior check")
    check = check_prior(graded, settings.grader.pass_at)
    kept.write_bytes(msgspec.json.format(msgspec.json.encode(check)))
    plot_prior(check, folder / "prior.png")
    console.print(describe_prior(check))
    return check


async def _evaluated(parts: Parts, folder: Path, data: Data, name: str, checkpoint: str | None) -> list[GradedRollout]:
    kept = folder / "evaluation" / f"{name}.msgpack"
    if kept.exists():
        return msgspec.msgpack.decode(kept.read_bytes(), type=list[GradedRollout])
    graded = await _run_rows(parts, data.val, parts.settings.evaluation.samples_per_row, "eval", checkpoint, f"evaluating {name}")
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(msgspec.msgpack.encode(graded))
    return graded


async def _run_rows(parts: Parts, rows: Sequence[Row], tries: int, kind: Kind, checkpoint: str | None, title: str) -> list[GradedRollout]:
    settings = parts.settings
    sampler = parts.backend.sampler(model_of(settings), checkpoint, settings.algorithm.temperature)
    with progress(title, len(rows) * tries, console) as shown:

        def done(graded: GradedRollout) -> None:
            parts.record(graded, kind, sampler.checkpoint)
            shown(graded)

        in_flight = settings.backend.rollouts_in_flight
        return await evaluate(
            rows, tries, sampler, parts.tools, parts.grader, limits_of(settings), settings.seed, kind, on_done=done, in_flight=in_flight
        )


async def _trained(parts: Parts, folder: Path, data: Data, resume: bool) -> Outcome:
    settings = parts.settings
    job = TrainingJob(
        run_id=parts.run_id,
        run_dir=str(folder),
        model=model_of(settings),
        algorithm=algorithm_of(settings),
        guards=guards_of(settings),
        limits=limits_of(settings),
        train_rows=data.train,
        val_rows=data.val,
        val_samples=settings.evaluation.val_samples,
        evaluate_every=settings.evaluation.every,
        checkpoint_every=settings.backend.checkpoint_every,
        keep_checkpoints=settings.backend.keep_checkpoints,
        seed=settings.seed,
        resume=resume,
        versions=parts.versions,
        tenant=settings.store.tenant,
        rollouts_in_flight=settings.backend.rollouts_in_flight,
    )
    with LiveTable(None, console) as table:
        return await parts.backend.train(job, parts.tools, parts.grader, parts.recorder, table.step)


def prior(recipe: str, overrides: list[str]) -> None:
    """The prior check alone."""
    settings = settings_for(recipe, overrides)
    grader = grader_of(settings)
    data = read_data(settings, grader)
    folder = new_run_folder(settings, "prior-")

    async def check() -> PriorCheck:
        async with opened(settings, folder, data, grader) as parts:
            return await _prior(parts, folder, data)

    found = asyncio.run(check())
    console.print(f"plots: {folder}/prior.png")
    if found.verdict == "no go":
        raise Halted(f"the prior check says no go: {found.why}", found.cure)


def evaluate_again(run_id: str, runs: str) -> None:
    """Base against tuned with fresh rollouts, for a run that has ended."""
    folder = Path(runs) / run_id
    if not (folder / "summary.json").is_file():
        raise UserError(f"run {run_id} in {runs}/ has not ended", f"go on with it: `make resume RUN={run_id}`")
    for kept in (folder / "evaluation").glob("*.msgpack"):
        kept.unlink()
    resume(run_id, runs)
