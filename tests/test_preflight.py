"""What is looked over before a large run: each check passes where all is well, names the fault and the cure where not, and
everything that is wrong is told at once."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Collection
from pathlib import Path

import msgspec
import pytest

from agent_rft.commands.grading import grader_of
from agent_rft.commands.parts import read_data
from agent_rft.commands.preflight import preflight
from agent_rft.commands.serve import provider_of
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.jobcards import Versions
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.settings import Settings
from agent_rft.training.nemo import find

ROOT = Path(__file__).resolve().parents[1]
TINY, LARGE = "research_tiny_nemo", "research_70b"
TINY_BASE = "models/research-tiny"
CHECKS = (
    "data",
    "grader",
    "tools",
    "base model",
    "layout",
    "memory plan",
    "engine",
    "machines",
    "prior check",
    "checkpoints",
    "card store",
)
Usage = namedtuple("Usage", "total used free")


def faults_of(settings: Settings, but: Collection[str]) -> tuple[Fault, ...]:
    try:
        preflight(settings, but)
    except FaultsFound as found:
        return found.faults
    return ()


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The faults that are found by where they are, and the list that was printed; NeMo RL counts as installed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(find, "why_not", lambda: None)
    monkeypatch.setattr("agent_rft.training.nemo.backend.check_values", lambda job, layout: None)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def look(*overrides: str, recipe: str = TINY, but: Collection[str] = ()) -> tuple[dict[str, Fault], dict[str, str]]:
        settings = settings_for(recipe, [f"run.folder={tmp_path}/runs", f"store.url=sqlite:///{tmp_path}/cards.db", *overrides])
        faults = {fault.where: fault for fault in faults_of(settings, but)}
        lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        return faults, {rest.partition(": ")[0]: f"{verdict}: {rest.partition(': ')[2]}" for verdict, rest in lines}

    return look


def test_where_all_is_well_every_check_says_what_it_saw(look):
    faults, shown = look()
    assert faults == {}
    assert tuple(shown) == CHECKS
    assert all(line.startswith("ok: ") for line in shown.values())
    assert shown["data"] == "ok: 400 training rows, 100 held out"
    assert shown["grader"] == "ok: numeric 1 passes 50 reference answers"
    assert shown["tools"].startswith("ok: search, list, read of our own")
    assert shown["base model"].startswith("ok: models/research-tiny@")
    assert shown["layout"] == "ok: one worker on the CPU"
    assert shown["prior check"] == "ok: is measured first"


# --- data, grader, tools ----------------------------------------------------------------------------------------------


def test_faults_in_the_data_are_all_told_and_what_needs_the_data_is_not_tried(look, tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"id": "a"}\n{"id": \n')
    faults, shown = look(f"task.train={tmp_path}/train.jsonl")
    assert set(faults) == {f"{tmp_path}/train.jsonl:1", f"{tmp_path}/train.jsonl:2"}
    assert shown["data"] == "missing: the data has faults"
    for check in ("grader", "layout"):
        assert shown[check] == "missing: not tried: the data has faults"
    assert shown["memory plan"] == "missing: not tried: the layout has faults"
    assert shown["base model"].startswith("ok")


def test_nobody_is_told_to_measure_a_prior_again_for_a_fault_in_the_data(look):
    faults, shown = look("task.train=none.jsonl", "prior.source=recorded")
    assert set(faults) == {"data"}
    assert shown["prior check"] == "missing: not tried: data or tools have faults"


def test_a_grader_that_fails_the_reference_answer_itself_is_found(look, tmp_path: Path):
    """A row whose answer its own grader does not accept: numbers are what it reads."""
    rows = (ROOT / "data/research/train.jsonl").read_text().splitlines()[:20]
    row = msgspec.json.decode(rows[0])
    rows[0] = msgspec.json.encode(row | {"reference_answer": "no number at all"}).decode()
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    faults, _ = look(f"task.train={tmp_path}/train.jsonl", "grader.pass_at=1.0")
    assert any(row["id"] in fault.what or "reference_answer" in fault.what for fault in faults.values()), faults


def test_a_pass_mark_that_an_empty_answer_reaches_is_no_pass_mark(look):
    faults, _ = look("grader.pass_at=0.0")
    assert faults["grader"].what.startswith("numeric fails the reference answer itself, or passes an empty one, on 50 of 50 rows, train-")
    assert "rft grade" in faults["grader"].cure


def test_a_missing_corpus(look):
    faults, _ = look("tools.corpus=nowhere")
    assert faults["tools"].what == "corpus folder nowhere is missing"


def test_a_tool_server_that_does_not_answer_is_told_once(look):
    """The data's check asks it for names, the tools' own for its version."""
    faults, shown = look("tools.url=http://127.0.0.1:9")
    assert list(faults) == ["data"]
    assert "no tool server answers at http://127.0.0.1:9/health" in faults["data"].what
    assert shown["tools"].startswith("missing: no tool server answers")


# --- base, layout, plan -----------------------------------------------------------------------------------------------


def test_a_base_that_is_not_there_is_told_once_and_what_needs_its_size_is_not_tried(look, tmp_path: Path):
    faults, shown = look(f"model.path={tmp_path}/none")
    assert set(faults) == {"base model"}
    assert faults["base model"].what == f"there is no model folder {tmp_path}/none"
    for check in ("memory plan", "checkpoints"):
        assert shown[check] == "missing: not tried: the base model's size is not known"


def test_tensor_8_on_4_gpus_is_a_fault_of_the_layout_and_not_again_of_the_plan(look, tmp_path: Path):
    faults, shown = look("cluster.gpus_per_node=4", f"model.path={tmp_path}/none", recipe=LARGE)
    assert "tensor 8 x pipeline 1 x context 1 = 8 GPUs a copy, and 4 GPUs train" in faults["backend.nemo.tensor"].what
    assert "divides 4" in faults["backend.nemo.tensor"].cure
    assert shown["layout"] == "missing: this layout does not work"
    assert shown["memory plan"] == "missing: not tried: the layout has faults"
    assert "memory plan" not in faults


def test_a_misspelt_key_of_nemo_rls_is_named_with_the_nearest(look):
    faults, _ = look("backend.nemo.overrides.policy.logprob_chunk_sise=64")
    fault = faults["backend.nemo.overrides.policy.logprob_chunk_sise"]
    assert "no key 'logprob_chunk_sise'" in fault.what
    assert "'logprob_chunk_size'" in fault.cure
    assert look("backend.nemo.overrides.policy.logprob_chunk_size=64")[0] == {}


def test_a_run_that_does_not_fit_is_told_with_what_would(look):
    faults, shown = look("model.lora=null", "algorithm.max_steps=1", recipe=LARGE)
    assert faults["memory plan"].what
    assert faults["memory plan"].cure
    assert shown["memory plan"] == f"missing: {faults['memory plan'].what}"


def test_a_quantised_reference_that_is_not_there_is_found_before_it_is_loaded(look, tmp_path: Path):
    quantised = ("reference.engine=dedicated_vllm", "reference.weights=int4", f"reference.path={tmp_path}/awq")
    faults, _ = look(*quantised, f"model.path={TINY_BASE}")
    assert faults["reference.path"].what == f"there is no model folder {tmp_path}/awq"


# --- engine, machines -------------------------------------------------------------------------------------------------


def test_without_the_engine_it_says_why(look, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(find, "why_not", lambda: UserError("NeMo RL is not installed", find.CURE))
    faults, _ = look()
    assert faults == {"engine": Fault("engine", "NeMo RL is not installed", find.CURE)}


def test_machines_that_are_missing_and_those_that_are_there(look, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    faults, _ = look(recipe=LARGE)
    assert "and this machine has 0 GPUs" in faults["cluster"].what
    assert "reference.resource" in faults
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 9)
    faults, shown = look(recipe=LARGE)
    assert not {"cluster", "reference.resource"} & set(faults)
    assert shown["machines"] == "ok: 1 node(s) of 8 GPUs, reference_gpu beside"


def test_nemo_rl_on_gpus_needs_its_architectures_named(look, monkeypatch: pytest.MonkeyPatch):
    assert "engine" not in look(recipe=LARGE)[0]
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert "TORCH_CUDA_ARCH_LIST is not set" in look(recipe=LARGE)[0]["engine"].what


def test_a_store_that_cannot_be_reached_is_found_before_anything_is_made(look):
    faults, _ = look("store.url=postgresql://nobody@127.0.0.1:9/none")
    assert set(faults) == {"card store"} and "127.0.0.1:9" in faults["card store"].what


def test_checks_that_the_occasion_does_without_are_left_out(look):
    without = ("prior check", "checkpoints")
    assert tuple(look(but=without)[1]) == tuple(check for check in CHECKS if check not in without)


def test_words_of_the_users_are_printed_as_they_are(look, tmp_path: Path):
    """Square brackets and colons mean colours and pictures to the terminal's library."""
    _, shown = look(f"run.folder={tmp_path}/a[b]c[/x]:key:d")
    assert f"in {tmp_path}/a[b]c[/x]:key:d" in shown["checkpoints"]


