"""What a run is made of, opened in order and closed in reverse: rows, grader, tool server, store."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import SQLAlchemyError

from agent_rft import __version__
from agent_rft.commands.console import console
from agent_rft.commands.grading import grader_of, grader_texts, holdouts_named, services_of
from agent_rft.commands.registered import inactive, shipped
from agent_rft.commands.run_folder import RunFolder
from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.guards import Limit
from agent_rft.contracts.jobcards import Kind, Versions
from agent_rft.contracts.layouts import Cluster, Generation, Layout, Parallel, Reference
from agent_rft.contracts.messages import Message
from agent_rft.contracts.ports import Grader, ToolBox, waits
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import Algorithm, Backend, GuardLimits, Lora, Model, TrainingJob
from agent_rft.datasets.filings import TOOLS
from agent_rft.datasets.rows import version_of
from agent_rft.datasets.rows_io import read_rows, validate_files
from agent_rft.graders.reports import named
from agent_rft.guards.limits import limit_of, watched
from agent_rft.rollouts.cards import card_of
from agent_rft.rollouts.tool_client import HttpTools
from agent_rft.settings import NemoSettings, Settings, StoreSettings
from observability.graders import active_version
from observability.halves import moment_text
from observability.ingest import StoreRecorder
from observability.remote import KEY_VARIABLE, CardServer, HttpRecorder, spool_folder
from observability.roots import LedgerFiles, sign
from observability.settler_process import SettlerProcess
from observability.signing import open_keys
from observability.store import Store, open_store
from serving.gateway.ending import leaks_in
from serving.server import BEARER_VARIABLE, running_server
from serving.tools import notebook, outbox

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def progress_bar(title: str, total: int) -> Generator[Callable[[int], None]]:
    """What it gives is told how much more is done. Nothing is shown in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class ServedTools(msgspec.Struct, frozen=True):
    names: list[str]
    version: str


class Health(msgspec.Struct, frozen=True):
    """What a run needs to know of a tool server."""

    tools: ServedTools


class Data(msgspec.Struct, frozen=True):
    train: tuple[Row, ...]
    val: tuple[Row, ...]
    hash: str


def read_data(settings: Settings, grader: Grader) -> Data:
    """The rows of both splits, with the system prompt before each; every fault in them at once."""
    paths = {"train": Path(settings.task.train), "val": Path(settings.task.val)}
    asked = None if waits(grader) else grader  # one that asks others would ask them about every row
    report = validate_files(paths, known_tools(settings), asked)
    if report.faults:
        raise FaultsFound("the data has faults:", report.faults, "mend them; `make validate` shows them again, with the warnings")
    train, val = read_rows(paths["train"]), read_rows(paths["val"])
    prompted = [tuple(_with_system(row, settings.task.system_prompt) for row in rows) for rows in (train, val)]
    return Data(prompted[0], prompted[1], version_of({"train": train, "val": val}))


def known_tools(settings: Settings) -> list[str]:
    if settings.tools.url:
        return served_tools(settings.tools.url)[0]
    more = (*(notebook.SPECS if settings.tools.notebook else ()), *([outbox.SPEC] if settings.tools.outbox else []))
    return [spec.name for spec in (*TOOLS, *more)]


def served_tools(url: str) -> tuple[list[str], str]:
    """The names and the version of the tools that a server says it serves."""
    address = f"{url.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            said = msgspec.json.decode(answer.read(), type=Health)
    except OSError as error:
        raise UserError(f"no tool server answers at {address}: {error}", "start one with `make serve`, or leave tools.url out") from None
    except msgspec.MsgspecError as error:
        shape = '{"tools": {"names": ["search", ...], "version": "..."}}'
        raise UserError(f"{address} does not say which tools it serves: {error}", f"it should answer {shape}") from None
    return said.tools.names, said.tools.version


def _with_system(row: Row, system_prompt: str) -> Row:
    if not system_prompt or any(message.role == "system" for message in row.messages):
        return row
    return msgspec.structs.replace(row, messages=(Message("system", system_prompt), *row.opening()))


