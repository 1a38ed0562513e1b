"""`rft tiny-base`: the base model of research_tiny, made from nothing and measured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agent_rft.commands.grading import grader_of
from agent_rft.commands.parts import console, limits_of, model_of
from agent_rft.compose import settings_for
from agent_rft.contracts.ports import ToolProvider
from agent_rft.datasets.filings import TOOLS, Filing
from agent_rft.datasets.research import make_rows, make_world
from agent_rft.evaluation.prior import PriorCheck, check_prior, describe_prior
from agent_rft.evaluation.suite import evaluate
from agent_rft.rollouts.in_process import InProcessTools
from agent_rft.training.local.backend import LocalBackend
from agent_rft.training.local.tiny import warm_start
from agent_rft.training.local.tiny.card import add_measurement
from agent_rft.training.local.tiny.make import make_tiny_base
from serving.tools.corpus import CorpusTools

TRIES = 5


def make(out: str, seed: int) -> None:
    folder, world = Path(out), make_world()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("warming up")

        def shown(progress: warm_start.Progress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, description=f"loss {progress.loss:.3f}")

        make_tiny_base(folder, tools_of, frozenset(filing.company for filing in world), seed, on_progress=shown)
    check = measured(folder, world)
    console.print(describe_prior(check))
    add_measurement(
        folder,
        {
            "reward": check.mean_reward,
            "tool_calls": check.mean_tool_calls,
            "never": check.never,
            "sometimes": check.sometimes,
            "always": check.always,
            "tries": TRIES,
        },
    )
    console.print(f"{folder}: made; README.md there says what it is")


def tools_of(filings: Sequence[Filing]) -> ToolProvider:
    return CorpusTools({filing.path: filing.html() for filing in filings}, TOOLS)


def measured(folder: Path, world: Sequence[Filing]) -> PriorCheck:
    """What it does with questions about companies that it has never met."""
    settings = settings_for("research_tiny", [f"model.path={folder}"])
    _, rows = make_rows(world)
    sampler = LocalBackend().sampler(model_of(settings), None, settings.algorithm.temperature)
    tools = InProcessTools(tools_of(world))
    graded = asyncio.run(evaluate(rows, TRIES, sampler, tools, grader_of(settings), limits_of(settings), settings.seed, "tiny-base"))
    return check_prior(graded)