# --- prior check ------------------------------------------------------------------------------------------------------


def record(folder: Path, verdict: str, **changes: str) -> None:
    """A verdict as `make prior` leaves it, measured on what the recipe names."""
    settings = settings_for(TINY, [])
    grader = grader_of(settings)
    ref = grader.ref
    measured = {
        "code": "any",
        "checkpoint": "models/research-tiny@0123456789ab",
        "dataset": read_data(settings, grader).hash,
        "tool_set": provider_of(settings).version,
        "grader": f"{ref.name}@{ref.version}#{ref.hash}",
    }
    check = PriorCheck(
        verdict=verdict,
        why="20% of rows are solved sometimes",
        cure="take easier rows",
        pass_at=1.0,
        never=8,
        sometimes=2,
        always=0,
        unmeasured=0,
        share_sometimes=0.2,
        mean_reward=0.1,
        mean_tool_calls=2.0,
        infra_failures=0,
        rows=(),
    )
    folder.mkdir(parents=True)
    (folder / "versions.json").write_bytes(msgspec.json.encode(Versions(**(measured | changes))))
    (folder / "prior.json").write_bytes(msgspec.json.encode(check))


RECORDED = "prior.source=recorded"


def test_without_a_verdict_it_names_the_command_that_measures_one(look, tmp_path: Path):
    faults, _ = look(RECORDED)
    assert set(faults) == {"prior check"}
    assert f"no verdict is recorded in {tmp_path}/runs/" in faults["prior check"].what
    assert f"make prior CONF={TINY}" in faults["prior check"].cure


