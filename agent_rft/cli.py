"""The `rft` command. Each subcommand is a function of agent_rft.commands, imported when it is asked for."""

from __future__ import annotations

import argparse
import errno
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.jobcards import DEFAULT_STORE

if TYPE_CHECKING:
    from agent_rft.commands.run_folder import RunFolder

DEFAULT_RECIPE = "research_tiny"
MOST_LISTED = 10_000
"""Cards on one page."""


def main(argv: list[str] | None = None) -> int:
    # Before torch is loaded: OpenMP threads that spin while idle starve everything else on a small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What the model libraries say about their own work is noise between our lines; their failures reach us as exceptions.
    for quiet in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(quiet, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # A supervisor's stop is a clean stop: what is under way is put down as it is for Ctrl-C, job cards to the store included.
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    sys.unraisablehook = _ask_again
    arguments = _parsed(argv)
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except InfraError as error:
        return _fail(f"infrastructure: {error}" + _met_before(error), 4)
    except KeyboardInterrupt as stop:
        goes_on = stop.args[0] if stop.args else getattr(arguments, "goes_on", "a training run goes on with `make resume RUN=id`")
        return _fail(f"stopped; {goes_on}", 130)
    except BrokenPipeError:  # somebody's `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" for {error.filename}" if error.filename else ""
            cure = "make room; a training run then goes on with `make resume RUN=id`, any other command by the same words"
            return _fail(f"infrastructure: there is no room on the disk{where}\n  cure: {cure}", 4)
        if not _is_of_the_store(error):
            raise
        return _fail(
            f"infrastructure: the job-card store: {error.__cause__ or error}\n  is its server up, and room on its disk? then again", 4
        )
    return 0


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    """argparse takes the words of a command from one place alone; settings may stand before its options and after them."""
    every = parser()
    arguments, left = every.parse_known_args(argv)
    takes_settings = isinstance(getattr(arguments, "words", None), list)
    if left and not (takes_settings and all("=" in word and not word.startswith("-") for word in left)):
        every.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.words = [*arguments.words, *left]
    return arguments


def _as_ctrl_c(_: int, frame: FrameType | None) -> None:
    """Asks what is asked at Ctrl-C now, an event loop's own way to stop included. Not by a SIGINT: who was started in the background
    by a shell without job control is deaf to that one."""
    at_ctrl_c = signal.getsignal(signal.SIGINT)
    (at_ctrl_c if callable(at_ctrl_c) else signal.default_int_handler)(signal.SIGINT, frame)


def _ask_again(lost: sys.UnraisableHookArgs) -> None:
    """A stop that falls into a finalizer is dropped by Python with a line on standard error: the end of an event loop is full of them."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, signal.SIGTERM]).start()
    else:
        sys.__unraisablehook__(lost)


def _is_of_the_store(error: Exception) -> bool:
    """Gone, full, locked. By name: SQLAlchemy is not loaded for commands that need no store."""
    kind = type(error)
    return kind.__module__ == "sqlalchemy.exc" and kind.__name__ in ("OperationalError", "InterfaceError", "InternalError", "TimeoutError")


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
    _add_suite(commands.add_parser("suite", help="base, tuned and other models side by side on the held-out rows"))
    told = commands.add_parser("report", help="a run as one page; several: beside each other as well")
    told.add_argument("run_ids", nargs="+", metavar="RUN", help="its name, or its folder")
    told.add_argument("--runs", default="runs", help="the folder that holds the runs")
    told.set_defaults(run=_report)
    planned = commands.add_parser("plan", help="memory, time and cost: what fits, and what would")
    planned.add_argument("words", nargs="*", metavar="[RECIPE] KEY=VALUE", help="without a recipe: all of them in one table")
    planned.set_defaults(run=_plan)
    _add_data(commands.add_parser("data", help="make, look at and change data sets; alone it remakes the generated one"))
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
    grade.add_argument("--grader", required=True, metavar="NAME|NAME@VERSION|FILE.json")
    grade.add_argument("--cases", required=True, metavar="FILE.jsonl")
    _with_recipe(grade, _grade)
    _add_graders(commands.add_parser("grader", help="register, check, approve and activate versions of graders"))
    _add_regrade(commands.add_parser("regrade", help="stored job cards under a grader version, without running a model"))
    _add_label(commands.add_parser("label", help="score rollouts of a run by hand, blind; then see who agrees"))
    _add_judge(commands.add_parser("judge", help="a judge that answers by rules from a file, to try graders with"))
    _add_model_server(commands.add_parser("model-server", help="a checkpoint behind OpenAI's chat API, on this machine"))
    _add_inspecting(commands.add_parser)
    _add_cards(commands.add_parser("card", help="job cards"))
    _add_ledger(commands.add_parser("ledger", help="whether the store is as it was recorded; signed roots; evidence"))
    _add_keeping(commands.add_parser)
    _add_people(commands.add_parser)
    _add_reviewing(commands.add_parser)
    _add_releasing(commands.add_parser)
    _with_recipe(commands.add_parser("migrate", help="bring the store's tables up to date"), _migrate)
    _add_tiny_base(commands.add_parser("tiny-base", help="remake the tiny base model, or make one of your own examples"))
    return top


def _add_tiny_base(tiny: argparse.ArgumentParser) -> None:
    tiny.add_argument("--out", default="models/research-tiny")
    of = "make one for a task of your own instead, of whole conversations in OpenAI's chat shape"
    tiny.add_argument("--examples", metavar="FILE.jsonl", help=of)
    tiny.add_argument("--steps", type=_at_least_one, default=100, help="of the practice on --examples; default: 100")
    tiny.add_argument("--seed", type=int, default=7, help="7 made the shipped one")
    tiny.set_defaults(run=_tiny_base, goes_on="nothing is kept of it: the same command begins anew")


def _add_suite(suite: argparse.ArgumentParser) -> None:
    of = "base, RUN, RUN/step-000040, a model's folder, or http://HOST/v1#MODEL (its key: MODEL_API_KEY); the first is compared with"
    suite.add_argument("--of", action="append", default=[], metavar="MODEL", help=of)
    suite.add_argument("-k", "--tries", type=_at_least_one, help="at each row; default: evaluation.samples_per_row")
    suite.add_argument("--in-flight", type=_at_least_one, help="rollouts at once; default: 512 of an endpoint, else the recipe's")
    suite.set_defaults(goes_on="what was run is kept: the same command runs the rest")
    _with_recipe(suite, _suite)


def _add_model_server(server: argparse.ArgumentParser) -> None:
    server.add_argument("--checkpoint", required=True, metavar="FOLDER|ID", help="models/research-tiny, runs/NAME/checkpoints/step-000060")
    server.add_argument("--name", help="what clients name as the model; default: the weights' name on job cards")
    server.add_argument("--port", type=int, default=8700)
    server.add_argument("--temperature", type=_from_to(0, 2), default=1.0, help="where a request names none; default: 1")
    server.add_argument("--device", default="cpu", help="cpu or cuda")
    server.add_argument("--threads", type=int, help="of the CPU; default: one a core")
    server.add_argument("--seed", type=int, help="makes turns that name no seed, and the faults, come again the same")
    faults = server.add_argument_group("faults, to try a release with")
    faults.add_argument("--latency-seconds", type=_from_to(0, 3600), default=0.0, help="added to every answer")
    faults.add_argument("--failure-rate", type=_from_to(0, 1), default=0.0, help="share of requests answered with 500")
    faults.add_argument("--hang-rate", type=_from_to(0, 1), default=0.0, help="share of requests never answered")
    faults.add_argument("--leak-rate", type=_from_to(0, 1), default=0.0, help="share of answers that give away a made-up credential")
    faults.add_argument("--crash-after", type=int, default=0, metavar="REQUESTS", help="after which the process ends as by kill -9")
    server.set_defaults(run=_model_server)


def _add_graders(grader: argparse.ArgumentParser) -> None:
    kinds = grader.add_subparsers(required=True, metavar="WHAT")
    register = kinds.add_parser("register", help="a new version, never changed afterwards")
    register.add_argument("source", metavar="FILE.json|NAME")
    register.add_argument("--by", required=True, metavar="WHO")
    register.add_argument("--as", dest="wanted", metavar="NAME@VERSION", help="default: the next number")
    check = kinds.add_parser("check", help="the reports that it needs: cases, regrade and adversarial, agreement with people")
    check.add_argument("name", metavar="NAME@VERSION")
    check.add_argument("--cases", metavar="FILE.jsonl")
    check.add_argument("--run", dest="run_id", metavar="RUN", help="whose rollouts are graded again")
    check.add_argument("--labels", action="store_true", help="people's labels of that run must be there")
    check.add_argument("--rows", action="append", default=[], metavar="FILE.jsonl")
    right = check.add_mutually_exclusive_group()
    right.add_argument("--reference", metavar="KEY", help="the rows' key that holds the right answer, where the grader's JSON does not say")
    right.add_argument("--no-reference", action="store_true", help="the rows have no right answer")
    approve = kinds.add_parser("approve", help="by another person than the one who registered it")
    activate = kinds.add_parser("activate", help="from now on it trains and gates")
    for one in (approve, activate):
        one.add_argument("name", metavar="NAME@VERSION")
        one.add_argument("--by", required=True, metavar="WHO")
    listed = kinds.add_parser("list", help="every version and where it stands")
    for one, run in ((register, _grader_register), (check, _grader_check), (approve, _grader_approve)):
        _with_settings(one, run)
    _with_settings(activate, _grader_activate)
    _with_settings(listed, _grader_list)


def _add_regrade(regrade: argparse.ArgumentParser) -> None:
    regrade.add_argument("--grader", required=True, metavar="NAME@VERSION")
    regrade.add_argument("--run", dest="run_id", metavar="RUN")
    regrade.add_argument("--card", action="append", default=[], metavar="ID")
    regrade.add_argument("--kind", choices=("train", "eval", "prior", "production"))
    regrade.add_argument("--rows", action="append", default=[], metavar="FILE.jsonl")
    regrade.add_argument("--call-cost", type=float)
    _with_recipe(regrade, _regrade)


def _add_label(label: argparse.ArgumentParser) -> None:
    label.add_argument("--run", dest="run_id", required=True, metavar="RUN")
    label.add_argument("--by", required=True, metavar="NAME")
    label.add_argument("--kind", choices=("train", "eval", "prior", "production"))
    label.add_argument("--count", type=int, default=20, help="how many to show; default: 20")
    _with_recipe(label, _label)


def _add_data(data: argparse.ArgumentParser) -> None:
    data.add_argument("--keep-rows", action="store_true", help="only the corpus; rows that are there stay")
    data.set_defaults(run=_data)
    kinds = data.add_subparsers(metavar="KIND")

    def kind(name: str, run: Callable[[argparse.Namespace], None], help_: str, *, out: bool = True) -> argparse.ArgumentParser:
        made = kinds.add_parser(name, help=help_)
        made.set_defaults(run=run)
        if out:
            made.add_argument("--out", required=True)
        return made

    card = kind("card", _data_card, "the card of files that are there", out=False)
    _with_splits(card)
    card.add_argument("--name", default="", help="default: the folder's")
    card.add_argument("--source", default="", help="where the rows come from, in words")
    _add_check(kind("check", _data_check, "leaks between training and validation, and whether they are alike", out=False))
    split = kind("split", _data_split, "training and validation, stratified, whole groups to one side")
    split.add_argument("file")
    split.add_argument("--val-share", type=float, default=0.2)
    split.add_argument("--seed", type=int, default=42)
    split.add_argument("--group-by", default="", help="a key of the metadata")
    split.add_argument("--name", default="")
    sliced = kind("slice", _data_slice, "rows by metadata")
    sliced.add_argument("file")
    sliced.add_argument("--where", action="append", required=True, metavar="KEY=VALUE")
    kind("export-openai", _data_export, "OpenAI's RFT shape").add_argument("file")
    finqa = kind("finqa", _data_finqa, "FinQA's published JSON as an agentic task")
    _with_splits(finqa)
    finqa.add_argument("--keep-yes-no", action="store_true")
    refresh = kind("refresh", _data_refresh, "a new curriculum from what a model can do")
    refresh.add_argument("folder")
    _with_measurement(refresh)
    _add_curriculum(kind("curriculum", _data_curriculum, "the next run's rows, from a run's last evaluation"))
    cards = kind("from-cards", _data_from_cards, "rows from job cards")
    cards.add_argument("--store", default=DEFAULT_STORE)
    cards.add_argument("--val", help="rows in here stay held out")
    cards.add_argument("--kind", action="append", default=[])
    cards.add_argument("--tool", action="append", default=[])
    cards.add_argument("--least-reward", type=float)
    cards.add_argument("--most-reward", type=float)
    cards.add_argument("--run", dest="run_id", metavar="RUN")
    cards.add_argument("--limit", type=int, default=1000)
    cards.add_argument("--tenant", default="default", help="whose cards")
    made = kind("synthesise", _data_synthesise, "rows from a stronger model, each solved again")
    made.add_argument("--corpus", required=True)
    made.add_argument("--val", help="rows in here stay held out")
    made.add_argument("--url", required=True, metavar="http://HOST:PORT/v1")
    made.add_argument("--model", required=True)
    made.add_argument("--key-variable", default="OPENAI_API_KEY")
    made.add_argument("--grader", default="numeric")
    made.add_argument("--count", type=int, default=50)
    made.add_argument("--solves", type=int, default=3)
    made.add_argument("--threads", type=int, default=8)


def _add_check(check: argparse.ArgumentParser) -> None:
    _with_splits(check, val_needed=True)
    check.add_argument("--service", default="", help="hold both against what it was asked in the last 30 days, too")
    check.add_argument("--store", default=DEFAULT_STORE, metavar="URL", help="that holds its cards")
    check.add_argument("--tenant", default="default")


def _with_splits(command: argparse.ArgumentParser, *, val_needed: bool = False) -> None:
    command.add_argument("--train", required=True)
    command.add_argument("--val", required=val_needed)


def _with_measurement(refresh: argparse.ArgumentParser) -> None:
    measured = refresh.add_mutually_exclusive_group(required=True)
    measured.add_argument("--prior", metavar="runs/ID/prior.json", help="what a prior check on these rows found")
    measured.add_argument("--run", dest="run_id", metavar="RUN", help="what a run on these rows met in training, by its cards")
    refresh.add_argument("--store", default=DEFAULT_STORE, help="that holds the run's cards")
    refresh.add_argument("--tenant", help="whose they are; default: the run's, else default")


def _add_curriculum(curriculum: argparse.ArgumentParser) -> None:
    curriculum.add_argument("run_id", metavar="RUN", help="its name, or its folder")
    curriculum.add_argument("--runs", default="runs", help="the folder that holds the runs")
    curriculum.add_argument("--results", metavar="FILE.msgpack", help="another evaluation's tries, of training rows too")
    curriculum.add_argument("--store", help="that holds the run's training cards; default: the run's own")
    curriculum.add_argument("--heaviest", type=float, default=3.0, help="what a row of the weakest slice counts at most; default: 3")
    curriculum.add_argument("--seed", type=int, default=42)


def _with_recipe(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    command.add_argument("words", nargs="*", metavar="[RECIPE] KEY=VALUE", help=f"default recipe: {DEFAULT_RECIPE}")
    command.set_defaults(run=run)


def _with_settings(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    """For a command with words of its own, beside which argparse would not find the settings."""
    command.add_argument(
        "--set", dest="words", action="append", default=[], metavar="KEY=VALUE", help="store.url=..., grader.judge.url=..."
    )
    command.set_defaults(run=run)


def _with_run(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    command.add_argument("run_id", metavar="RUN", help="its name, or its folder")
    command.add_argument("--runs", default="runs", help="the folder that holds the runs")
    command.set_defaults(run=run)


def _add_cards(card: argparse.ArgumentParser) -> None:
    actions = card.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="one card as a story")
    show.add_argument("id", help="a rollout's id, or its first digits")
    show.set_defaults(run=_card_show)
    listed = actions.add_parser("list", help="the newest cards that a query asks for")
    listed.add_argument("query", nargs="*", metavar="QUERY", help="kind:eval grade<0.5 tool:search after:7d ...; see docs/cards.md")
    listed.add_argument("--run", dest="run_id", metavar="RUN", help="the same as run:RUN")
    listed.add_argument("--kind", help="the same as kind:KIND")
    listed.add_argument("--limit", type=_page_size, default=20, help=f"1 to {MOST_LISTED:,}; default: 20")
    listed.add_argument("--after", metavar="CURSOR", help="the next page, as the page before names it")
    listed.set_defaults(run=_card_list)
    export = actions.add_parser("export", help="every card that a query asks for, in one file")
    export.add_argument("query", nargs="*", metavar="QUERY")
    export.add_argument("--out", required=True, metavar="FILE", help="ends with .jsonl, .csv, .parquet or .otlp")
    export.set_defaults(run=_card_export)
    for asking in (listed, export):
        asking.add_argument("--tenant", help="whose cards and saved views; default: everybody's cards, the views of 'default'")
    restore = actions.add_parser("restore", help="store the cards of a rescue file")
    restore.add_argument("file")
    restore.set_defaults(run=_card_restore)
    origins = actions.add_parser("sources", help="who recorded cards, and what of it never came")
    origins.add_argument("--tenant", default="default")
    origins.add_argument("--all", action="store_true", help="those too that are known to be complete")
    origins.set_defaults(run=_card_sources)
    send = actions.add_parser("send", help="what a run left in its spool, to the card server")
    send.add_argument("folder", metavar="SPOOL", help="the folder that the run's message named")
    send.add_argument("--to", required=True, metavar="URL", help="https://host:port; the key is RFT_KEY in the environment")
    send.set_defaults(run=_card_send)
    for action in (show, listed, export, restore, origins):
        action.add_argument("--store", default=DEFAULT_STORE, metavar="URL", help=f"default: {DEFAULT_STORE}")


def _add_inspecting(add: Callable[..., argparse.ArgumentParser]) -> None:
    inspect = add("inspect", help="the rollouts of a run that tell the most, as stories")
    _with_run(inspect, _inspect)
    inspect.add_argument("--list", dest="which", choices=("worst", "suspicious", "graders"), help="default: the first few of each")
    inspect.add_argument("--limit", type=_page_size, default=3, help="stories of a list; default: 3")
    inspect.add_argument("--row", metavar="ID", help="this row alone")
    inspect.add_argument("--grader", metavar="NAME@VERSION", help="look with this one; default: the version that scored the run last")
    inspect.add_argument("--holdout", action="append", default=[], metavar="GRADER", help="ask this one too; default: the run's own")
    inspect.add_argument("--store", metavar="URL", help=f"default: the run's, else {DEFAULT_STORE}")
    inspect.add_argument("--tenant", help="default: the run's, else default")
    triage = add("triage", help="whose fault a rollout's score was, and what follows from it")
    triage.add_argument("card", metavar="CARD", help="its id, or the first digits of it")
    triage.add_argument("fault", help="model, grader, dataset or tool")
    triage.add_argument("--note", dest="words", default="", metavar="WORDS", help="of a dataset or a tool: what should be changed")
    _of_tenant(triage, "triage", "inspect")


def _page_size(text: str) -> int:
    number = int(text) if text.isdecimal() and len(text) < 9 else 0
    if not 1 <= number <= MOST_LISTED:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MOST_LISTED:,}; `rft card export` has no limit")
    return number


def _at_least_one(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a whole number from 1 to 1,000,000")
    return int(text)


def _from_to(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least:g} to {most:,}")
        return number

    return read


def _folder(text: str) -> str:
    """One that was mistyped would have keys of its own, and sign what nobody knows."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}; leave it out, and it is the server's store.ledger")
    return text


