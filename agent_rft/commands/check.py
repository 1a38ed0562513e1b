"""`rft agent check`: the reports that a release's offline gate asks for, made by running the agent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import InterfaceError, OperationalError

from agent_rft.commands.access import me
from agent_rft.commands.console import console
from agent_rft.commands.distribution import report_figures
from agent_rft.commands.grading import grader_of, holdouts_named, services_of
from agent_rft.commands.parts import Data, Parts, model_of, opened, progress_bar, read_data
from agent_rft.commands.run_folder import RunFolder
from agent_rft.commands.safety_suite import policy_of, suite_of
from agent_rft.compose import settings_for
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.ports import Grader, Sampler
from agent_rft.contracts.training import Backend
from agent_rft.evaluation.live import progress
from agent_rft.evaluation.offline import evaluation_figures, holdout_figures, refuse_spoilt
from agent_rft.evaluation.report.versions import masked
from agent_rft.evaluation.safety import SafetyFound, SafetyGrader, Suite, safety_found
from agent_rft.evaluation.suite import evaluate
from agent_rft.evaluation.traps import seed_of_try, try_out
from agent_rft.graders.apply import grade_rollout
from agent_rft.graders.reports import named
from agent_rft.rollouts.seeds import derive_seed
from agent_rft.settings import GatewaySettings, Settings, UpstreamSettings
from observability import registry
from observability.graders import tries_given_nothing
from observability.registry import REPORT_KINDS, Registered, ReportKind
from observability.store import StoreAway, open_store
from serving.gateway.agents import sampling_from
from serving.gateway.upstreams import Upstreams, UpstreamSpec
from serving.release.acts import read_policy

GRADINGS_AT_ONCE = 8
PATIENCE_SECONDS = 600.0
"""For how long a report waits for a store that is away."""
AGAIN_SECONDS = 2.0
PHASE = "eval-1"
"""As a training run's first evaluation: with its seed the same weights draw the same luck as there."""


class Check(msgspec.Struct, frozen=True):
    """What is to be checked, and with what."""

    one: Registered
    settings: Settings
    upstreams: tuple[UpstreamSettings, ...]
    suite: Suite
    safety_tries: int
    data: Data
    holdouts: tuple[Grader, ...]
    kinds: tuple[ReportKind, ...]


def check_agent(
    store: str | None, tenant: str | None, agent: str, recipe: str, overrides: Sequence[str], only: str | None, rows: str | None
) -> None:
    given = {"store.url": store, "store.tenant": tenant, "task.val": rows}
    wanted = settings_for(recipe, [*overrides, *(f"{key}={value}" for key, value in given.items() if value)])
    kinds = _kinds(wanted, only)
    with closing(open_store(wanted.store.url)) as opened_store:
        one = registry.found(opened_store, wanted.store.tenant, agent)
    suite = suite_of(wanted.release)
    asked_for = read_policy(policy_of(wanted.release, suite.hash)).safety_tries
    tries = max(asked_for, wanted.evaluation.samples_per_row)
    settings = _as_the_agent(wanted, one.agent)
    with closing(services_of(wanted.grader)) as services:
        grader = grader_of(settings, services)
        names = wanted.release.holdout_graders if "holdout" in kinds else ()
        holdouts = holdouts_named("release.holdout_graders", names, grader, services, wanted.store.url)
        unsafe = _checked(Check(one, settings, wanted.gateway.upstreams, suite, tries, read_data(settings, grader), holdouts, kinds))
    if unsafe:
        raise UserError(f"the safety report did not pass: {', '.join(unsafe)}", "each of its runs left a job card: `rft card`", 1)


def _checked(check: Check) -> tuple[str, ...]:
    one, cases = check.one, len(check.suite.cases)
    with RunFolder.begun(check.settings, f"check-{one.id.removeprefix('agent-')[:8]}-") as folder:
        console.print(f"check {folder.run_id}: {one.id} {one.name}, {len(check.data.val)} rows, {cases} safety cases")
        return asyncio.run(_check(check, folder))


def _kinds(settings: Settings, only: str | None) -> tuple[ReportKind, ...]:
    if settings.release.holdout_graders:
        return tuple(kind for kind in REPORT_KINDS if only in (None, kind))
    cure = "release.holdout_graders=[NAME, ...]: graders that no training saw"
    if only == "holdout":
        raise UserError("there is no holdout grader, so there is nothing to report", cure)
    if only is None:
        console.print(f"no holdout report is made: no holdout grader is set; {cure}", style="yellow")
    return tuple(kind for kind in REPORT_KINDS if kind != "holdout" and only in (None, kind))


def _as_the_agent(settings: Settings, agent: Agent) -> Settings:
    """The agent's own prompt and limits in the recipe's place. Its tools are served as a run's are, and nothing that acts on the world."""
    limits = settings.task.limits.model_copy(update=msgspec.structs.asdict(agent.limits))
    return settings.model_copy(
        update={
            "task": settings.task.model_copy(update={"system_prompt": agent.system_prompt, "limits": limits}),
            "serving": settings.serving.model_copy(update={"mode": "training"}),
            "tools": settings.tools.model_copy(update={"outbox": None, "high_impact": None}),
            "gateway": GatewaySettings(),
        }
    )


# --- running it -----------------------------------------------------------------------------------------------------------


async def _check(check: Check, folder: RunFolder) -> tuple[str, ...]:
    """The safety cases for which the agent did not pass. What one report cannot be made of does not cost the others."""
    trouble, unsafe = list[InfraError](), tuple[str, ...]()
    async with opened(check.settings, folder, check.data) as parts:
        _refuse_other_tools(check.one, parts.versions.tool_set)
        async with _speaking(check, parts.backend) as sampler:
            if "distribution" in check.kinds:
                _distribution_reported(check, parts)
            if {"evaluation", "holdout"} & {*check.kinds}:
                trouble += await _rows_reported(check, parts, sampler)
            if "safety" in check.kinds:
                try:
                    found = await _safety_reported(check, parts, sampler)
                    unsafe = () if found.passed else (*found.failed, *found.lacks)
                except InfraError as error:
                    trouble.append(error)
    if trouble:
        raise trouble[0] if len(trouble) == 1 else InfraError("check", "; ".join(str(one) for one in trouble))
    return unsafe


def _refuse_other_tools(one: Registered, served: str) -> None:
    if one.agent.tool_set and one.agent.tool_set != served:
        what = f"{one.id} works with the tools {one.agent.tool_set}, and these are {served}: what it does with them says nothing of it"
        raise UserError(what, "give the recipe and tools.* that it was made for; tools.url=... names a server that runs")


@asynccontextmanager
async def _speaking(check: Check, backend: Backend) -> AsyncGenerator[Sampler]:
    agent = check.one.agent
    specs = [UpstreamSpec(**upstream.model_dump()) for upstream in _speakers(check)]
    if not specs:
        yield backend.sampler(model_of(check.settings), _weights(check.settings, backend, agent.checkpoint), agent.temperature)
        return
    upstreams = Upstreams(specs)
    async with upstreams.running():
        yield sampling_from(upstreams, 0.0)(agent, "live")


def _speakers(check: Check) -> list[UpstreamSettings]:
    return [upstream for upstream in check.upstreams if upstream.checkpoint == check.one.agent.checkpoint]


def _weights(settings: Settings, backend: Backend, checkpoint: str) -> str | None:
    """Where they lie here: None is the recipe's own model."""
    model = model_of(settings)
    if Path(checkpoint).is_dir():
        return checkpoint
    if backend.name_of(model, None) == checkpoint:
        return None
    folder = Path(settings.run.folder, checkpoint.rpartition("/")[0], "checkpoints")
    kept = sorted(folder.iterdir()) if folder.is_dir() else []
    found = next((str(one) for one in kept if one.is_dir() and backend.name_of(model, str(one)) == checkpoint), None)
    if found is None:
        cure = "name a model server that does: gateway.upstreams, or the recipe and run.folder that it comes from"
        raise UserError(f"nothing here speaks with the weights {checkpoint}", cure)
    return found


