"""`rft plan` and `make plan`: every recipe is planned, and what the plan tells one to type works."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent_rft.commands.plan import plan_for, shape_of
from agent_rft.compose import recipes, settings_for
from agent_rft.contracts.errors import UserError
from agent_rft.training.nemo.layout import layout_faults

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "training" / "nemo"))

from nemo_jobs import job_and_layout  # noqa: E402


def rft(*words: str, code: int = 0) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "agent_rft", "plan", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("recipe", recipes())
def test_every_shipped_recipe_fits_the_machines_it_names(recipe: str):
    one = plan_for(settings_for(recipe, []))
    assert one.fits, f"{one.why}; {one.cure}"


def test_without_a_recipe_all_are_in_one_table(tmp_path: Path):
    said = rft(f"run.folder={tmp_path}")
    assert all(re.search(rf"^{recipe} ", said, re.MULTILINE) for recipe in recipes())
    assert (tmp_path / "plan" / "all.png").read_bytes().startswith(b"\x89PNG")


def test_one_recipe_in_detail(tmp_path: Path):
    said = rft("research_70b", f"run.folder={tmp_path}")
    for words in ("training: 8 x GPU of 80 GB", "2.1 to spare (tight)", "a step of 128 rollouts", "theirs", "Not counted"):
        assert words in said
    assert (tmp_path / "plan" / "research_70b.png").exists()


def test_full_fine_tuning_of_70b_does_not_fit_and_what_the_plan_says_to_type_does(tmp_path: Path):
    said = rft("research_70b", "model.lora=null", f"run.folder={tmp_path}")
    assert "research_70b does not fit: training needs 148.4 GB of 80" in said
    cures = plan_for(settings_for("research_70b", ["model.lora=null"])).cures
    assert cures
    for change in cures:
        assert change.words in said
        assert plan_for(settings_for("research_70b", ["model.lora=null", *change.settings])).fits, change.words


@pytest.mark.parametrize(
    ("recipe", "override"),
    [
        ("research_70b", "reference.gpu_memory_gb=60"),
        ("research_70b", "reference.max_batched_tokens=8192"),
        ("research_70b", "reference.weights=int4"),
        ("research_70b", "model=qwen2_5_72b reference.weights=fp8 reference.path=null"),
        ("research_14b", "backend.nemo.generation.memory_utilization=0.65"),
        ("research_70b", "cluster=h100_x4"),
        ("research_70b", "reference=dedicated_worker"),
        ("research_70b_2node", "model.lora=null"),
        ("research_32b", "model.lora=null"),
        ("research_7b", "model.lora=null"),
        ("research_7b", "task.limits.max_trajectory_tokens=16384"),
        ("research_7b_nemo", "backend.nemo.generation.memory_utilization=0.9"),
        ("research_tiny_nemo", "cluster.host_memory_gb=2"),
    ],
)
def test_every_cure_can_be_typed_and_fits(recipe: str, override: str):
    told = plan_for(settings_for(recipe, override.split()))
    assert not told.fits and told.cures
    for change in told.cures:
        again = plan_for(settings_for(recipe, [*override.split(), *change.settings]))
        assert again.fits, f"{change.words}: {again.why}"


@pytest.mark.parametrize("engine", ["adapter_off", "builtin"])
def test_qwen_takes_another_reference_than_the_one_that_its_recipe_names(engine: str):
    one = plan_for(settings_for("research_70b", ["model=qwen2_5_72b", f"reference={engine}"]))
    assert one.fits and one.budget("reference") is None


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["cluster.gpus_per_node=3", "backend.nemo.tensor=3", "backend.nemo.generation.tensor=3"],
        ["backend.nemo.generation.memory_utilization=0.65"],
        ["backend.nemo.micro_batch=48"],
        ["model.dtype=float32"],
        ["model.lora.target_modules=[q_proj, o_proj]"],
        ["cluster.gpus_per_node=0"],
        ["backend.nemo.generation.colocated=false"],
        ["reference=dedicated_vllm", "reference.weights=int4"],
        ["reference=dedicated_vllm", "algorithm.temperature=0.7"],
        ["reference=dedicated_vllm", "algorithm.kl_coef=0"],
        ["backend=nemo_cpu"],
    ],
    ids=" ".join,
)
def test_the_plan_refuses_what_the_engine_refuses_and_nothing_else(overrides: list[str]):
    job, layout = job_and_layout("research_14b", *overrides)
    one = plan_for(settings_for("research_14b", overrides))
    assert list(one.faults) == layout_faults(job, layout)
    assert bool(one.faults) == bool(overrides)
    assert all(fault.what in one.why for fault in one.faults) and one.fits == (not overrides)


def test_what_no_machine_mends_has_the_cure_of_its_fault():
    told = plan_for(settings_for("research_14b", ["model.dtype=float32"]))
    assert (told.cures, told.cure) == ((), "model.dtype: bfloat16")


def test_an_int4_reference_without_a_checkpoint_is_told_to_name_one():
    told = plan_for(settings_for("research_70b", ["reference.weights=int4"]))
    assert "reference.engine=dedicated_vllm reference.weights=int4 reference.path=CHECKPOINT" in told.cure


def test_an_unknown_model_is_one_clear_error():
    said = rft("research_70b", "model.path=nobody/nothing", code=2)
    assert said.startswith("error: the shape of model nobody/nothing is not known")
    assert "cure: name a folder with config.json" in said


def test_a_model_folder_is_read(tmp_path: Path):
    config = json.loads((ROOT / "models" / "research-tiny" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    assert shape_of(str(tmp_path)).layers == 5
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        shape_of(str(tmp_path))


def made(*words: str) -> str:
    """The command that make would run."""
    command = ["make", "--dry-run", "plan", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return " ".join(next(line for line in done.stdout.splitlines() if "rft plan" in line).split())


def test_make_plan_names_a_recipe_only_where_one_was_named():
    assert made() == ".venv/bin/rft plan"
    assert made("CONF=research_tiny") == ".venv/bin/rft plan research_tiny"
    assert made("CONF=research_70b", "ARGS=model.lora=null") == ".venv/bin/rft plan research_70b model.lora=null"
