"""The product as a newcomer meets it: the README's commands, the shipped model, the real server, the real store. Small numbers."""

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_rft.cli import parser

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "algorithm.batch_size=2 algorithm.group_size=4 algorithm.max_steps=6 algorithm.micro_batch_tokens=4096 evaluation.every=3 "
    "evaluation.samples_per_row=1 prior.prompts=8 prior.rollouts=3 prior.override=true backend.checkpoint_every=2"
).split()
TIMES = ("seconds", "rollout_seconds", "train_seconds")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs and the store go, and a few validation rows, so that a run takes seconds."""
    folder = tmp_path_factory.mktemp("newcomer")
    rows = (ROOT / "data/research/val.jsonl").read_text().splitlines()[:12]
    (folder / "val.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def overrides(place: Path, run_id: str, *more: str) -> list[str]:
    here = [f"run.folder={place}", f"run.id={run_id}", f"store.url=sqlite:///{place}/cards.db", f"task.val={place}/val.jsonl"]
    return [*SMALL, *here, *more]


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    command = [sys.executable, "-m", "agent_rft", *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rft(*words: str, code: int = 0) -> str:
    running = start(*words)
    out, err = running.communicate(timeout=300)
    assert running.returncode == code, out + err
    assert "Traceback" not in out + err
    return out + err


def make(*words: str) -> str:
    """The Makefile's own line, on this interpreter's environment; what is installed already counts as up to date."""
    without_make = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    up_to_date = [flag for stamp in ("local", "test", "data") for flag in ("-o", f".make/{stamp}")]
    done = subprocess.run(
        ["make", "--no-print-directory", *up_to_date, f"VENV={sys.prefix}", *words],
        cwd=ROOT,
        env={**without_make, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines_of(folder: Path) -> list[dict]:
    """Of the rollouts that guards and audits named, how many: their ids are drawn anew."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["audit"] = len(line["audit"])
        line["findings"] = [finding | {"rollouts": len(finding["rollouts"])} for finding in line["findings"]]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def trained(place: Path) -> tuple[Path, str]:
    """`make train`, once for all."""
    printed = make("train", f"ARGS={' '.join(overrides(place, 'first'))}")
    return place / "first", printed


def test_make_train_leaves_everything_it_promises(trained: tuple[Path, str]):
    folder, printed = trained
    for name in ("settings.yaml", "metrics.jsonl", "curves.png", "prior.png", "summary.json", "report.html", "checkpoints"):
        assert (folder / name).exists(), name
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("base_val_reward", "val_reward", "base_tool_calls", "tool_calls", "kl_to_ref", "seconds"):
        assert isinstance(summary[key], float), key
    assert all(summary["versions"][key] for key in ("code", "checkpoint", "dataset", "tool_set", "grader", "seed"))
    assert "val_reward" in printed
    assert "for a reviewer: 5 by audit" in printed
    assert printed.strip().splitlines()[-1].startswith("Next: open ")


def test_every_rollout_that_ran_is_a_card(trained: tuple[Path, str], place: Path):
    folder, _ = trained
    in_training = sum(line["rollouts"] for line in lines_of(folder))
    # prior: 8 prompts x 3; base and tuned: 12 rows each; training: 6 steps of 2 x 4 and validations of 12 rows at steps 0, 3 and 6
    assert in_training == 6 * 8 + 3 * 12
    with sqlite3.connect(place / "cards.db") as store:
        [stored] = store.execute("select count(*) from job_cards where run_id = 'first'").fetchone()
    assert stored == 8 * 3 + 2 * 12 + in_training


def test_one_card_reads_as_a_story(trained: tuple[Path, str], place: Path):
    with sqlite3.connect(place / "cards.db") as store:
        card, prompt_row = store.execute(
            "select rollout_id, row_id from job_cards where run_id = 'first' and kind = 'train' and ending = 'answered' limit 1"
        ).fetchone()
    told = rft("card", "show", card, "--store", f"sqlite:///{place}/cards.db")
    row = next(json.loads(line) for line in (ROOT / "data/research/train.jsonl").read_text().splitlines() if f'"{prompt_row}"' in line)
    flat = " ".join(told.split())
    for words in (
        row["prompt"],
        str(row["reference_answer"]),
        "search",
        "by numeric 1 (",
        "first/step-",
        card,
        "run first (research_tiny)",
        "from checkpoint ",
    ):
        assert words in flat, words


def test_kill_9_in_the_middle_then_resume_goes_on_as_if_nothing_had_happened(trained: tuple[Path, str], place: Path):
    whole, torn = trained[0], place / "torn"
    running = start("train", *overrides(place, "torn"))
    give_up = time.monotonic() + 200
    while not (torn / "metrics.jsonl").exists() or len((torn / "metrics.jsonl").read_text().splitlines()) < 4:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    rft("resume", "torn", "--runs", str(place))
    assert lines_of(torn) == lines_of(whole)
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (whole, torn)]
    for key in ("base_val_reward", "val_reward", "base_tool_calls", "tool_calls", "kl_to_ref"):
        assert figures[0][key] == figures[1][key], key


def test_tools_that_fail_too_often_halt_training_and_the_message_names_tool_rate_and_cure(place: Path):
    flaky = ("tools.faults.failure_rate=0.06", "tools.retries=1")
    said = rft("train", *overrides(place, "flaky", *flaky), code=3)
    assert re.search(r"tool:(search|list|read) failed \d+ of its last \d+ calls \(\d+\.\d%\)", said)
    assert "1.0% is allowed" in said
    assert "make resume RUN=flaky" in said
    assert json.loads((place / "flaky" / "summary.json").read_text())["halted"]