class Parts(msgspec.Struct, frozen=True):
    folder: RunFolder
    settings: Settings
    backend: Backend
    tools: ToolBox
    grader: Grader
    holdouts: tuple[Grader, ...]
    """Asked at validations, for the guards alone."""
    store: Store | None
    """None where cards go to a card server."""
    recorder: StoreRecorder | HttpRecorder
    versions: Versions
    """What the run stands on; its checkpoint is the base, while each card names the weights that spoke."""

    def record(self, graded: GradedRollout, kind: Kind, checkpoint: str) -> None:
        versions = msgspec.structs.replace(self.versions, checkpoint=checkpoint)
        self.recorder.record(card_of(graded, kind=kind, run_id=self.folder.run_id, versions=versions, tenant=self.settings.store.tenant))


@asynccontextmanager
async def opened(settings: Settings, folder: RunFolder, data: Data, checkpoint: str = "") -> AsyncGenerator[Parts]:
    """Everything a run talks to, up and answering, in the versions that the run began with. `checkpoint`: what speaks, where that is
    none of this machine's models; else it is the recipe's."""
    backend, services = backend_of(settings), services_of(settings.grader)
    async with AsyncExitStack() as stack:
        stack.callback(services.close)
        grader = grader_of(settings, services)
        holdouts = holdouts_named("guards.holdout_graders", settings.guards.holdout_graders, grader, services, settings.store.url)
        to = card_server_of(settings.store) or open_store(settings.store.url)
        if isinstance(to, Store):
            stack.callback(to.close)
            standing = _standing(to, grader, settings.grader.allow_inactive)
            stack.callback(_sign_ledger, to, settings)  # when the recorder has put its last card down
        else:
            to.check()
            standing = _standing_unknown(grader, to.address, settings.grader.allow_inactive)
        recorder = stack.enter_context(_recorder(to, settings, folder.run_id))
        url, bearer = settings.tools.url or "", os.environ.get(BEARER_VARIABLE, "")
        if not url:
            server = stack.enter_context(running_server(lambda port: server_command(folder, port), log=folder.path / "server.log"))
            url, bearer = server.base_url, server.bearer
        names, tool_set = served_tools(url)
        versions = Versions(
            code=code_version(),
            checkpoint=checkpoint or backend.name_of(model_of(settings), None),
            dataset=data.hash,
            tool_set=tool_set,
            grader=f"{grader.ref.name}@{grader.ref.version}#{grader.ref.hash}{standing}",
            seed=settings.seed,
        )
        folder.hold_to(versions)
        wire = settings.tools
        client = HttpTools(url, bearer, wire.timeout_seconds, wire.retries, wire.concurrency, names=names)
        tools = await stack.enter_async_context(client)
        yield Parts(folder, settings, backend, tools, grader, holdouts, to if isinstance(to, Store) else None, recorder, versions)


def card_server_of(settings: StoreSettings) -> CardServer | None:
    """Where store.url is a card server's address and no database's."""
    return card_server(settings.url) if settings.url.startswith(("http://", "https://")) else None


def card_server(address: str) -> CardServer:
    """By a key that stands in the environment: no settings file and no command line should hold one."""
    if not (key := os.environ.get(KEY_VARIABLE)):
        cure = f"export {KEY_VARIABLE}=..., a key that may ingest; `rft key new` makes one where the store is"
        raise UserError(f"{address} is a card server, and {KEY_VARIABLE} is not set", cure)
    return CardServer(address, key)


def _recorder(to: Store | CardServer, settings: Settings, run_id: str) -> StoreRecorder | HttpRecorder:
    given = settings.store
    recipe = (given.redact, given.patterns, given.tenant_patterns, f"run {run_id}")
    if isinstance(to, Store):
        return StoreRecorder(to, *recipe, settling=SettlerProcess)
    return HttpRecorder(to, spool_folder(Path(settings.run.folder), to.address, given.tenant), *recipe)


def _standing_unknown(grader: Grader, address: str, allow_inactive: bool) -> str:
    """How a run is marked that cannot look up which graders are active. What ships with the code stands from the start."""
    ships = shipped(grader.ref.name)
    if not (ships and ships.ref == grader.ref) and not allow_inactive:
        what = f"whether {named(grader.ref)} is active stands in the store, and {address} only takes cards"
        raise UserError(what, "name the store's database as store.url; or grader.allow_inactive=true, which marks the run")
    return " (not looked up)"


