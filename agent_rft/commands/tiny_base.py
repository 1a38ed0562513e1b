"""`rft tiny-base`: the base model of research_tiny, made from nothing and measured; or one for a task of the user's own."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from agent_rft.commands.grading import grader_of
from agent_rft.commands.parts import console, limits_of, model_of
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.ports import ToolProvider
from agent_rft.datasets.examples import parse_examples
from agent_rft.datasets.filings import TOOLS, Filing
from agent_rft.datasets.research import make_rows, make_world
from agent_rft.evaluation.prior import PriorCheck, check_prior, describe_prior
from agent_rft.evaluation.suite import evaluate
from agent_rft.rollouts.in_process import InProcessTools
from agent_rft.training.local.backend import LocalBackend
from agent_rft.training.local.tiny import warm_start
from agent_rft.training.local.tiny.card import add_measurement
from agent_rft.training.local.tiny.make import make_tiny_base
from agent_rft.training.local.tiny.of_examples import make_base_of_examples
from serving.tools.corpus import CorpusTools

SHIPPED = "models/research-tiny"
TRIES = 5
FEWEST = 100
"""Examples below which there is a warning."""


def make_of_examples(file: str, out: str, seed: int, steps: int) -> None:
    """A base for a task of the user's own, from worked examples of it."""
    folder = Path(out)
    if out == SHIPPED or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{out} holds something already", "name a new folder with --out")
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}", "name a JSONL file of worked examples") from None
    examples = parse_examples(file, content)
    if len(examples) < FEWEST:
        console.print(
            f"warning: {len(examples)} examples are learnt by heart; some hundred, each of them other, are copied from", style="yellow"
        )
    with _progress() as shown:
        make_base_of_examples(folder, examples, seed, steps, shown)
    model = shlex.quote(f"model.path={out}")
    console.print(f"{out}: made of {len(examples)} examples; what it can do: `rft prior RECIPE {model}`, then `rft train RECIPE {model}`")


@contextmanager
def _progress() -> Generator[Callable[[warm_start.Progress], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("warming up")

        def shown(progress: warm_start.Progress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, description=f"loss {progress.loss:.3f}")
            if not console.is_terminal and progress.step % max(1, progress.steps // 20) == 0:  # no bar is drawn there
                console.print(f"step {progress.step} of {progress.steps}: loss {progress.loss:.3f}, {progress.seconds_left:.0f} s left")

        yield shown


def make(out: str, seed: int) -> None:
    folder, world = Path(out), make_world()
    with _progress() as shown:
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