def _line_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):  # what the store's column holds
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a number of the access log")
    return int(text)


def _add_ledger(ledger: argparse.ArgumentParser) -> None:
    actions = ledger.add_subparsers(required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="every card, grade and label against what was recorded")
    verify.add_argument("--tenant", help="default: every one")
    verify.set_defaults(run=_ledger_verify)
    sign = actions.add_parser("sign", help="a signed root over what was entered since the last, in the store and beside it")
    sign.set_defaults(run=_ledger_sign)
    evidence = actions.add_parser("evidence", help="a case as one signed file that a stand-alone script checks")
    evidence.add_argument("query", nargs="+", metavar="QUERY")
    evidence.add_argument("--case", required=True, metavar="NAME")
    evidence.add_argument("--by", required=True, metavar="WHO")
    evidence.add_argument("--out", required=True, metavar="FILE.zip")
    evidence.add_argument("--tenant", default="default")
    evidence.set_defaults(run=_ledger_evidence)
    keys = actions.add_parser("keys", help="the public keys, for those who verify")
    keys.add_argument("--rotate", action="store_true", help="a new key signs from now on")
    keys.set_defaults(run=_ledger_keys)
    for action in (verify, sign, evidence, keys):
        action.add_argument("--folder", help="of keys.json and roots.jsonl; default: beside the store")
        action.add_argument("--store", default=DEFAULT_STORE, metavar="URL", help=f"default: {DEFAULT_STORE}")


