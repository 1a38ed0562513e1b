"""`rft suite`: models side by side on the held-out rows. Tries are kept as they end: what was run once is not run again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent_rft.commands.console import console
from agent_rft.commands.grading import grader_of
from agent_rft.commands.parts import Data, Parts, limits_of, model_of, opened, read_data
from agent_rft.commands.run_folder import RunFolder
from agent_rft.compose import settings_for
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import Fault, FaultsFound, InfraError, did_you_mean
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.ports import Sampler
from agent_rft.evaluation.kept_tries import KeptTries
from agent_rft.evaluation.live import progress
from agent_rft.evaluation.offline import refuse_spoilt
from agent_rft.evaluation.report.suite import render_suite
from agent_rft.evaluation.scoreboard import Scoreboard, describe_scoreboard, scoreboard
from agent_rft.evaluation.suite import evaluate, tries_at
from agent_rft.rollouts.chat_sampler import ChatSampler, posting_to
from agent_rft.rollouts.driver import Try
from agent_rft.settings import Settings

BASE = "base"
KEPT = "suite"
"""The folder, beside those of the runs, that keeps tries."""
AS_IN = "URL#MODEL, as in http://host:8000/v1#my-model"
KEY_VARIABLE = "MODEL_API_KEY"
PHASE = "eval-1"
"""As a training run's first evaluation: with its seed the same weights draw the same luck as there."""
AT_AN_ENDPOINT = 512
LONGEST_PAUSE_SECONDS = 60.0
"""That an endpoint may ask for: most count what they let through by the minute, and nobody waits for an evaluation's next word."""
FILES_A_ROLLOUT = 2
"""One connection to the model, one to the tools."""
OTHER_FILES = 256


class Entrant(msgspec.Struct, frozen=True):
    """A model that takes part, by the word it was named with."""

    name: str
    checkpoint: str | None = None
    """Its folder; None is the recipe's own model."""
    url: str = ""
    """Of an OpenAI-compatible server, up to /v1, where it speaks there."""
    model: str = ""


class Entered(msgspec.Struct, frozen=True):
    name: str
    agent: str
    """Its id: the folder that keeps its tries."""
    checkpoint: str


class SuiteResult(msgspec.Struct, frozen=True):
    """scoreboard.json"""

    entered: tuple[Entered, ...]
    tries_per_row: int
    versions: Versions
    scoreboard: Scoreboard


def run_suite(recipe: str, overrides: list[str], of: Sequence[str], tries: int | None, in_flight: int | None) -> None:
    settings = settings_for(recipe, overrides)
    entrants = _entrants(of or [BASE], settings)
    data = read_data(settings, grader_of(settings))
    tries_per_row = tries or settings.evaluation.samples_per_row
    with RunFolder.begun(settings, "suite-") as folder:
        console.print(f"suite {folder.run_id}: {len(entrants)} models, {len(data.val)} rows x {tries_per_row}, seed {settings.seed}")
        asyncio.run(_run(settings, folder, data, entrants, tries_per_row, in_flight))


# --- who takes part -------------------------------------------------------------------------------------------------------


def _entrants(words: Sequence[str], settings: Settings) -> list[Entrant]:
    found = [_entrant(word, settings) for word in words]
    faults = [one for one in found if isinstance(one, Fault)]
    faults += [Fault(f"--of {word}", "is named twice") for word in dict.fromkeys(words) if words.count(word) > 1]
    if faults:
        raise FaultsFound("not every model can be evaluated:", faults, exit_code=2)
    return [one for one in found if isinstance(one, Entrant)]