def _distribution_reported(check: Check, parts: Parts) -> None:
    with closing(open_store(check.settings.store.url)) as store:
        alike, figures = report_figures(store, check.settings.store.tenant, check.one.id, check.settings, check.data)
    _put(check, parts, "distribution", alike, figures | _made_with(check, parts))


async def _rows_reported(check: Check, parts: Parts, sampler: Sampler) -> list[InfraError]:
    settings, agent = check.settings, check.one.agent
    tries = settings.evaluation.samples_per_row
    with progress("held-out rows", len(check.data.val) * tries, console) as shown:
        graded = await evaluate(
            check.data.val,
            tries,
            sampler,
            parts.tools,
            parts.grader,
            agent.limits,
            settings.seed,
            PHASE,
            on_done=_noting(parts, sampler, shown),
            in_flight=settings.backend.rollouts_in_flight,
        )
    most = settings.guards.max_infra_rate
    makers: dict[ReportKind, Callable[[], dict[str, Any]]] = {
        "evaluation": lambda: evaluation_figures(graded) | _made_with(check, parts),
        "holdout": lambda: _held_out(check, parts, graded),
    }
    trouble = list[InfraError]()
    for kind, figures in makers.items():
        try:
            if kind in check.kinds:
                refuse_spoilt(kind, graded, most)
                _put(check, parts, kind, True, figures())
        except InfraError as error:
            trouble.append(error)
    return trouble


def _held_out(check: Check, parts: Parts, graded: Sequence[GradedRollout]) -> dict[str, Any]:
    """The same rollouts under the other graders: what differs is the grader alone."""
    ended = [one for one in graded if not one.infra_failed]
    with ThreadPoolExecutor(GRADINGS_AT_ONCE) as pool:  # for graders that wait for others
        grades: dict[str, list[Grade | None]] = {
            named(grader.ref): list(pool.map(lambda one, by=grader: grade_rollout(one.row, one.rollout, by), ended))
            for grader in check.holdouts
        }
    made_with = _made_with(check, parts) | {"grader": ", ".join(named(one.ref) for one in check.holdouts)}
    return holdout_figures(grades, check.settings.guards.max_infra_rate) | made_with


async def _safety_reported(check: Check, parts: Parts, sampler: Sampler) -> SafetyFound:
    settings, agent, suite = check.settings, check.one.agent, check.suite
    tries, judge = check.safety_tries, named(SafetyGrader(suite).ref)
    versions = msgspec.structs.replace(parts.versions, dataset=suite.hash, grader=judge)
    of_suite = msgspec.structs.replace(parts, versions=versions)
    seed = derive_seed("safety", check.one.id, suite.hash)  # nobody tries seeds elsewhere until one lets the agent through
    before = _unreported(check, seed, parts.folder.run_id)
    with progress_bar("safety suite", len(suite.cases) * tries) as shown:
        done = _noting(of_suite, sampler, lambda _: shown(1))
        tools, prompt = _tools_of(check.data), agent.system_prompt
        graded = await try_out(suite, tries, sampler, tools, prompt, agent.limits, seed, on_done=done)
    refuse_spoilt("safety", graded, settings.guards.max_infra_rate)
    found = safety_found(suite, graded, before)
    figures = msgspec.to_builtins(found) | _made_with(check, of_suite) | {"seed": seed}
    _put(check, parts, "safety", found.passed, figures)
    return found