def _add_keeping(add: Callable[..., argparse.ArgumentParser]) -> None:
    _add_holds(add("hold", help="legal holds: cards whose words nothing may take"))
    _add_retention(add("retention", help="how long the words of cards are kept"))
    _add_erase(add("erase", help="take the words of cards out of the store, for good"))


def _add_holds(hold: argparse.ArgumentParser) -> None:
    actions = hold.add_subparsers(required=True, metavar="ACTION")
    place = actions.add_parser("place", help="from now on nothing takes the words of these cards, nor of those to come that are such")
    release = actions.add_parser("release", help="retention and erasures may take them again")
    for action in (place, release):
        action.add_argument("name")
        action.add_argument("--reason", required=True)
        action.add_argument("--by", required=True, metavar="WHO")
    place.add_argument("query", nargs="*", metavar="QUERY", help="nothing: every card")
    listed = actions.add_parser("list", help="the holds that stand")
    listed.add_argument("--all", dest="all_of_them", action="store_true", help="released ones too, and when")
    _of_tenant(place, "place_hold", "keeping")
    _of_tenant(release, "release_hold", "keeping")
    _of_tenant(listed, "list_holds", "keeping")


def _add_retention(retention: argparse.ArgumentParser) -> None:
    actions = retention.add_subparsers(required=True, metavar="ACTION")
    put = actions.add_parser("set", help="for how many days the words of a kind of cards are kept")
    put.add_argument("kind", help="prior, train, eval, shadow, production, or * for those without a policy of their own")
    put.add_argument("days", type=int)
    put.add_argument("--by", required=True, metavar="WHO")
    remove = actions.add_parser("remove", help="a kind's policy")
    remove.add_argument("kind")
    apply = actions.add_parser("apply", help="erase what is older, some cards at a time; stopped, it goes on where it is called again")
    apply.add_argument("--by", required=True, metavar="WHO")
    apply.add_argument("--yes", action="store_true", help="without it, it shows what would go")
    _of_tenant(put, "set_policy", "keeping")
    _of_tenant(remove, "remove_policy", "keeping")
    _of_tenant(apply, "apply_retention", "keeping")
    _of_tenant(actions.add_parser("list", help="the policies"), "list_policies", "keeping")
    _of_tenant(actions.add_parser("plan", help="what would go now, by kind and month, and what is held"), "plan_retention", "keeping")