def _standing(store: Store, grader: Grader, allow_inactive: bool) -> str:
    """How the run is marked. Nothing but an active grader trains or gates, unless that is asked for."""
    why, active = inactive(store, grader.ref), active_version(store, grader.ref.name)
    if why and not allow_inactive:
        instead = f"grader.name={active.ref.name}@{active.ref.version} takes the active one; or " if active else ""
        marked = "grader.allow_inactive=true, which marks the run"
        raise UserError(why, f"{instead}check, approve and activate this one (`rft grader list`); or {marked}")
    return " (inactive)" if why else ""


def _sign_ledger(store: Store, settings: Settings) -> None:
    """A run that is over has its cards under a signed root. What hinders that spoils no training."""
    try:
        files = LedgerFiles.of(store, settings.store.ledger)
        at = moment_text(dt.datetime.now(dt.UTC))
        sign(store, settings.store.tenant, open_keys(files.keys, at), files.roots, at)
    except (UserError, OSError, SQLAlchemyError) as error:
        console.print(f"warning: no root of the ledger was signed: {error}", style="yellow")


def server_command(folder: RunFolder, port: int) -> list[str]:
    """Our own server, with the settings that the run was started with."""
    return [sys.executable, "-m", "agent_rft", "serve", "--settings", str(folder.settings_file), "--port", str(port)]


def backend_of(settings: Settings) -> Backend:
    """The one place that names a training engine's class. The local one loads torch, so late."""
    if settings.backend.name == "nemo":
        from agent_rft.training.nemo.backend import NemoBackend

        return NemoBackend(layout_of(settings), limits_of(settings))
    from agent_rft.training.local.backend import LocalBackend

    return LocalBackend()


def job_of(settings: Settings, data: Data, run_id: str, run_dir: str, versions: Versions, resume: bool) -> TrainingJob:
    return TrainingJob(
        run_id=run_id,
        run_dir=run_dir,
        model=model_of(settings),
        algorithm=algorithm_of(settings),
        guards=guards_of(settings),
        grader_texts=grader_texts(settings),
        leaks_in=leaks_in,
        limits=limits_of(settings),
        train_rows=data.train,
        val_rows=data.val,
        val_samples=settings.evaluation.val_samples,
        evaluate_every=settings.evaluation.every,
        checkpoint_every=settings.backend.checkpoint_every,
        keep_checkpoints=settings.backend.keep_checkpoints,
        seed=settings.seed,
        resume=resume,
        versions=versions,
        tenant=settings.store.tenant,
        rollouts_in_flight=settings.backend.rollouts_in_flight,
    )


def limits_of(settings: Settings) -> Limits:
    return Limits(**settings.task.limits.model_dump())


def model_of(settings: Settings) -> Model:
    model = settings.model
    lora = Lora(model.lora.rank, model.lora.alpha, model.lora.target_modules) if model.lora else None
    return Model(path=model.path, lora=lora, device=model.device, dtype=model.dtype, sampler=model.sampler, threads=model.threads)


def algorithm_of(settings: Settings) -> Algorithm:
    return Algorithm(**settings.algorithm.model_dump())


def layout_of(settings: Settings) -> Layout:
    nemo, cluster, reference = settings.backend.nemo or NemoSettings(), settings.cluster, settings.reference
    return Layout(
        workers=nemo.workers,
        cluster=Cluster(**cluster.model_dump()),
        parallel=Parallel(tensor=nemo.tensor, pipeline=nemo.pipeline, context=nemo.context),
        generation=Generation(**nemo.generation.model_dump()),
        reference=Reference(**reference.model_dump()),
        micro_batch=nemo.micro_batch,
        activation_checkpointing=nemo.activation_checkpointing,
        optimizer_on_cpu=nemo.optimizer_on_cpu,
        environment_actors=nemo.environment_actors,
        loggers=nemo.loggers,
        overrides=nemo.overrides,
    )


def guards_of(settings: Settings) -> GuardLimits:
    given = settings.guards
    limits = GuardLimits(**given.model_dump(exclude={"holdout_graders", "watch"}))
    watch = dict[str, Limit]()
    for name, wanted in given.watch.items():
        own = limit_of(name, watched(limits))
        watch[name] = Limit(own.at if wanted.at is None else wanted.at, wanted.action or own.action)
    return msgspec.structs.replace(limits, watch=watch)


def code_version() -> str:
    """Package version, and the commit where the code runs from a checkout; + says that it was changed since."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}-{found}"