def _entrant(word: str, settings: Settings) -> Entrant | Fault:
    if word == BASE:
        return Entrant(word)
    if word.startswith(("http://", "https://")):
        url, _, model = word.partition("#")
        if not model:
            return Fault(f"--of {word}", "does not say which model of that server", AS_IN)
        if not _is_address(url):
            return Fault(f"--of {word}", "is no address of a server", AS_IN)
        if "@" in urlsplit(url).netloc:
            return Fault(f"--of {word}", "holds a key, which would stand on every card and report", f"put it into {KEY_VARIABLE}")
        return Entrant(word, url=url, model=model)
    runs = Path(settings.run.folder)
    run, _, checkpoint = word.partition("/")
    if (runs / run / "checkpoints").is_dir():
        return _of_run(word, runs / run, checkpoint)
    if (Path(word) / "config.json").is_file():
        return Entrant(word, checkpoint=word)
    known = [BASE, *(folder.name for folder in runs.glob("*") if (folder / "checkpoints").is_dir())]
    return Fault(f"--of {word}", f"is no run in {runs}/, no model's folder and no URL#MODEL", did_you_mean(run, known))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname and parts.hostname.encode("idna")) and parts.port != 0
    except ValueError:  # a port that is no number, half a bracket, a name with an empty part
        return False


class _Summary(msgspec.Struct):
    checkpoint: str


def _of_run(word: str, run: Path, checkpoint: str) -> Entrant | Fault:
    """Its tuned model, or the checkpoint of a run that is named: RUN/step-000040."""
    kept = sorted(folder.name for folder in (run / "checkpoints").iterdir() if (folder / "config.json").is_file())
    if checkpoint:
        if checkpoint in kept:
            return Entrant(word, checkpoint=str(run / "checkpoints" / checkpoint))
        return Fault(f"--of {word}", f"the run has no such checkpoint in {run}/checkpoints", did_you_mean(checkpoint, kept))
    try:
        tuned = Path(msgspec.json.decode((run / "summary.json").read_bytes(), type=_Summary).checkpoint).name
    except (OSError, msgspec.MsgspecError):
        tuned = ""
    if tuned in kept:
        return Entrant(word, checkpoint=str(run / "checkpoints" / tuned))
    cure = f"name one of its checkpoints: {', '.join(f'{run.name}/{name}' for name in kept[-3:])}" if kept else "it has no checkpoint yet"
    return Fault(f"--of {word}", "the run has not come to its end: there is no tuned model", cure)


# --- running it -----------------------------------------------------------------------------------------------------------