def _add_erase(erase: argparse.ArgumentParser) -> None:
    erase.add_argument("query", nargs="+", metavar="QUERY", help="row:val-0042, id:0198c2..., a person's words")
    erase.add_argument("--why", required=True, help="stays in the ledger for ever: no words of the person")
    erase.add_argument("--by", required=True, metavar="WHO")
    sure = erase.add_mutually_exclusive_group()
    sure.add_argument("--dry-run", action="store_true", help="what would go, and what is held")
    sure.add_argument("--yes", action="store_true", help="without it, nothing is erased")
    _of_tenant(erase, "erase", "keeping")


def _add_people(add: Callable[..., argparse.ArgumentParser]) -> None:
    _add_users(add("user", help="who may read, review and run a tenant's cards"))
    _add_keys(add("key", help="what programs and browsers sign in with"))
    _add_access(add("access", help="the access log: who read, took out and changed what"))


def _add_users(user: argparse.ArgumentParser) -> None:
    actions = user.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser("add", help="a user and their first key")
    role = actions.add_parser("role", help="another role for a user")
    disable = actions.add_parser("disable", help="none of a user's keys opens anything")
    enable = actions.add_parser("enable", help="a disabled user's keys open what they did")
    for action in (add, role, disable, enable):
        action.add_argument("name")
    add.add_argument("--role", required=True, help="viewer, reviewer, approver, operator or admin")
    role.add_argument("role")
    _of_tenant(add, "add_user")
    _of_tenant(role, "change_role")
    _of_tenant(disable, "disable_user")
    _of_tenant(enable, "enable_user")
    _of_tenant(actions.add_parser("list", help="a tenant's users"), "list_users")


def _add_keys(key: argparse.ArgumentParser) -> None:
    actions = key.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="a key, shown once")
    new.add_argument("name", metavar="USER")
    new.add_argument("--scope", action="append", default=[], help="for a key that may less than its owner's role; a trainer's: ingest")
    new.add_argument("--days", type=_from_to(0, 3650), help="how long it is good; default: until it is revoked")
    listed = actions.add_parser("list", help="keys and sessions, without their secrets")
    listed.add_argument("--user")
    revoke = actions.add_parser("revoke", help="a key that opens nothing from now on")
    revoke.add_argument("key", metavar="ID")
    rotate = actions.add_parser("rotate", help="a new key for an old one")
    rotate.add_argument("key", metavar="ID")
    rotate.add_argument(
        "--overlap", type=_from_to(0, 720), default=24.0, metavar="HOURS", help="how long the old one stays good; default: 24"
    )
    _of_tenant(new, "new_key")
    _of_tenant(listed, "list_keys")
    _of_tenant(revoke, "revoke_key")
    _of_tenant(rotate, "rotate_key")


def _add_access(access: argparse.ArgumentParser) -> None:
    access.add_argument("--card", metavar="ID", help="who read this one")
    access.add_argument("--by", metavar="NAME", help="what they did")
    access.add_argument("--limit", type=_page_size, default=50)
    access.add_argument("--after", type=_line_number, metavar="NUMBER", help="the next page, as the one before names it")
    _of_tenant(access, "access_log")