@pytest.mark.parametrize("verdict", ["go", "go with caution"])
def test_a_recorded_verdict_is_found(look, tmp_path: Path, verdict: str):
    record(tmp_path / "runs" / "prior-1", verdict)
    faults, shown = look(RECORDED)
    assert faults == {}
    assert shown["prior check"] == f"ok: {verdict}: 20% of rows are solved sometimes"


@pytest.mark.parametrize(
    "other",
    [{"checkpoint": "models/research-tiny-2@0"}, {"dataset": "other"}, {"tool_set": "other"}, {"grader": "numeric@2#0"}],
    ids=lambda other: next(iter(other)),
)
def test_one_for_something_else_does_not_count(look, tmp_path: Path, other: dict[str, str]):
    record(tmp_path / "runs" / "prior-1", "go", **other)
    assert set(look(RECORDED)[0]) == {"prior check"}


def test_a_no_go_refuses_and_an_override_overrides(look, tmp_path: Path):
    record(tmp_path / "runs" / "prior-1", "no go")
    faults, _ = look(RECORDED)
    assert faults == {"prior check": Fault("prior check", "says no go: 20% of rows are solved sometimes", "take easier rows")}
    faults, shown = look(RECORDED, "prior.override=true")
    assert faults == {}
    assert shown["prior check"] == "ok: overridden"


def test_the_newest_verdict_counts_and_one_that_cannot_be_read_does_not(look, tmp_path: Path):
    for age, verdict in ((300, "no go"), (200, "go")):
        record(tmp_path / "runs" / f"prior-{age}", verdict)
        written = (tmp_path / "runs" / f"prior-{age}" / "prior.json").stat().st_mtime - age
        os.utime(tmp_path / "runs" / f"prior-{age}" / "prior.json", (written, written))
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "prior.json").write_text("{")
    assert look(RECORDED)[0] == {}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_cannot_be_made(look, tmp_path: Path):
    (tmp_path / "file").write_text("")
    faults, _ = look(f"run.folder={tmp_path}/file/runs")
    assert faults["run.folder"].what == f"{tmp_path}/file/runs cannot be made: Not a directory"
    assert "run.folder=FOLDER" in faults["run.folder"].cure


def test_a_run_folder_that_cannot_be_written_to(look, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "cannot be written to" in look()[0]["run.folder"].what


def test_a_disk_without_room_for_the_checkpoints_that_are_kept(look, monkeypatch: pytest.MonkeyPatch):
    """70.55e9 weights, all trained, take 14 bytes each: 988 GB; two are kept and one is being written: 2963 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(4e12, 2e12, 2e12))
    faults, _ = look("model.lora=null", recipe=LARGE)
    assert faults["run.folder"].what.startswith("3 checkpoints take 2963 GB and ")
    assert faults["run.folder"].what.endswith(" has 2000 GB free")
    assert "backend.keep_checkpoints" in faults["run.folder"].cure
    faults, _ = look("model.lora=null", "backend.keep_checkpoints=1", recipe=LARGE)
    assert "run.folder" not in faults, "two take 1976 GB"


# --- as it is run -----------------------------------------------------------------------------------------------------


def test_a_large_run_on_this_machine_ends_with_everything_that_is_missing_and_leaves_nothing(tmp_path: Path):
    overrides = [
        "cluster.gpus_per_node=4",
        "backend.nemo.overrides.policy.megatron_cfg.sequence_paralel=true",
        f"run.folder={tmp_path}/runs",
    ]
    command = [sys.executable, "-m", "agent_rft", "train", LARGE, *overrides]
    hidden = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **hidden}, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: research_70b cannot start:\n")
    for place in (
        "base model: model meta-llama/Llama-3.3-70B-Instruct",
        "backend.nemo.tensor: ",
        "backend.nemo.overrides.policy.megatron_cfg.sequence_paralel: ",
        "cluster: 1 node(s) of 4 GPUs",
        "reference.resource: ",
        "prior check: ",
    ):
        assert f"\n  {place}" in done.stderr, place
    assert "ok      data: 400 training rows" in done.stdout
    assert "nothing was started and nothing was spent" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []
