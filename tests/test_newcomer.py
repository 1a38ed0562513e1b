"""The product as a newcomer meets it: the README's commands, the shipped model, the real server, the real store. Small numbers."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_rft.cli import parser
from serving.server import free_port

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "models/research-tiny"
SMALL = (
    "algorithm.batch_size=2 algorithm.group_size=4 algorithm.max_steps=6 algorithm.micro_batch_tokens=4096 evaluation.every=3 "
    "evaluation.samples_per_row=1 prior.prompts=8 prior.rollouts=3 prior.override=true backend.checkpoint_every=2"
).split()
TIMES = ("seconds", "rollout_seconds", "train_seconds")
Rft = Callable[..., str]


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


def ended(running: subprocess.Popen[str], code: int = 0) -> str:
    out, err = running.communicate(timeout=300)
    assert running.returncode == code, out + err
    assert "Traceback" not in out + err
    return out + err


UP_TO_DATE = [flag for stamp in ("local", "test", "data") for flag in ("-o", f".make/{stamp}")]
"""What is installed already counts as that."""


def make(*words: str) -> str:
    """The Makefile's own line, on this interpreter's environment."""
    done = subprocess.run(
        ["make", "--no-print-directory", *UP_TO_DATE, f"VENV={sys.prefix}", *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def made_of(*words: str) -> list[str]:
    """The words of the `rft` command that `make` would run."""
    command, *given = shlex.split(make("--dry-run", *words))
    assert command == f"{sys.prefix}/bin/rft"
    return given


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
    assert [line["figures"]["leaked"] for line in lines_of(folder)[:-1]] == [0.0] * 6, "answers are looked at for secrets"
    assert "val_reward" in printed
    assert "for a reviewer: 5 by audit" in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("Next: open ") and f"`make inspect RUN={folder}`" in last


def test_every_rollout_that_ran_is_a_card(trained: tuple[Path, str], place: Path):
    folder, _ = trained
    in_training = sum(line["rollouts"] for line in lines_of(folder))
    # prior: 8 prompts x 3; base and tuned: 12 rows each; training: 6 steps of 2 x 4 and validations of 12 rows at steps 0, 3 and 6
    assert in_training == 6 * 8 + 3 * 12
    with sqlite3.connect(place / "cards.db") as store:
        [stored] = store.execute("select count(*) from job_cards where run_id = 'first'").fetchone()
    assert stored == 8 * 3 + 2 * 12 + in_training


def test_one_card_reads_as_a_story(rft_here: Rft, trained: tuple[Path, str], place: Path):
    with sqlite3.connect(place / "cards.db") as store:
        card, prompt_row = store.execute(
            "select rollout_id, row_id from job_cards where run_id = 'first' and kind = 'train' and ending = 'answered' limit 1"
        ).fetchone()
    told = rft_here("card", "show", card, "--store", f"sqlite:///{place}/cards.db")
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
    ended(start("resume", "torn", "--runs", str(place)))
    assert lines_of(torn) == lines_of(whole)
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (whole, torn)]
    for key in ("base_val_reward", "val_reward", "base_tool_calls", "tool_calls", "kl_to_ref"):
        assert figures[0][key] == figures[1][key], key


def test_tools_that_fail_too_often_halt_training_and_the_message_names_tool_rate_and_cure(rft_here: Rft, place: Path):
    flaky = ("tools.faults.failure_rate=0.06", "tools.retries=1")
    said = rft_here("train", *overrides(place, "flaky", *flaky), code=3)
    assert re.search(r"tool:(search|list|read) failed \d+ of its last \d+ calls \(\d+\.\d%\)", said)
    assert "1.0% is allowed" in said
    assert f"make resume RUN={place}/flaky" in said
    assert json.loads((place / "flaky" / "summary.json").read_text())["halted"]


def test_a_halted_run_goes_on_with_what_its_cure_names(rft_here: Rft, place: Path):
    rft_here("resume", "flaky", "tools.faults.failure_rate=0", "algorithm.max_steps=2", "--runs", str(place))
    lines = lines_of(place / "flaky")
    assert [line["step"] for line in lines if not line["undone"]] == [0, 1, 2]
    [undone] = [line for line in lines if line["undone"]]
    assert undone["findings"][0]["guard"] == "infra", "why it was halted is not forgotten"
    assert f"Stopped at step {undone['step']} by infra" in (place / "flaky" / "report.html").read_text(encoding="utf-8")
    assert "failure_rate: 0.06" in (place / "flaky" / "settings-before-1.yaml").read_text()


def test_a_run_that_goes_on_for_longer_is_evaluated_with_the_weights_it_then_has(rft_here: Rft, place: Path):
    rft_here("resume", "flaky", "algorithm.max_steps=3", "--runs", str(place))
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


def test_evaluate_draws_afresh_and_trains_no_further(rft_here: Rft, trained: tuple[Path, str], place: Path):
    lines = lines_of(place / "first")
    rft_here("evaluate", f"{place}/first")
    assert lines_of(place / "first") == lines
    assert (place / "first" / "evaluation" / "base-2.msgpack").exists()


def test_a_run_goes_on_in_its_own_world_only(rft_here: Rft, trained: tuple[Path, str], place: Path):
    other = ("grader.options.use_row_tolerance=true", "grader.allow_inactive=true")
    said = rft_here("resume", "first", *other, "--runs", str(place), code=2)
    assert "began in another world: grader was numeric@" in said


def test_tools_that_fail_seldom_let_training_go_on_and_the_rate_is_shown(rft_here: Rft, place: Path):
    seldom = ("tools.faults.failure_rate=0.02", "guards.max_infra_rate=0.04", "tools.retries=1")
    rft_here("train", *overrides(place, "seldom", *seldom))
    lines = lines_of(place / "seldom")
    assert 0 < max(line["infra_failure_rate"] for line in lines) < 0.1
    assert sum(line["infra_failures"] for line in lines) > 0


def test_a_base_that_always_fails_is_no_go_and_train_refuses_naming_the_override(rft_here: Rft, place: Path, tmp_path: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    untrained = tmp_path / "untrained"
    torch.manual_seed(0)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(untrained)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE)).save_pretrained(untrained)
    said = rft_here("train", *overrides(place, "untrained", f"model.path={untrained}", "prior.override=false"), code=3)
    assert "no go" in said.lower()
    assert "prior.override=true" in said
    assert not (place / "untrained" / "metrics.jsonl").exists()


def test_prior_prints_buckets_verdict_and_plots(rft_here: Rft, place: Path):
    said = rft_here(*made_of("prior", f"ARGS={' '.join(overrides(place, 'prior'))}"))
    assert re.search(r"sometimes \d+, never \d+, always \d+", said)
    assert (place / "prior" / "prior.png").exists()


def test_a_checkpoint_cut_short_is_named_with_the_cure(rft_here: Rft, trained: tuple[Path, str], place: Path):
    copy = place / "cut"
    shutil.copytree(trained[0], copy)
    weights = copy / "checkpoints" / "step-000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    summary = json.loads((copy / "summary.json").read_text())
    (copy / "summary.json").write_text(json.dumps({**summary, "checkpoint": str(weights.parent)}))
    for command in ("evaluate", "resume"):
        for kept in (copy / "evaluation").glob("tuned*"):
            kept.unlink()
        said = rft_here(command, "cut", "--runs", str(place), code=2)
        assert f"{weights} is not what was written (cut short or changed)" in said
        assert "step-000004, is whole" in said


def listens(port: int) -> bool:
    with socket.socket() as knocking:
        return knocking.connect_ex(("127.0.0.1", port)) == 0


def test_serve_and_smoke(rft_here: Rft, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOL_BEARER", "a-bearer-for-this-test")
    port = free_port()
    with start("serve", "--port", str(port)) as server:
        try:
            give_up = time.monotonic() + 60
            while not listens(port):
                assert server.poll() is None and time.monotonic() < give_up
                time.sleep(0.05)
            assert "FAILED" not in rft_here("smoke", "--url", f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.communicate()


def test_validate_cards_migrate_and_grade_as_the_readme_says(rft_here: Rft, trained: tuple[Path, str], place: Path):
    assert "no faults" in rft_here(*made_of("validate"))
    assert "newest first" in rft_here(*made_of("cards", f"ARGS=--store sqlite:///{place}/cards.db"))
    assert "revision" in rft_here(*made_of("migrate", f"ARGS=store.url=sqlite:///{place}/cards.db"))
    *graded, told = rft_here("grade", "--grader", "numeric", "--cases", "data/research/grader_cases.jsonl").splitlines()
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
        for line in make("--dry-run", *words[1:]).splitlines():
            if line.startswith(f"{sys.prefix}/bin/rft "):
                parser().parse_args(shlex.split(line)[1:])
    else:
        assert words[0] == ".venv/bin/rft"
        parser().parse_args(words[1:])