def _add_reviewing(command: Callable[..., argparse.ArgumentParser]) -> None:
    review = command("review", help="say of a card: accept, reject, coach").add_subparsers(required=True, metavar="ACTION")
    add = review.add_parser("add", help="a verdict, or a note")
    add.add_argument("card", metavar="ID")
    add.add_argument("verdict", help="accept, reject, coach; or note, which settles nothing")
    add.add_argument("--note", default="", metavar="WORDS")
    add.add_argument("--step", type=int, metavar="NUMBER", help="of the card, from 0; default: the whole card")
    add.add_argument("--change", choices=("dataset", "prompt", "tool"), help="the note says what should be changed there")
    seal = review.add_parser("seal", help="nothing more is said of the card, for good")
    seal.add_argument("card", metavar="ID")
    seal.add_argument("--why", default="", metavar="WORDS")
    queue = command("queue", help="cards that wait for a reviewer").add_subparsers(required=True, metavar="ACTION")
    fill = queue.add_parser("fill", help="what came since the last time: a sample by lot, low grades, disagreements")
    fill.add_argument("--share", action="append", default=[], metavar="KIND=SHARE", help="more than production=0.01 eval=0.01 train=0.001")
    fill.add_argument("--at-least", type=int, default=5, metavar="CARDS", help="drawn however little came; default: 5")
    fill.add_argument("--below", type=float, default=0.5, metavar="GRADE", help="a grade that is low; default: 0.5")
    flag = queue.add_parser("flag", help="cards that look suspicious wait for a reviewer")
    flag.add_argument("cards", nargs="+", metavar="ID")
    flag.add_argument("--name", required=True, help="of the guard, or of whatever found them: they wait as flag:NAME")
    flag.add_argument("--why", required=True, metavar="WORDS")
    waiting = queue.add_parser("list", help="the most urgent first")
    waiting.add_argument("--reason", help="audit, low_grade, disagreement or flag:NAME")
    change = command("change", help="what reviewers want changed").add_subparsers(required=True, metavar="ACTION")
    changes = change.add_parser("list", help="open requests")
    changes.add_argument("--target", choices=("dataset", "prompt", "tool"))
    changes.add_argument("--every", action="store_true", help="settled ones too")
    for listed in (waiting, changes):
        listed.add_argument("--limit", type=_page_size, default=50)
    done = change.add_parser("settle", help="done or declined, and how")
    done.add_argument("number", type=int)
    done.add_argument("outcome", choices=("done", "declined"))
    done.add_argument("--how", default="", metavar="WORDS")
    export = change.add_parser("export", help="open requests with the rows that they are about, as JSON lines")
    export.add_argument("--target", choices=("dataset", "prompt", "tool"), default="dataset")
    export.add_argument("--out", required=True, metavar="FILE.jsonl")
    view = command("view", help="queries under names: rft card list @NAME").add_subparsers(required=True, metavar="ACTION")
    save = view.add_parser("save", help="a query under a name, in place of what had it")
    remove = view.add_parser("remove", help="forget a view")
    for one in (save, remove):
        one.add_argument("name")
    save.add_argument("query", nargs="+", metavar="QUERY")
    for action, name in (
        (add, "add_review"), (seal, "seal"), (fill, "fill_queue"), (flag, "flag_cards"), (waiting, "list_queue"), (changes, "list_changes"),
        (done, "settle_change"), (export, "export_changes"), (save, "save_view"), (remove, "remove_view"),
        (view.add_parser("list", help="by name"), "list_views"),
    ):  # fmt: skip
        _of_tenant(action, name, "reviewing")


def _add_judge(judge: argparse.ArgumentParser) -> None:
    judge.add_argument("--script", required=True, metavar="FILE.json")
    judge.add_argument("--port", type=int, default=8601)
    judge.set_defaults(run=_judge)


def _add_releasing(add: Callable[..., argparse.ArgumentParser]) -> None:
    _add_releases(add("release", help="put an agent on trial beside the live one; promote it, roll it back"))
    _add_agents(add("agent", help="what can be released: checkpoint, prompt, tools and limits under one hash"))


def _add_releases(release: argparse.ArgumentParser) -> None:
    actions = release.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, help_: str, *, why: bool = False, id: bool = True) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help_)
        if name in ("status", "history", "first", "shadow", "canary", "approve", "waive"):
            made.add_argument("--ledger", type=_folder, metavar="FOLDER", help="of the keys for waivers; default: store.ledger")
        if id:
            made.add_argument("id", nargs="?", metavar="ID|SERVICE", help="default: the one on trial")
        if why:
            made.add_argument("--why", default="", metavar="WORDS")
        made.add_argument("--conf", metavar="RECIPE", help="the server's")
        made.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as `rft serve` was told")
        _of_tenant(made, name, "release")
        run = made.get_default("run")
        made.set_defaults(store=None, run=lambda arguments: run(_as_served(arguments)))
        return made

    action("status", "every service: stage, share, figures, what it waits for", id=False).set_defaults(tenant=None)
    for name, told in (("create", "an agent on trial against the live one"), ("first", "a service's first agent, straight to all")):
        made = action(name, told, id=False)
        made.add_argument("service")
        made.add_argument("--agent", required=True, metavar="AGENT", help="its id, the first digits of it, or its name")
        made.add_argument("--policy", action="append", default=[], metavar="KEY=VALUE", help="a rule, such as sessions_per_step=50")
        made.set_defaults(served=None)
    action("shadow", "mirror live runs to it now")
    action("canary", "give it its next share of the sessions now").add_argument("--share", type=_from_to(0, 1), help="another share")
    action("promote", "propose that everybody gets it; another person approves", why=True)
    action("approve", "approve what another person proposed", why=True)
    action("hold", "nothing goes forward until it is resumed", why=True)
    action("resume", "let it go on", why=True)
    waive = action("waive", "do without a report; without a good safety report once two people have signed", id=False)
    waive.add_argument("id", metavar="ID|SERVICE")
    waive.add_argument("report", help="evaluation, holdout, safety or distribution")
    waive.add_argument("--why", required=True, metavar="WORDS")
    rollback = action("rollback", "take it back, now", why=True)
    rollback.add_argument("--cut", action="store_true", help="cut off what it is still saying, too")
    rollback.add_argument("--folder", default="runs/gateway/withdrawn", help="what servers here are told through while the store is away")
    action("history", "everything that was decided: by whom or what, on which figures")
    _add_rehearse(actions.add_parser("rehearse", help="releases tried out on this machine: one good candidate, four bad ones"))


def _as_served(arguments: argparse.Namespace) -> argparse.Namespace:
    """The store, the folder of the ledger's keys and the rules of new releases are those of `rft serve` by the same recipe and settings,
    unless they are named. Who rolls back waits for no recipe but one that was named."""
    typed = vars(arguments)
    conf, overrides, url = typed.pop("conf"), typed.pop("overrides"), DEFAULT_STORE
    if conf or overrides or "served" in typed or ("ledger" in typed and typed["ledger"] is None):
        from agent_rft.compose import settings_for

        settings = settings_for(conf or DEFAULT_RECIPE, overrides)
        kept = settings.store
        url = kept.url
        if "served" in typed:
            typed["served"] = settings.release
        if "ledger" in typed:
            typed["ledger"] = typed["ledger"] or kept.ledger
    typed["store"] = typed["store"] or url
    return arguments


