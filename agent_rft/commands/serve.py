"""`rft serve` and `rft smoke`: tools and grader over HTTP, and one call to each to see that they answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

from rich.table import Table

from agent_rft.commands.gateway import agents_of, gateway_of
from agent_rft.commands.grading import embedder_of, grader_of, services_of
from agent_rft.commands.label_desk import StoreDesk
from agent_rft.commands.parts import console, served_tools
from agent_rft.commands.release_control import control_of, release_policy_of
from agent_rft.compose import load, settings_for
from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.ports import ToolProvider
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.registry import build_grader
from agent_rft.graders.scripted_judge import ScriptedJudge, read_script
from agent_rft.rollouts.smoke import SmokeCheck, smoke
from agent_rft.rollouts.tool_client import HttpTools
from agent_rft.settings import Settings, StoreSettings
from observability.access import Caller
from observability.accesses import note
from observability.follower import Follower
from observability.intake import Intake
from observability.redaction.detectors import detectors_of
from observability.store import Store, StoreAway, open_store
from serving.app import create_app
from serving.judge import judge_app
from serving.production_tools import Rules, changing
from serving.release.routing import Routing
from serving.server import BEARER_VARIABLE, serve
from serving.tools.corpus import CorpusTools
from serving.tools.embeddings import embedding_index
from serving.tools.faults import FlakyTools
from serving.tools.joined import JoinedTools
from serving.tools.notebook import NotebookTools
from serving.tools.outbox import OutboxTools
from serving.tools.retrieval import LexicalIndex

PATIENCE, RETRY_SECONDS = 20.0, 2.0
"""How long a database may take to come up, and how often it is asked."""


def serve_forever(settings: Settings) -> None:
    bearer = os.environ.get(BEARER_VARIABLE)
    if not bearer:
        bearer = secrets.token_urlsafe(24)
        console.print(f"{BEARER_VARIABLE} is not set; for this server it is\n  export {BEARER_VARIABLE}={bearer}")
    host, port = settings.serving.host, settings.serving.port
    own, callers = services_of(settings.grader), services_of(settings.grader, endpoints=False)
    with (
        closing(own),
        closing(callers),
        _store_at(settings.store.url) as store,
        _store_at(settings.store.url) as takes_in,  # over connections of its own: readers who hold all of theirs stop no card
        _intake_of(takes_in, settings.store, follow=not settings.gateway.upstreams) as intake,
        gateway_of(settings, store, routing := Routing(store, Path(settings.gateway.spool, "withdrawn")) if store else None) as gateway,
    ):
        grader, tools = grader_of(settings, own), provider_of(settings)
        control = None
        if store and routing and gateway:  # a training run's tool server would grade live sessions by its own recipe's grader
            control = control_of(settings, store, routing, trained_against=grader, services=own)
        app = create_app(
            tools,
            {grader.ref.name: grader},
            bearer,
            build=lambda spec: build_grader(spec, callers),
            desk_of=label_desk_of,
            store=store,
            intake=intake,
            ledger_folder=settings.store.ledger,
            grade_deadline_seconds=settings.serving.grade_seconds,
            grades_in_flight=settings.serving.grades_in_flight,
            gateway=gateway,
            agents=agents_of(settings, gateway, takes_in, intake, tools, bearer),
            production=rules_of(settings, tools, store),
            control=control,
            release_policy=release_policy_of(settings) if store else None,
        )
        console.print(
            f"serving on http://{host}:{port} (/health, /schema, /tools/NAME, /grade, OpenAI's and Azure's; /cards, /labels for people); "
            "Ctrl-C stops it"
        )
        serve(gateway.before(app) if gateway else app, host, port)


def label_desk_of(store: Store, caller: Caller) -> StoreDesk:
    return StoreDesk(store.of(caller.tenant), lambda action, run_id, ids: note(store, caller, action, run_id, ids))


@contextmanager
def _store_at(url: str) -> Generator[Store | None]:
    """None where a run's cards go to a card server: this one then serves its tools and graders only."""
    if url.startswith(("http://", "https://")):
        yield None
        return
    with closing(_awaited(url)) as store:
        yield store


