"""`rft train`, `rft resume`, `rft prior`, `rft evaluate`: from a recipe to a tuned agent and its report."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent_rft.commands.distribution import look_before_training
from agent_rft.commands.flagging import flagging
from agent_rft.commands.grading import grader_of
from agent_rft.commands.lineage import register_run, speaks_again
from agent_rft.commands.parts import (
    Data,
    Parts,
    console,
    guards_of,
    job_of,
    limits_of,
    model_of,
    opened,
    read_data,
)
from agent_rft.commands.preflight import preflight, recorded_prior
from agent_rft.commands.results import Results, written_metrics
from agent_rft.commands.run_folder import RunFolder
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import Halted, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Kind
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import Outcome, StepMetrics
from agent_rft.datasets.split import split_rows
from agent_rft.evaluation.live import LiveTable, progress
from agent_rft.evaluation.plots import plot_prior
from agent_rft.evaluation.prior import PriorCheck, check_prior, describe_prior, histogram
from agent_rft.evaluation.suite import evaluate
from agent_rft.guards.infra import InfraGuard, tally_of
from agent_rft.guards.limits import watched
from agent_rft.settings import Settings, range_warnings


def train(recipe: str, overrides: list[str]) -> None:
    settings = settings_for(recipe, overrides)
    data = looked_over(settings)
    with RunFolder.begun(settings) as folder:
        rows = f"{len(data.train)} training rows, {len(data.val)} held out"
        console.print(f"run {folder.run_id}: {settings.model.path}, {rows}, seed {settings.seed}")
        _warn(settings)
        with _named_when_stopped(folder):
            asyncio.run(_train(settings, folder, data, resume=False))


def looked_over(settings: Settings, but: Collection[str] = ()) -> Data:
    """The data, if everything is there that is needed: of a large run more is asked, `but` what the occasion does without."""
    if settings.backend.name == "local":
        return read_data(settings, grader_of(settings))
    console.print("before anything is started:")
    return preflight(settings, but)


def resume(folder: RunFolder, overrides: list[str]) -> None:
    settings = folder.settings(overrides)
    console.print(f"going on with run {folder.run_id}")
    _warn(settings)
    with _named_when_stopped(folder):
        asyncio.run(_train(settings, folder, looked_over(settings, but=["prior check"]), resume=True))


@contextmanager
def _named_when_stopped(folder: RunFolder) -> Generator[None]:
    """Whoever stops a run is told how this very one goes on."""
    try:
        yield
    except KeyboardInterrupt:
        goes_on = "nothing had begun: the same command begins anew" if folder.untouched else f"`make resume RUN={folder.found_by}` goes on"
        raise KeyboardInterrupt(goes_on) from None


def prior(recipe: str, overrides: list[str]) -> None:
    """The prior check alone."""
    settings = settings_for(recipe, overrides)
    data = looked_over(settings, but=["prior check", "checkpoints"])

    async def check(folder: RunFolder) -> PriorCheck:
        async with opened(settings, folder, data) as parts:
            return await _measured_prior(parts, data)

    with RunFolder.begun(settings, "prior-") as folder:
        found = asyncio.run(check(folder))
    console.print(f"plots: {folder.path}/prior.png")
    if found.verdict == "no go":
        raise Halted(f"the prior check says no go: {found.why}", found.cure)


def evaluate_again(folder: RunFolder) -> None:
    """Base against tuned with fresh rollouts, for a run that was trained to its end."""
    settings = folder.settings([])
    summary = folder.kept("summary.json", json.loads)
    if not summary or summary["halted"]:
        state = "was halted" if summary else "has not ended"
        raise UserError(f"run {folder.run_id} {state}: there is no tuned model to evaluate", f"`make resume RUN={folder.found_by}`")
    data = looked_over(settings, but=["prior check", "checkpoints"])
    lines = written_metrics(folder)
    outcome = Outcome(checkpoint=summary["checkpoint"], steps=summary["steps"], total_steps=summary["steps"], metrics=lines)

    async def again() -> None:
        async with opened(settings, folder, data) as parts:
            check = await _prior(parts, data)
            rounds = len(list(folder.path.glob("evaluation/tuned-*.msgpack"))) + 1
            tuned = await _evaluated(parts, data, "tuned", outcome.checkpoint, rounds)  # first: it may be in need of conversion
            base = await _evaluated(parts, data, "base", None, rounds)
            _leave(Results(parts=parts, prior=check, outcome=outcome, base=base, tuned=tuned, seconds=summary["seconds"]))

    asyncio.run(again())


async def _train(settings: Settings, folder: RunFolder, data: Data, resume: bool) -> None:
    began, trained_before = time.monotonic(), sum(line.seconds for line in written_metrics(folder))
    async with opened(settings, folder, data) as parts:
        look_before_training(settings, folder, data)
        register_run(parts, data)
        check = await _prior(parts, data)
        if check.verdict == "no go" and not settings.prior.override:
            raise Halted(f"the prior check says no go: {check.why}", check.cure)
        base = await _evaluated(parts, data, "base", None, 1)
        outcome = await _trained(parts, data, resume)
        tuned = [] if outcome.halted else await _evaluated(parts, data, "tuned", outcome.checkpoint, 1)
        seconds = trained_before + time.monotonic() - began
        _leave(Results(parts=parts, prior=check, outcome=outcome, base=base, tuned=tuned, seconds=seconds))
    if outcome.halted:
        raise _resumable(folder, outcome.halted, outcome.cure, speaks_again(outcome))


async def _prior(parts: Parts, data: Data) -> PriorCheck:
    """Asked once a run: a resumed one has its answer. A recorded verdict is taken over, where the recipe says so."""
    if kept := parts.folder.kept("prior.json", lambda content: msgspec.json.decode(content, type=PriorCheck)):
        return kept
    settings, versions = parts.settings, parts.versions
    if settings.prior.source == "recorded" and (found := recorded_prior(settings, versions.grader, data.hash, versions.tool_set)):
        return _kept_prior(parts, found)
    return await _measured_prior(parts, data)


async def _measured_prior(parts: Parts, data: Data) -> PriorCheck:
    settings = parts.settings
    graded = await _run_rows(parts, _sample(data.val, settings.prior.prompts, settings.seed), settings.prior.rollouts, "prior", None)
    return _kept_prior(parts, check_prior(graded, settings.grader.pass_at))


def _kept_prior(parts: Parts, check: PriorCheck) -> PriorCheck:
    parts.folder.keep("prior.json", msgspec.json.format(msgspec.json.encode(check)))
    plot_prior(check, parts.folder.path / "prior.png")
    console.print(f"{describe_prior(check)}\n{histogram(check)}")
    return check


def _sample(rows: Sequence[Row], count: int, seed: int) -> Sequence[Row]:
    """A fair sample: the first rows of a file are often the easy ones."""
    return rows if count >= len(rows) else split_rows(rows, count / len(rows), seed)[1]


async def _evaluated(parts: Parts, data: Data, name: str, checkpoint: str | None, rounds: int) -> list[GradedRollout]:
    """Kept, so that a resumed run does not ask the same weights again. Each round draws afresh; base and tuned of a round draw
    the same luck."""
    weights = f"-{Path(checkpoint).name}" if checkpoint else ""
    file, title = f"evaluation/{name}{weights}-{rounds}.msgpack", f"evaluating {name}"
    if kept := parts.folder.kept(file, lambda content: msgspec.msgpack.decode(content, type=list[GradedRollout])):
        return kept
    graded = await _run_rows(parts, data.val, parts.settings.evaluation.samples_per_row, "eval", checkpoint, title, rounds)
    guards = guards_of(parts.settings)
    guard = InfraGuard(guards.max_infra_rate, guards.infra_window_calls)
    guard.note(tally_of(graded))
    try:
        guard.check(watched(guards))
    except Halted as halt:
        raise _resumable(parts.folder, f"{title}: {halt.what}", halt.cure) from None
    parts.folder.keep(file, msgspec.msgpack.encode(graded))
    return graded


async def _run_rows(
    parts: Parts, rows: Sequence[Row], tries: int, kind: Kind, checkpoint: str | None, title: str = "prior check", rounds: int = 1
) -> list[GradedRollout]:
    settings = parts.settings
    sampler = parts.backend.sampler(model_of(settings), checkpoint, settings.algorithm.temperature)
    with progress(title, len(rows) * tries, console) as shown:

        def done(graded: GradedRollout) -> None:
            parts.record(graded, kind, sampler.checkpoint)
            shown(graded)

        return await evaluate(
            rows,
            tries,
            sampler,
            parts.tools,
            parts.grader,
            limits_of(settings),
            settings.seed,
            f"{kind}-{rounds}",
            on_done=done,
            in_flight=settings.backend.rollouts_in_flight,
        )


async def _trained(parts: Parts, data: Data, resume: bool) -> Outcome:
    folder = parts.folder
    job = job_of(parts.settings, data, folder.run_id, str(folder.path), parts.versions, resume)
    with LiveTable(None, console) as table, flagging(parts) as flag:

        def told(line: StepMetrics, total: int) -> None:
            table.step(line, total)
            flag(line)

        return await parts.backend.train(job, parts.tools, parts.grader, parts.recorder, told, parts.holdouts)


def _resumable(folder: RunFolder, what: str, cure: str, guard: str = "") -> Halted:
    """`guard`: it would end the run again at once."""
    resume = f"make resume RUN={folder.found_by}"
    if guard:
        return Halted(what, f'{cure}; where the guard is wrong: `{resume} ARGS="guards.watch.{guard}.action=warn"`')
    return Halted(what, f'{cure}; then `{resume}`, with ARGS="key=value" for other settings')


def _warn(settings: Settings) -> None:
    for warning in range_warnings(settings):
        console.print(f"warning: {warning}", style="yellow")


def _leave(results: Results) -> None:
    for line in results.leave():
        console.print(line)
