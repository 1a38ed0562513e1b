"""NeMo RL swallows a misspelt key; we do not. The list of its keys is data, made again from its source at will."""

import subprocess
import sys
from pathlib import Path

import pytest
from nemo_jobs import NEMO_RECIPES, job_and_layout

from agent_rft.contracts.errors import FaultsFound
from agent_rft.training.nemo.backend import check_translation, check_values
from agent_rft.training.nemo.config_tree import leaves, put, unknown_keys
from agent_rft.training.nemo.decided import DECIDED
from agent_rft.training.nemo.find import VERSION
from agent_rft.training.nemo.keys import FILE, known_keys
from agent_rft.training.nemo.recipe import nemo_config

ROOT = Path(__file__).resolve().parents[3]
OVERRIDE = "backend.nemo.overrides"


def misspelt(*overrides: str) -> list[str]:
    job, layout = job_and_layout("research_14b", *overrides)
    return [str(fault) for fault in unknown_keys(nemo_config(job, layout, [7], 10), known_keys(), layout.overrides)]


@pytest.mark.parametrize("recipe", NEMO_RECIPES)
def test_each_shipped_recipe_translates_into_known_keys_alone(recipe: str):
    job, layout = job_and_layout(recipe)
    assert unknown_keys(nemo_config(job, layout, [7], 10), known_keys(), layout.overrides) == []


def test_a_misspelt_override_is_named_as_the_user_wrote_it():
    found = misspelt(f"{OVERRIDE}.policy.megatron_cfg.tensor_paralel_size=4")
    assert found == [
        f"{OVERRIDE}.policy.megatron_cfg.tensor_paralel_size: NeMo RL's policy.megatron_cfg has no key 'tensor_paralel_size' "
        "(did you mean 'tensor_model_parallel_size'?)"
    ]


def test_a_misspelt_section_is_found_where_it_is_misspelt():
    assert misspelt(f"{OVERRIDE}.polcy.precision=bfloat16") == [
        f"{OVERRIDE}.polcy.precision: NeMo RL's configuration has no key 'polcy' (did you mean 'policy'?)"
    ]


def test_a_renamed_loss_key_is_refused_although_nemo_rl_would_take_its_default():
    assert "did you mean 'ratio_clip_min'?" in misspelt(f"{OVERRIDE}.loss_fn.ratio_clip_minimum=0.1")[0]


def test_a_key_below_a_value_is_refused():
    assert "policy.precision holds a value, no keys" in misspelt(f"{OVERRIDE}.policy.precision.bits=16")[0]


def test_a_key_that_we_emit_and_the_version_does_not_know_is_named_without_an_override():
    config = {"grpo": {"max_num_steps": 3, "max_steps": 3}}
    found = unknown_keys(config, {"grpo.max_num_steps"}, {})
    assert [(fault.where, fault.cure) for fault in found] == [("grpo.max_steps", "did you mean 'max_num_steps'?")]


@pytest.mark.parametrize(
    "key",
    ["policy.generation.vllm_kwargs.seed", "env.ours.workers", "policy.megatron_cfg.env_vars.NCCL_DEBUG", "grpo.max_num_steps"],
)
def test_known_keys_and_those_of_free_mappings_pass(key: str):
    assert misspelt(f"{OVERRIDE}.{key}=1") == []


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("grpo.num_prompts_per_step=4", "algorithm.batch_size"),
        ("grpo.use_dynamic_sampling=true", "algorithm.*, evaluation.* and seed"),
        ("checkpointing.enabled=false", "backend.checkpoint_every and backend.keep_checkpoints"),
        ("policy.generation.temperature=0.5", "algorithm.temperature"),
        ("policy.megatron_cfg.peft.dim=8", "model.lora.rank"),
        ("policy.tokenizer.name=other", "model.path"),
    ],
)
def test_what_a_setting_of_ours_decides_is_not_overridden(override: str, setting: str):
    """Four prompts a step where the guards, the groups' baselines and the cards count sixteen would train without a word."""
    job, layout = job_and_layout("research_14b", f"{OVERRIDE}.{override}")
    with pytest.raises(FaultsFound) as found:
        check_translation(job, layout)
    assert [str(fault) for fault in found.value.faults] == [
        f"{OVERRIDE}.{override.partition('=')[0]}: is decided by {setting} (set {setting} instead)"
    ]


@pytest.mark.parametrize("override", ["policy.megatron_cfg.empty_unused_memory_level=2", "policy.megatron_cfg.peft.dropout=0.1"])
def test_what_no_setting_of_ours_decides_may_be(override: str):
    check_translation(*job_and_layout("research_14b", f"{OVERRIDE}.{override}"))


def test_every_decided_key_is_one_of_the_versions():
    known = known_keys()
    assert [key for key in DECIDED if not any(one == key or one.startswith(f"{key}.") for one in known)] == []


def test_a_value_where_a_section_stands_is_refused():
    assert misspelt(f"{OVERRIDE}.policy.megatron_cfg=5") == [
        f"{OVERRIDE}.policy.megatron_cfg: is a section of NeMo RL's, and 5 is none "
        f"(name its keys, as in {OVERRIDE}.policy.megatron_cfg.activation_checkpointing=...)"
    ]


@pytest.mark.nemo
@pytest.mark.parametrize("recipe", NEMO_RECIPES)
def test_nemo_rl_takes_the_values_of_each_shipped_recipe(nemo_rl, recipe: str):
    check_values(*job_and_layout(recipe))


@pytest.mark.nemo
def test_a_value_of_the_wrong_kind_is_told_under_its_key_and_once(nemo_rl):
    """The section has two shapes, and pydantic tells what is wrong with each."""
    wrong = [f"{OVERRIDE}.policy.megatron_cfg.empty_unused_memory_level=abc", f"{OVERRIDE}.loss_fn.ratio_clip_max=x"]
    with pytest.raises(FaultsFound) as found:
        check_values(*job_and_layout("research_14b", *wrong))
    assert {fault.where: fault.what for fault in found.value.faults} == {
        f"{OVERRIDE}.policy.megatron_cfg.empty_unused_memory_level": "'abc' does not do",
        f"{OVERRIDE}.loss_fn.ratio_clip_max": "'x' does not do",
    }


def test_dotted_and_nested_overrides_are_the_same():
    tree = {"a": {"b": 1, "c": 2}}
    for key, value in leaves({"a.b": 5, "a": {"d": {"e": 6}}, "f": {}}):
        put(tree, key, value)
    assert tree == {"a": {"b": 5, "c": 2, "d": {"e": 6}}, "f": {}}


def test_the_list_names_its_version_and_is_sorted():
    lines = (ROOT / "agent_rft" / "training" / "nemo" / FILE).read_text().splitlines()
    assert f"NeMo RL v{VERSION}" in lines[0]
    assert lines[1:] == sorted(set(lines[1:]))
    assert set(lines[1:]) == known_keys()


@pytest.mark.nemo
def test_the_list_is_what_the_script_makes_of_the_source(nemo_rl: None, tmp_path: Path):
    import nemo_rl as package

    source = Path(str(package.__file__)).parents[1]
    made = tmp_path / FILE
    subprocess.run([sys.executable, str(ROOT / "scripts" / "pin_nemo_keys.py"), str(source), "--to", str(made)], check=True)
    assert made.read_text() == (ROOT / "agent_rft" / "training" / "nemo" / FILE).read_text()
