"""The `rft` command. Each subcommand is a function of agent_rft.commands, imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent_rft.contracts.errors import InfraError, UserError

if TYPE_CHECKING:
    from agent_rft.commands.run_folder import RunFolder

DEFAULT_RECIPE = "research_tiny"
DEFAULT_STORE = "sqlite:///runs/cards.db"


def main(argv: list[str] | None = None) -> int:
    # Before torch is loaded: OpenMP threads that spin while idle starve everything else on a small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What the model libraries say about their own work is noise between our lines; their failures reach us as exceptions.
    for quiet in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(quiet, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # A supervisor's stop is a clean stop: what is under way is put down as it is for Ctrl-C, job cards to the store included.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    arguments = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except InfraError as error:
        return _fail(f"infrastructure: {error}" + _met_before(error), 4)
    except KeyboardInterrupt:
        return _fail("stopped; a training run goes on with `make resume RUN=id`", 130)
    except BrokenPipeError:  # somebody's `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _met_before(error: InfraError) -> str:
    """What a part that was closed last failed with stands before what went wrong first: the first is told too."""
    first = error.__context__
    return f"\n  before it: {first}" if isinstance(first, UserError | InfraError) else ""


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("rft", description="Train, serve and audit tool-using agents by reinforcement fine-tuning.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _with_recipe(commands.add_parser("train", help="prior check, training, evaluation, report"), _train)
    _with_recipe(commands.add_parser("prior", help="can the base model sometimes do it?"), _prior)
    resumed = commands.add_parser("resume", help="go on with a run that was stopped")
    _with_run(resumed, _resume)
    resumed.add_argument("words", nargs="*", metavar="KEY=VALUE", help="settings to go on with instead")
    _with_run(commands.add_parser("evaluate", help="base against tuned again, with fresh rollouts"), _evaluate)
    planned = commands.add_parser("plan", help="memory, time and cost: what fits, and what would")
    planned.add_argument("words", nargs="*", metavar="[RECIPE] KEY=VALUE", help="without a recipe: all of them in one table")
    planned.set_defaults(run=_plan)
    data = commands.add_parser("data", help="remake the generated data set and its corpus")
    data.add_argument("--keep-rows", action="store_true", help="only the corpus; rows that are there stay")
    data.set_defaults(run=_data)
    validate = commands.add_parser("validate", help="every fault in the data at once")
    validate.add_argument("--file", action="append", default=[], help="check these JSONL files instead of the recipe's")
    _with_recipe(validate, _validate)
    serve = commands.add_parser("serve", help="tools and grader over HTTP")
    serve.add_argument("--settings", help="a run's settings.yaml instead of a recipe")
    serve.add_argument("--port", type=int)
    _with_recipe(serve, _serve)
    smoke = commands.add_parser("smoke", help="call each tool of a running server once")
    smoke.add_argument("--url", help="default: the recipe's host and port")
    _with_recipe(smoke, _smoke)
    grade = commands.add_parser("grade", help="try a grader on cases")
    grade.add_argument("--grader", required=True)
    grade.add_argument("--cases", required=True, metavar="FILE.jsonl")
    grade.set_defaults(run=_grade)
    _add_cards(commands.add_parser("card", help="job cards"))
    _with_recipe(commands.add_parser("migrate", help="bring the store's tables up to date"), _migrate)
    tiny = commands.add_parser("tiny-base", help="remake the tiny base model")
    tiny.add_argument("--out", default="models/research-tiny")
    tiny.add_argument("--seed", type=int, default=7, help="7 made the shipped one")
    tiny.set_defaults(run=_tiny_base)
    return top


def _with_recipe(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    command.add_argument("words", nargs="*", metavar="[RECIPE] KEY=VALUE", help=f"default recipe: {DEFAULT_RECIPE}")
    command.set_defaults(run=run)


def _with_run(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    command.add_argument("run_id", metavar="RUN", help="the name of the run's folder")
    command.add_argument("--runs", default="runs", help="the folder that holds the runs")
    command.set_defaults(run=run)


def _add_cards(card: argparse.ArgumentParser) -> None:
    actions = card.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="one card as a story")
    show.add_argument("id", help="a rollout's id, or its first digits")
    show.set_defaults(run=_card_show)
    listed = actions.add_parser("list", help="the newest cards")
    listed.add_argument("--run", dest="run_id", metavar="RUN")
    listed.add_argument("--kind", choices=["prior", "train", "eval", "shadow", "production"])
    listed.add_argument("--limit", type=int, default=20)
    listed.set_defaults(run=_card_list)
    restore = actions.add_parser("restore", help="store the cards of a rescue file")
    restore.add_argument("file")
    restore.set_defaults(run=_card_restore)
    for action in (show, listed, restore):
        action.add_argument("--store", default=DEFAULT_STORE, metavar="URL", help=f"default: {DEFAULT_STORE}")


def _recipe(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """The words after a command: a recipe first, if the first is no override."""
    recipe, overrides = _named(arguments)
    return recipe or DEFAULT_RECIPE, overrides


def _named(arguments: argparse.Namespace) -> tuple[str | None, list[str]]:
    words: list[str] = arguments.words
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return None, words


def _run_folder(arguments: argparse.Namespace) -> RunFolder:
    from agent_rft.commands.run_folder import RunFolder

    return RunFolder(Path(arguments.runs) / arguments.run_id)


def _train(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.train import train

    train(*_recipe(arguments))


def _prior(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.train import prior

    prior(*_recipe(arguments))


def _resume(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.train import resume

    resume(_run_folder(arguments), arguments.words)


def _evaluate(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.train import evaluate_again

    evaluate_again(_run_folder(arguments))


def _plan(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.plan import show_plan

    show_plan(*_named(arguments))


def _data(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.data import make_data

    make_data(arguments.keep_rows)


def _validate(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.data import validate

    validate(*_recipe(arguments), arguments.file)


def _serve(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.serve import serve_forever, settings_of

    serve_forever(settings_of(*_recipe(arguments), arguments.settings, arguments.port))


def _smoke(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.serve import smoke_test

    smoke_test(*_recipe(arguments), arguments.url)


def _grade(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.data import grade

    grade(arguments.grader, arguments.cases)


def _card_show(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import show

    show(arguments.store, arguments.id)


def _card_list(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import list_cards

    list_cards(arguments.store, arguments.limit, arguments.run_id, arguments.kind)


def _card_restore(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import restore

    restore(arguments.store, arguments.file)


def _migrate(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import migrate_store

    migrate_store(*_recipe(arguments))


def _tiny_base(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.tiny_base import make

    make(arguments.out, arguments.seed)