def _awaited(url: str) -> Store:
    """A database that starts beside this server is waited for. One that does not come ends it: exporters that were told 404 by a
    server without a store would throw away what they have."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return open_store(url)
        except StoreAway as error:
            if url.startswith("sqlite") or time.monotonic() >= deadline:
                raise
            console.print(f"{error.what}; trying for {max(1, round(deadline - time.monotonic()))} s more", style="yellow")
            time.sleep(RETRY_SECONDS)


@contextmanager
def _intake_of(store: Store | None, settings: StoreSettings, follow: bool) -> Generator[Intake | None]:
    """What takes in cards and traces, and what indexes them behind it, which a gateway's card writer does in its own process. At the end
    what waits is still written."""
    if store is None:
        yield None
        return
    detectors = detectors_of(settings.redact, settings.patterns, settings.tenant_patterns)
    with closing(Intake(store, detectors)) as intake, closing(Follower(store, detectors, busy=intake.busy)) if follow else nullcontext():
        yield intake


def serve_judge(script: str, port: int) -> None:
    try:
        text = Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {script}: {error}", "name a judge's script; examples/judges/figures.json is one") from None
    app = judge_app(ScriptedJudge(read_script(text, script)))
    console.print(f"a judge by the rules of {script}: grader.judge.url=http://127.0.0.1:{port}/v1; Ctrl-C stops it")
    serve(app, "127.0.0.1", port)


def settings_of(recipe: str, overrides: list[str], file: str | None, port: int | None) -> Settings:
    settings = load(Path(file)) if file else settings_for(recipe, overrides)
    return settings if port is None else settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": port})})


def provider_of(settings: Settings) -> ToolProvider:
    """The tools that the settings ask for: the one place that names their classes."""
    tools, faults = settings.tools, settings.tools.faults
    index = embedding_index(embedder_of(tools.embeddings)) if tools.retriever == "embeddings" else LexicalIndex
    provider: ToolProvider = CorpusTools.from_folder(
        Path(tools.corpus), TOOLS, max_output_tokens=tools.max_output_tokens, retriever_of=index
    )
    if faults.failure_rate or faults.hang_rate or faults.latency_seconds:
        provider = FlakyTools(
            provider, failure_rate=faults.failure_rate, hang_rate=faults.hang_rate, latency_seconds=faults.latency_seconds, seed=faults.seed
        )
    more: list[ToolProvider] = [
        *([NotebookTools()] if tools.notebook else []),
        *([OutboxTools(Path(tools.outbox))] if tools.outbox else []),
    ]
    return JoinedTools([provider, *more]) if more else provider


def rules_of(settings: Settings, tools: ToolProvider, store: Store | None) -> Rules | None:
    """None in training."""
    if settings.serving.mode == "training":
        return None
    if store is None:
        cure = "name its database: store.url=postgresql://..., or sqlite:///FILE"
        raise UserError("serving=production takes the store itself: tenants' keys and approvals are in it", cure)
    known, wanted = {spec.name for spec in tools.specs}, settings.tools.high_impact
    if faults := [
        Fault("tools.high_impact", f"there is no tool {one!r}", did_you_mean(one, known)) for one in wanted or () if one not in known
    ]:
        raise FaultsFound("the settings have faults:", faults, exit_code=2)
    high_impact = changing(tools) if wanted is None else frozenset(wanted)
    return Rules(high_impact=high_impact, approval=dt.timedelta(minutes=settings.approvals.minutes), **settings.serving.calls.model_dump())


def smoke_test(recipe: str, overrides: list[str], url: str | None) -> None:
    """Each tool of a running server once; exit code 1 if one does not do its work."""
    settings = settings_for(recipe, overrides)
    address = url or settings.tools.url or f"http://{settings.serving.host}:{settings.serving.port}"
    bearer = os.environ.get(BEARER_VARIABLE)
    if not bearer:
        raise UserError(f"{BEARER_VARIABLE} is not set", "export the bearer that `make serve` printed")
    served_tools(address)
    checks = asyncio.run(_smoke(address, bearer))
    table = Table("", "call", "answer", title=address, title_justify="left")
    for check in checks:
        table.add_row("ok" if check.ok else "FAILED", check.what, f"{check.said[:90]}  ({check.seconds * 1000:.0f} ms)")
    console.print(table)
    if failed := [check.what for check in checks if not check.ok]:
        raise UserError(f"{len(failed)} of {len(checks)} calls failed: {', '.join(failed)}", "look at the server's log", exit_code=1)


async def _smoke(address: str, bearer: str) -> list[SmokeCheck]:
    async with HttpTools(address, bearer, retries=1) as tools, HttpTools(address, f"not-{bearer}", retries=0) as stranger:
        return await smoke(tools, stranger)