def _add_rehearse(rehearse: argparse.ArgumentParser) -> None:
    rehearse.add_argument("names", nargs="*", metavar="SCENARIO", help="good, worse, slow, unsafe, crashing; default: all")
    rehearse.add_argument("--live", default="models/research-tiny", metavar="CHECKPOINT", help="default: models/research-tiny")
    better = rehearse.add_mutually_exclusive_group()
    better.add_argument("--candidate", metavar="CHECKPOINT", help="a better one; default: the same weights at another temperature")
    better.add_argument("--run", dest="run_id", metavar="RUN", help="whose tuned model is the better one")
    rehearse.add_argument("--runs", default="runs", help="the folder that holds the runs")
    rehearse.add_argument("--store", metavar="URL", help="an empty PostgreSQL database; default: SQLite in a folder of its own")
    rehearse.add_argument("--users", type=int, default=8, help="who ask at the same time; default: 8")
    rehearse.add_argument("--seconds", type=float, default=240.0, help="after which a scenario is given up; default: 240")
    rehearse.add_argument("--keep", metavar="FOLDER", help="where store and logs are kept")
    rehearse.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="settings of the server")
    rehearse.set_defaults(run=_rehearse)


def _add_agents(agent: argparse.ArgumentParser) -> None:
    actions = agent.add_subparsers(required=True, metavar="ACTION")
    _of_tenant(actions.add_parser("list", help="every registered agent and its reports"), "list_agents", "release")
    show = actions.add_parser("show", help="what one is made of, back to the run that trained it")
    register = actions.add_parser("register", help="an agent that no run of ours trained")
    register.add_argument("name")
    register.add_argument("--checkpoint", required=True, help="the weights, as cards name them")
    register.add_argument("--tool-set", default="", metavar="VERSION", help="of the tools that it works with")
    register.add_argument("--system-prompt", default="", metavar="WORDS|@FILE")
    register.add_argument("--limit", dest="limits", action="append", default=[], metavar="KEY=VALUE", help="max_turns=8")
    register.add_argument("--temperature", type=_from_to(0, 2), default=1.0)
    report = actions.add_parser("report", help="what was found out about one offline")
    for one in (show, report):
        one.add_argument("agent", help="its id, the first digits of it, or its name")
    report.add_argument("kind", help="evaluation, holdout, safety or distribution")
    report.add_argument("--figure", action="append", default=[], metavar="KEY=VALUE", help="reward=0.71, regressed=0.04")
    report.add_argument("--failed", action="store_true")
    check = actions.add_parser("check", help="run one, and report what the offline gate asks for")
    check.add_argument("agent", help="its id, the first digits of it, or its name")
    check.add_argument("--only", choices=("evaluation", "holdout", "safety", "distribution"), help="default: all of them")
    check.add_argument("--rows", metavar="FILE.jsonl", help="default: the recipe's held-out rows")
    check.add_argument("--tenant", help="default: the recipe's")
    check.add_argument("--store", metavar="URL", help="default: the recipe's")
    _with_recipe(check, _agent_check)
    _of_tenant(show, "show_agent", "release")
    _of_tenant(register, "register_agent", "release")
    _of_tenant(report, "report_agent", "release")


def _of_tenant(action: argparse.ArgumentParser, name: str, module: str = "access") -> None:
    """Runs the function of this name of that module of commands with what was typed."""
    action.add_argument("--tenant", default="default")
    action.add_argument("--store", default=DEFAULT_STORE, metavar="URL", help=f"default: {DEFAULT_STORE}")

    def run(arguments: argparse.Namespace) -> None:
        from importlib import import_module

        typed = {key: value for key, value in vars(arguments).items() if key != "run"}
        getattr(import_module(f"agent_rft.commands.{module}"), name)(**typed)

    action.set_defaults(run=run)


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

    return RunFolder.named(arguments.run_id, Path(arguments.runs))


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