async def _run(
    settings: Settings, folder: RunFolder, data: Data, entrants: Sequence[Entrant], tries_per_row: int, in_flight: int | None
) -> None:
    graded: dict[str, list[GradedRollout]] = {}
    entered = list[Entered]()
    elsewhere = entrants[0].name if all(entrant.url for entrant in entrants) else ""  # then the recipe's own model need not be here
    async with opened(settings, folder, data, elsewhere) as parts:
        tries = tries_at(data.val, tries_per_row, settings.seed, PHASE)
        for entrant in entrants:
            async with _speaking(entrant, parts) as sampler:
                agent = _agent(parts, sampler)
                entered.append(Entered(entrant.name, agent.id, agent.checkpoint))
                at_once = connections_for(in_flight or (AT_AN_ENDPOINT if entrant.url else settings.backend.rollouts_in_flight))
                with KeptTries.opened(Path(settings.run.folder, KEPT), agent, parts.grader.ref, _hash_of(entrant)) as kept:
                    graded[entrant.name] = await _evaluated(parts, data, entrant, sampler, tries, kept, at_once)
                folder.keep(f"evaluation/{agent.id}.msgpack", msgspec.msgpack.encode(graded[entrant.name]))
        result = SuiteResult(tuple(entered), tries_per_row, parts.versions, scoreboard(graded, settings.grader.pass_at))
        folder.keep("scoreboard.json", msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        folder.keep("report.html", render_suite(folder.run_id, result.scoreboard, graded).encode())
    console.print(describe_scoreboard(result.scoreboard), highlight=False)
    console.print(f"{folder.path}/report.html, scoreboard.json; tries are kept in {Path(settings.run.folder, KEPT)}/")
    _refuse_spoilt(graded, settings.guards.max_infra_rate)


async def _evaluated(
    parts: Parts, data: Data, entrant: Entrant, sampler: Sampler, tries: Sequence[Try], kept: KeptTries, in_flight: int
) -> list[GradedRollout]:
    settings, there = parts.settings, sum(kept.rollout(attempt) is not None for attempt in tries)
    console.print(f"{entrant.name}: {there} of {len(tries)} tries are kept, {len(tries) - there} to run", highlight=False)
    if kept.unreadable:
        console.print(f"  {kept.unreadable} records on the disk cannot be read: what they held is made again", style="yellow")
    with progress(entrant.name, len(tries), console) as shown:

        def done(graded: GradedRollout) -> None:
            if not kept.recorded(Try(graded.row, graded.sample_index, graded.rollout.seed)):
                parts.record(graded, "eval", sampler.checkpoint)
            shown(graded)

        graded = await evaluate(
            data.val,
            len(tries) // len(data.val),
            sampler,
            parts.tools,
            parts.grader,
            limits_of(settings),
            settings.seed,
            PHASE,
            on_done=done,
            in_flight=in_flight,
            kept=kept,
        )
    await asyncio.to_thread(parts.recorder.flush)
    kept.note_recorded(tries)
    return graded


@asynccontextmanager
async def _speaking(entrant: Entrant, parts: Parts) -> AsyncGenerator[Sampler]:
    settings = parts.settings
    temperature = settings.algorithm.temperature
    if not entrant.url:
        yield parts.backend.sampler(model_of(settings), entrant.checkpoint, temperature)
        return
    async with posting_to(entrant.url, os.environ.get(KEY_VARIABLE, "")) as post:
        yield ChatSampler(
            post, model=entrant.model, checkpoint=entrant.name, temperature=temperature, longest_pause_seconds=LONGEST_PAUSE_SECONDS
        )


def _agent(parts: Parts, sampler: Sampler) -> Agent:
    settings = parts.settings
    return Agent(
        checkpoint=sampler.checkpoint,
        tool_set=parts.versions.tool_set,
        system_prompt=settings.task.system_prompt,
        limits=limits_of(settings),
        temperature=settings.algorithm.temperature,
    )


def _hash_of(entrant: Entrant) -> str:
    """Of a checkpoint's manifest, which holds the hashes of its files. A model's own name has a hash of its weights already, and of an
    endpoint nothing can be told."""
    manifest = Path(entrant.checkpoint or "", "manifest.json")
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if entrant.checkpoint and manifest.is_file() else ""


def connections_for(in_flight: int) -> int:
    """How many rollouts may really be in flight: many shells start with 1024 open files, and not every system lets us have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OTHER_FILES + FILES_A_ROLLOUT * in_flight
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    possible = min(in_flight, max(1, (max(soft, most) - OTHER_FILES) // FILES_A_ROLLOUT))
    if possible < in_flight:
        told = f"{possible} rollouts are in flight and not {in_flight}: this system allows {hard} open files (ulimit -Hn)"
        console.print(told, style="yellow", highlight=False)
    return possible


def _refuse_spoilt(graded: dict[str, list[GradedRollout]], most: float) -> None:
    """After the scoreboard, which counts them: figures of what is left are no fair sample."""
    if spoilt := list(_spoilt(graded, most)):
        key = f" (an endpoint's key is what {KEY_VARIABLE} holds)" if any("its server answered 401" in one for one in spoilt) else ""
        cure = f"mend that{key}; then the same command again runs these alone"
        raise InfraError("suite", "; ".join(spoilt), cure)


def _spoilt(graded: dict[str, list[GradedRollout]], most: float) -> Iterator[str]:
    for name, tries in graded.items():
        try:
            refuse_spoilt(name, tries, most)
        except InfraError as error:
            yield str(error).removesuffix("; no report is made")