def test_a_halted_run_goes_on_with_what_its_cure_names(place: Path):
    rft("resume", "flaky", "tools.faults.failure_rate=0", "algorithm.max_steps=2", "--runs", str(place))
    assert [line["step"] for line in lines_of(place / "flaky")] == [0, 1, 2]
    assert "failure_rate: 0.06" in (place / "flaky" / "settings-before-1.yaml").read_text()


def test_a_run_that_goes_on_for_longer_is_evaluated_with_the_weights_it_then_has(place: Path):
    rft("resume", "flaky", "algorithm.max_steps=3", "--runs", str(place))
    folder = place / "flaky"
    assert json.loads((folder / "summary.json").read_text())["checkpoint"].endswith("step-000003")
    assert sorted(path.name for path in folder.glob("evaluation/*")) == [
        "base-1.msgpack",
        "tuned-step-000002-1.msgpack",
        "tuned-step-000003-1.msgpack",
    ]


def test_a_polite_stop_loses_no_card(place: Path):
    running = start("train", *overrides(place, "stopped"))
    metrics, give_up = place / "stopped" / "metrics.jsonl", time.monotonic() + 200
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 1:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    running.terminate()
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "make resume" in said
    with sqlite3.connect(place / "cards.db") as store:
        [stored] = store.execute("select count(*) from job_cards where run_id = 'stopped'").fetchone()
    # every rollout whose metrics line is there, the prior's 8 x 3 and the base's 12
    assert stored >= 24 + 12 + sum(line["rollouts"] for line in lines_of(place / "stopped"))


def test_evaluate_draws_afresh_and_trains_no_further(trained: tuple[Path, str], place: Path):
    lines = lines_of(place / "first")
    rft("evaluate", "first", "--runs", str(place))
    assert lines_of(place / "first") == lines
    assert (place / "first" / "evaluation" / "base-2.msgpack").exists()


def test_a_run_goes_on_in_its_own_world_only(trained: tuple[Path, str], place: Path):
    other = ("grader.options.use_row_tolerance=true", "grader.allow_inactive=true")
    said = rft("resume", "first", *other, "--runs", str(place), code=2)
    assert "began in another world: grader was numeric@" in said


def test_tools_that_fail_seldom_let_training_go_on_and_the_rate_is_shown(place: Path):
    seldom = ("tools.faults.failure_rate=0.02", "guards.max_infra_rate=0.04", "tools.retries=1")
    rft("train", *overrides(place, "seldom", *seldom))
    lines = lines_of(place / "seldom")
    assert 0 < max(line["infra_failure_rate"] for line in lines) < 0.1
    assert sum(line["infra_failures"] for line in lines) > 0


def test_a_base_that_always_fails_is_no_go_and_train_refuses_naming_the_override(place: Path, tmp_path: Path):
    untrained = tmp_path / "untrained"
    code = (
        "import sys, torch; from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer; torch.manual_seed(0);"
        "base, out = sys.argv[1:]; AutoTokenizer.from_pretrained(base).save_pretrained(out);"
        "AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(out)"
    )
    subprocess.run([sys.executable, "-c", code, "models/research-tiny", untrained], cwd=ROOT, check=True)
    said = rft("train", *overrides(place, "untrained", f"model.path={untrained}", "prior.override=false"), code=3)
    assert "no go" in said.lower()
    assert "prior.override=true" in said
    assert not (place / "untrained" / "metrics.jsonl").exists()


def test_prior_prints_buckets_verdict_and_plots(place: Path):
    said = make("prior", f"ARGS={' '.join(overrides(place, 'prior'))}") if (ROOT / "models/research-tiny").exists() else ""
    assert re.search(r"sometimes \d+, never \d+, always \d+", said)
    assert (place / "prior" / "prior.png").exists()


def test_a_checkpoint_cut_short_is_named_with_the_cure(trained: tuple[Path, str], place: Path):
    copy = place / "cut"
    shutil.copytree(trained[0], copy)
    weights = copy / "checkpoints" / "step-000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "checkpoint": str(weights.parent)}))
    for command in ("evaluate", "resume"):
        for kept in (copy / "evaluation").glob("tuned*"):
            kept.unlink()
        said = rft(command, "cut", "--runs", str(place), code=2)
        assert f"{weights} is not what was written (cut short or changed)" in said
        assert "step-000004, is whole" in said


def test_serve_and_smoke(place: Path):
    environment = {**os.environ, "TOOL_BEARER": "a-bearer-for-this-test"}
    command = [sys.executable, "-m", "agent_rft", "serve", "--port", "18099"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                smoke = [sys.executable, "-m", "agent_rft", "smoke", "--url", "http://127.0.0.1:18099"]
                done = subprocess.run(smoke, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    break
                time.sleep(0.1)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "FAILED" not in done.stdout
        finally:
            server.terminate()


def test_validate_cards_migrate_and_grade_as_the_readme_says(trained: tuple[Path, str], place: Path):
    assert "no faults" in make("validate")
    assert "newest first" in make("cards", f"ARGS=--store sqlite:///{place}/cards.db")
    assert "revision" in make("migrate", f"ARGS=store.url=sqlite:///{place}/cards.db")
    *graded, told = rft("grade", "--grader", "numeric", "--cases", "data/research/grader_cases.jsonl").splitlines()
    assert [json.loads(line)["reward"] for line in graded] == [1.0, 1.0, 0.5, 0.0, 1.0]
    assert told == "5 of 5 cases as worked out"


# --- the README itself ------------------------------------------------------------------------------------------------


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_is_one_that_exists(command: str):
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        assert words[0] == ".venv/bin/rft"
        parser().parse_args(words[1:])