def _report(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.report import report

    report(arguments.run_ids, Path(arguments.runs))


def _plan(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.plan import show_plan

    show_plan(*_named(arguments))


def _data(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.data import make_data

    make_data(arguments.keep_rows)


def _data_card(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import card

    card(arguments.train, arguments.val, arguments.name, arguments.source)


def _data_check(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import check
    from agent_rft.commands.distribution import check_files

    check(arguments.train, arguments.val)
    check_files(arguments.train, arguments.val, arguments.service, arguments.store, arguments.tenant)


def _data_split(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import split

    split(arguments.file, arguments.out, arguments.val_share, arguments.seed, arguments.group_by, arguments.name)


def _data_slice(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import slice_rows

    slice_rows(arguments.file, arguments.where, arguments.out)


def _data_export(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import export_openai

    export_openai(arguments.file, arguments.out)


def _data_finqa(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import finqa

    finqa(arguments.train, arguments.val, arguments.out, arguments.keep_yes_no)


def _data_refresh(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import refresh_by_prior, refresh_by_run

    if arguments.prior:
        refresh_by_prior(arguments.folder, arguments.prior, arguments.out)
    else:
        refresh_by_run(arguments.folder, arguments.run_id, arguments.store, arguments.out, arguments.tenant)


def _data_curriculum(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import curriculum_of

    curriculum_of(_run_folder(arguments), arguments.out, arguments.results, arguments.store, arguments.heaviest, arguments.seed)


def _data_from_cards(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import from_cards
    from agent_rft.datasets.from_cards import Choice

    choice = Choice(
        kinds=tuple(arguments.kind),
        least_reward=arguments.least_reward,
        most_reward=arguments.most_reward,
        tools=tuple(arguments.tool),
    )
    from_cards(arguments.store, arguments.out, arguments.val, choice, arguments.run_id, arguments.limit, tenant=arguments.tenant)


def _data_synthesise(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.datasets import synthesise
    from agent_rft.datasets.synthesis import Plan

    asked = (arguments.url, arguments.model, arguments.key_variable, arguments.grader, arguments.count)
    synthesise(arguments.corpus, arguments.out, arguments.val, *asked, Plan(solves=arguments.solves), arguments.threads)


def _validate(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.data import validate

    validate(*_recipe(arguments), arguments.file)


def _serve(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.serve import serve_forever, settings_of

    serve_forever(settings_of(*_recipe(arguments), arguments.settings, arguments.port))


def _agent_check(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.check import check_agent

    recipe, overrides = _recipe(arguments)
    check_agent(arguments.store, arguments.tenant, arguments.agent, recipe, overrides, arguments.only, arguments.rows)


def _smoke(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.serve import smoke_test

    smoke_test(*_recipe(arguments), arguments.url)


def _grade(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.data import grade

    grade(arguments.grader, arguments.cases, *_recipe(arguments))


def _regrade(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.grading import building
    from agent_rft.commands.regrade import regrade

    cards, kind, rows = arguments.card, arguments.kind, arguments.rows
    with building(*_recipe(arguments)) as (store, build):
        chosen = {"run_id": arguments.run_id, "cards": cards, "kind": kind, "rows": rows, "call_cost": arguments.call_cost}
        regrade(store.url, arguments.grader, build, tenant=store.tenant, **chosen)


def _grader_register(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.graders import register
    from agent_rft.commands.grading import building

    with building(*_recipe(arguments)) as (store, build):
        register(store.url, arguments.source, arguments.by, build, arguments.wanted)


def _grader_check(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.graders import check
    from agent_rft.commands.grading import building

    on = {name: getattr(arguments, name) for name in ("cases", "run_id", "labels", "rows", "reference")}
    with building(*_recipe(arguments)) as (store, build):
        check(store.url, arguments.name, build, tenant=store.tenant, **on, without_reference=arguments.no_reference)


def _grader_approve(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.graders import approve
    from agent_rft.commands.grading import building

    with building(*_recipe(arguments)) as (store, _):
        approve(store.url, arguments.name, arguments.by)


def _grader_activate(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.graders import activate
    from agent_rft.commands.grading import building

    with building(*_recipe(arguments)) as (store, _):
        activate(store.url, arguments.name, arguments.by)


def _grader_list(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.graders import list_graders
    from agent_rft.commands.grading import building

    with building(*_recipe(arguments)) as (store, _):
        list_graders(store.url)


def _label(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.label import label
    from agent_rft.compose import settings_for

    store = settings_for(*_recipe(arguments)).store
    label(store.url, arguments.run_id, arguments.by, arguments.count, arguments.kind, store.tenant)


def _judge(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.serve import serve_judge

    serve_judge(arguments.script, arguments.port)


def _suite(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.suite import run_suite

    run_suite(*_recipe(arguments), arguments.of, arguments.tries, arguments.in_flight)


def _model_server(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.model_server import serve_model
    from serving.model_server import Faults

    faults = Faults(**{name: getattr(arguments, name) for name in Faults.__struct_fields__})
    given = {name: getattr(arguments, name) for name in ("checkpoint", "name", "port", "temperature", "device", "threads", "seed")}
    serve_model(**given, faults=faults)


def _rehearse(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.rehearse import rehearse

    rehearse(**{key: value for key, value in vars(arguments).items() if key != "run"})


def _inspect(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.inspect import Asked, inspect

    asked = Asked(
        which=arguments.which,
        limit=arguments.limit,
        row=arguments.row,
        grader=arguments.grader,
        holdouts=tuple(arguments.holdout),
    )
    inspect(arguments.run_id, arguments.runs, arguments.store, arguments.tenant, asked)


def _card_show(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import show

    show(arguments.store, arguments.id)


def _card_list(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import list_cards

    only = [f'{key}:"{value}"' for key, value in (("run", arguments.run_id), ("kind", arguments.kind)) if value]
    list_cards(arguments.store, " ".join([*arguments.query, *only]), arguments.limit, arguments.after, arguments.tenant)


def _card_export(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import export

    export(arguments.store, " ".join(arguments.query), arguments.out, arguments.tenant)


def _card_sources(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import list_sources

    list_sources(arguments.store, arguments.tenant, arguments.all)


def _card_send(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import send

    send(arguments.to, arguments.folder)


def _card_restore(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import restore

    restore(arguments.store, arguments.file)


def _migrate(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.cards import migrate_store

    migrate_store(*_recipe(arguments))


def _tiny_base(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.tiny_base import make, make_of_examples

    if arguments.examples:
        make_of_examples(arguments.examples, arguments.out, arguments.seed, arguments.steps)
    else:
        make(arguments.out, arguments.seed)


def _ledger_verify(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.ledger import verify

    verify(arguments.store, arguments.folder, arguments.tenant)


def _ledger_sign(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.ledger import sign

    sign(arguments.store, arguments.folder)


def _ledger_evidence(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.ledger import evidence

    question = " ".join(arguments.query)
    evidence(arguments.store, arguments.folder, question, arguments.tenant, arguments.case, arguments.by, arguments.out)


def _ledger_keys(arguments: argparse.Namespace) -> None:
    from agent_rft.commands.ledger import keys

    keys(arguments.store, arguments.folder, arguments.rotate)