def _unreported(check: Check, seed: int, run_id: str) -> dict[str, tuple[str, ...]]:
    """By case, what the agent broke in checks that made no report, stopped or spoilt. A try is known by its seed, which is made from
    agent, suite, case and number."""
    tenant, found = check.settings.store.tenant, dict[str, tuple[str, ...]]()
    with closing(open_store(check.settings.store.url)) as store:
        reports, _ = registry.reports_to_look_at(store, tenant, check.one.id)
        told = {run_id, *(one.figures.get("run") for one in reports if one.kind == "safety")}
        for one in tries_given_nothing(store.of(tenant), tenant, check.suite.hash):
            if one.run_id not in told and one.seed == seed_of_try(seed, one.row_id, one.number):
                found[one.row_id] = tuple((one.parts or {}).get("violations", ()))  # none of an erased one
    return found


def _tools_of(data: Data) -> Sequence[ToolSpec]:
    """As the rows tell the agent about them."""
    return list({tool.name: tool for row in data.val for tool in row.tools}.values())


def _noting(parts: Parts, sampler: Sampler, shown: Callable[[GradedRollout], None]) -> Callable[[GradedRollout], None]:
    """Every run leaves a job card: whoever doubts a report reads what it was made from."""

    def done(graded: GradedRollout) -> None:
        parts.record(graded, "eval", sampler.checkpoint)
        shown(graded)

    return done


# --- the report -------------------------------------------------------------------------------------------------------------


def _made_with(check: Check, parts: Parts) -> dict[str, Any]:
    made = parts.versions
    return {
        "dataset": made.dataset,
        "grader": made.grader,
        "tool_set": made.tool_set,
        "code": made.code,
        "run": parts.folder.run_id,
        "spoken_by": masked([upstream.url for upstream in _speakers(check)]) or "the local engine",
        "seed": check.settings.seed,
    }


def _put(check: Check, parts: Parts, kind: ReportKind, passed: bool, figures: dict[str, Any]) -> None:
    _once_it_answers(lambda: _report(check, kind, passed, figures))
    if kind == "safety":
        _say_safety(passed, figures)
    elif kind != "distribution":  # which was shown while it was made
        by_grader = "".join(f", {name} {reward:.3f}" for name, reward in figures.get("by_grader", {}).items())
        console.print(f"{kind}: reward {figures['reward']:.3f} over {figures['n']} rollouts{by_grader}")


def _report(check: Check, kind: ReportKind, passed: bool, figures: dict[str, Any]) -> None:
    tenant = check.settings.store.tenant
    with closing(open_store(check.settings.store.url)) as store:
        registry.report(store, tenant, check.one.id, kind, passed=passed, figures=figures, by=me(tenant).name)


def _once_it_answers(write: Callable[[], None]) -> None:
    """What took hours of trying is not lost to a store that is away for a minute."""
    until, told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            return write()
        except (StoreAway, OperationalError, InterfaceError):
            if time.monotonic() >= until:
                raise
        if not told:
            console.print(f"the store does not answer; the report waits for it, {PATIENCE_SECONDS / 60:g} minutes at most", style="yellow")
        told = True
        time.sleep(AGAIN_SECONDS)


def _say_safety(passed: bool, figures: Mapping[str, Any]) -> None:
    kinds = ", ".join(f"{name} {said['cases'] - said['failed']:.0f}/{said['cases']:.0f}" for name, said in figures["by_kind"].items())
    console.print(f"safety: {'passed' if passed else 'FAILED'}, {kinds}")
    if figures["unmet"]:
        console.print(f"  {len(figures['unmet'])} planted cases were not met: it called no tool there", style="yellow")
    if figures["unanswered"]:
        console.print(f"  {figures['unanswered']} of {figures['tries']} tries ended without an answer", style="yellow")
    if figures["before"]:
        console.print(f"  {', '.join(figures['before'])} failed in a check of before that made no report", style="yellow")
    for lack in figures["lacks"]:
        console.print(f"  {lack}", style="yellow")
