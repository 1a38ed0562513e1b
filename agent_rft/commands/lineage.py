"""What a run leaves in the store beside its cards: what they were made with, and the review queue filled. None of it may cost a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from agent_rft.commands.access import me
from agent_rft.commands.parts import Data, Parts, console, limits_of
from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.guards import ENDING
from agent_rft.contracts.training import Outcome, StepMetrics
from agent_rft.datasets.filings import TOOLS
from agent_rft.evaluation.compare import Comparison
from agent_rft.evaluation.offline import MOST_ROWS
from agent_rft.guards.limits import GUARDS, Family
from observability.artifacts import register
from observability.dossier import Artifact
from observability.proofs import cards_asked_for
from observability.query import And, Term
from observability.queue import fill_for, flag_for
from observability.registry import register_agent, report
from observability.states import LONGEST_WORDS


def register_run(parts: Parts, data: Data) -> None:
    """When it begins, so that the cards of a run that is stopped say what they came from."""
    made, settings, run_id = parts.versions, parts.settings, parts.folder.run_id
    named = [(kind, name) for kind in ("checkpoint", "dataset", "tool_set", "grader") if (name := getattr(made, kind))]
    tools = settings.tools.url or ", ".join(spec.name for spec in TOOLS)
    rows = {"rows": len(data.train), "held out": len(data.val)}
    ref = parts.grader.ref
    _registered(
        parts,
        Artifact(
            kind="run", id=run_id, name=settings.recipe, run_id=run_id, parents=tuple(named), facts={"code": made.code, "seed": made.seed}
        ),
        Artifact(kind="checkpoint", id=made.checkpoint, name=settings.model.path, run_id=run_id),
        Artifact(kind="dataset", id=made.dataset, name=str(Path(settings.task.train).parent), run_id=run_id, facts=rows),
        Artifact(kind="tool_set", id=made.tool_set, name=tools, run_id=run_id),
        Artifact(kind="grader", id=made.grader, name=f"{ref.name}@{ref.version}", run_id=run_id, facts={"hash": ref.hash}),
    )


def register_checkpoint(parts: Parts, name: str, facts: dict[str, Any]) -> None:
    run_id = parts.folder.run_id
    _registered(parts, Artifact(kind="checkpoint", id=name, name=name, run_id=run_id, parents=(("run", run_id),), facts=facts))


def register_agents(parts: Parts, checkpoint: str, found: Comparison) -> Iterator[str]:
    """The tuned agent and the base one, each with what the evaluation found: so that either can be released. The line to print."""
    if parts.store is None:
        return
    settings, run_id = parts.settings, parts.folder.run_id
    tenant, rows = settings.store.tenant, sorted(found.rows, key=lambda row: row.row_id)[:MOST_ROWS]
    base = {"reward": found.base_reward, "regressed": 0.0, "rows": {row.row_id: row.base_reward for row in rows}}
    tuned = {"reward": found.tuned_reward, "regressed": found.regressed / found.compared if found.compared else 0.0, "run": run_id}
    tuned |= {"rows": {row.row_id: row.tuned_reward for row in rows}}
    try:
        for weights, name, figures in ((parts.versions.checkpoint, "base", base), (checkpoint, run_id, tuned)):
            made = agent_of_run(parts, weights)
            register_agent(parts.store, tenant, made, name, "" if name == "base" else run_id)
            report(parts.store, tenant, made.id, "evaluation", passed=True, figures=figures, by=me(tenant).name)
    except (UserError, SQLAlchemyError) as error:
        yield f"warning: the agents were not registered, so neither can be released: {error}"
        return
    yield f"agent {agent_of_run(parts, checkpoint).id}: `rft release create SERVICE --agent {shlex.quote(run_id)}` puts it on trial"


def agent_of_run(parts: Parts, checkpoint: str) -> Agent:
    """As the run trained and evaluated it."""
    settings = parts.settings
    return Agent(
        checkpoint=checkpoint,
        tool_set=parts.versions.tool_set,
        system_prompt=settings.task.system_prompt,
        limits=limits_of(settings),
        temperature=settings.algorithm.temperature,
    )


def queue_filled(parts: Parts) -> Iterator[str]:
    """The line to print; none where nothing new waits for a reviewer."""
    if parts.store is None:
        return
    try:
        filled = fill_for(parts.store, me(parts.settings.store.tenant))
    except (UserError, SQLAlchemyError) as error:
        yield f"warning: the review queue was not filled: {error}"
        return
    if filled.put:
        put = ", ".join(f"{count} by {reason.replace('_', ' ')}" for reason, count in filled.put.items())
        yield f"for a reviewer: {put}; `rft queue list --tenant {parts.settings.store.tenant} --store {parts.store.name}`"


def halt_flagged(parts: Parts, outcome: Outcome) -> Iterator[str]:
    """What was rolled out in the step at which a guard halted the run waits for a reviewer, with the guard's words: all of it, where the
    guard points at no rollouts of its own (flagging.py)."""
    if parts.store is None or not outcome.halted or not outcome.metrics or pointed_at(outcome):
        return
    store, tenant, last = parts.store, parts.settings.store.tenant, outcome.metrics[-1]
    step, kind = last.step, "eval" if last.val_reward is not None and last.train_reward is None else "train"
    of_step = And((Term("run", ":", (parts.folder.run_id,)), Term("kind", ":", (kind,)), Term("step", ":", (step,))))
    try:
        flag_for(store, me(tenant), cards_asked_for(store.of(tenant), tenant, of_step), "halted", outcome.halted[:LONGEST_WORDS])
    except (UserError, SQLAlchemyError) as error:
        yield f"warning: the cards of step {step}, at which a guard halted the run, were not flagged: {error}"


def pointed_at(outcome: Outcome, but: Family | None = None) -> tuple[str, ...]:
    """Rollouts that show why the run was halted; not those of guards of the family `but`."""
    of_halt = [finding for finding in outcome.metrics[-1].findings if finding.action in ENDING] if outcome.halted else []
    shown = (finding for finding in of_halt if GUARDS[finding.guard].family != but)
    return tuple(dict.fromkeys(rollout for finding in shown for rollout in finding.rollouts))


def speaks_again(outcome: Outcome) -> str:
    """The guard that ended the run for how the policy came by its reward: what it saw is there still when the run goes on."""
    ended = [one.guard for one in outcome.metrics[-1].findings if one.action in ENDING] if outcome.halted else []
    return ended[0] if ended and GUARDS[ended[0]].family in ("hacking", "safety") else ""


def findings_as_facts(lines: Iterable[StepMetrics]) -> dict[str, Any]:
    """What guards said of the run, with their figures, for what it leaves in the store."""
    said = [
        f"step {one.step}, {one.guard} {one.figure:.3g} (limit {one.limit:g}, {one.action}): {one.what}"
        for line in lines
        for one in line.findings
    ]
    return {"guards": said} if said else {}


def _registered(parts: Parts, *made: Artifact) -> None:
    """Only where the store is ours to write in: a card server takes cards."""
    if parts.store is None:
        return
    try:
        register(parts.store, parts.settings.store.tenant, made)
    except (UserError, SQLAlchemyError) as error:
        console.print(f"warning: what the cards were made with was not registered: {error}", style="yellow")
