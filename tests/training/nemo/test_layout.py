"""What cannot run is said before a GPU is taken: with the numbers, the settings' own keys and the cure."""

import msgspec
import pytest
from nemo_jobs import NEMO_RECIPES, job_and_layout

from agent_rft.contracts.layouts import Layout, Parallel, Reference
from agent_rft.contracts.rollouts import Limits
from agent_rft.training.nemo.layout import layout_faults, lora_faults, megatron_modules, padded_length, sequence_multiple

SIX = "cluster.gpus_per_node=6"
APART = "backend.nemo.generation.colocated=false"


def faults(recipe: str, *overrides: str, train: int = 400) -> dict[str, str]:
    """By the key each one names; no key twice."""
    found = layout_faults(*job_and_layout(recipe, *overrides, train=train))
    assert len({fault.where for fault in found}) == len(found)
    return {fault.where: str(fault) for fault in found}


@pytest.mark.parametrize("recipe", NEMO_RECIPES)
def test_each_shipped_recipe_fits_its_machines(recipe: str):
    assert faults(recipe) == {}


def test_research_70b_takes_qwen_by_one_override():
    assert faults("research_70b", "model=qwen2_5_72b") == {}


@pytest.mark.parametrize("engine", ["adapter_off", "builtin", "dedicated_worker"])
def test_weights_that_a_model_names_for_vllm_are_nothing_to_another_engine(engine: str):
    """Qwen's recipe names int4 and where it lies; the others have the base itself."""
    qwen = ("research_70b", "model=qwen2_5_72b")
    assert job_and_layout(*qwen)[1].reference == Reference(engine="dedicated_vllm", weights="int4", path="Qwen/Qwen2.5-72B-Instruct-AWQ")
    assert job_and_layout(*qwen, f"reference={engine}")[1].reference == Reference(engine=engine)
    assert faults(*qwen, f"reference={engine}") == {}


def test_tensor_8_on_4_gpus_is_one_error_with_both_numbers_and_the_cure():
    found = faults("research_70b", "cluster=h100_x4", "backend.nemo.generation.tensor=4")
    assert list(found) == ["backend.nemo.tensor"]
    text = found["backend.nemo.tensor"]
    assert "tensor 8 x pipeline 1 x context 1 = 8 GPUs a copy, and 4 GPUs train" in text
    assert "product divides 4, or a cluster with a multiple of 8 GPUs" in text


@pytest.mark.parametrize(
    ("recipe", "overrides", "where", "words"),
    [
        ("research_14b", ["backend.nemo.tensor=3"], "backend.nemo.tensor", "3 GPUs a copy, and 4 GPUs train"),
        # 6 GPUs / 3 = 2 copies: the machines would do, but Qwen 14B has 40 heads, in 48 layers
        ("research_14b", [SIX, "backend.nemo.tensor=3"], "backend.nemo.tensor", "is 3 for the policy, and the model's 40 attention heads"),
        (
            "research_14b",
            [SIX, "algorithm.batch_size=12", "backend.nemo.generation.tensor=3"],
            "backend.nemo.generation.tensor",
            "40 attention heads",
        ),
        ("research_14b", ["cluster.gpus_per_node=10", "backend.nemo.pipeline=5"], "backend.nemo.pipeline", "48 layers do not divide"),
        ("research_14b", ["backend.nemo.generation.tensor=3"], "backend.nemo.generation.tensor", "is 3, and 4 GPUs roll out"),
        # 4 GPUs / tensor 2 = 2 copies x 48 sequences = 96; a step has 16 prompts x 8 = 128 rollouts
        ("research_14b", ["backend.nemo.micro_batch=48"], "backend.nemo.micro_batch", "= 96 do not divide the step's 128 rollouts"),
        ("research_tiny_nemo", ["backend.nemo.micro_batch=7"], "backend.nemo.micro_batch", "= 7 do not divide the step's 64 rollouts"),
        ("research_14b", ["task.limits.max_turn_tokens=4096"], "task.limits.max_turn_tokens", "less than max_trajectory_tokens"),
        ("research_14b", ["cluster.gpus_per_node=0"], "cluster.gpus_per_node", "is 0"),
        ("research_14b", ["backend.nemo.generation.memory_utilization=0.7"], "backend.nemo.generation.memory_utilization", "at most 0.6"),
        ("research_14b", ["model.dtype=float32"], "model.dtype", "bfloat16"),
        ("research_14b", ["model.device=cpu"], "model.device", "backend=nemo_cpu cluster=cpu"),
        ("research_14b", ["model.lora.target_modules=[q_proj, o_proj]"], "model.lora.target_modules", "k_proj, v_proj missing"),
        ("research_14b", ["model.lora=null"], "reference.engine", "no adapter to turn off"),
        ("research_70b", ["reference.weights=int4"], "reference.path", "a checkpoint of their own"),
        ("research_70b", ["algorithm.temperature=0.7"], "algorithm.temperature", "is 0.7: NeMo RL divides the policy's logits by it"),
        ("research_70b", ["algorithm.kl_coef=0"], "reference.engine", "nothing would ask it"),
        ("research_tiny_nemo", ["reference=dedicated_worker", "algorithm.kl_coef=0"], "reference.engine", "nothing would ask it"),
        ("research_tiny_nemo", ["reference=dedicated_vllm"], "reference.engine", "needs a GPU"),
        ("research_tiny_nemo", ["backend.nemo.tensor=2"], "backend.nemo.tensor", "is 2 with workers cpu"),
        ("research_tiny_nemo", ["backend.nemo.context=2"], "backend.nemo.context", "is 2 with workers cpu"),
        ("research_tiny_nemo", ["cluster=h100_x4"], "cluster", "4 GPUs on 1 node(s)"),
        ("research_tiny_nemo", ["model.dtype=bfloat16"], "model.device", "model.dtype=float32"),
        ("research_tiny_nemo", ["backend.nemo.generation.asynchronous=true"], "backend.nemo.generation.asynchronous", "vLLM"),
        ("research_tiny_nemo", [APART], "backend.nemo.generation.colocated", "no GPUs to set apart"),
    ],
)
def test_one_thing_wrong_is_one_fault_under_its_key(recipe: str, overrides: list[str], where: str, words: str):
    found = faults(recipe, *overrides)
    assert list(found) == [where]
    assert words in found[where]


def test_everything_wrong_is_said_at_once():
    found = faults("research_14b", "backend.nemo.tensor=3", "model.dtype=float32", "model.lora=null", train=15)
    assert list(found) == ["model.dtype", "backend.nemo.tensor", "reference.engine", "algorithm.batch_size"]
    assert "there are 15 training rows" in found["algorithm.batch_size"]


def test_one_full_batch_of_rows_is_enough():
    assert faults("research_14b", train=16) == {}


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("research_14b", [], ["gpus_per_node"]),  # one node: how many of its GPUs?
        ("research_14b", ["gpus_per_node=4"], ["gpus_per_node"]),  # all of them: nothing left to train on
        ("research_14b", ["gpus_per_node=2", "nodes=2"], ["nodes"]),
        ("research_14b", ["gpus_per_node=2"], []),
        ("research_14b", ["gpus_per_node=2", "nodes=1"], []),
        ("research_70b_2node", ["nodes=2"], ["nodes"]),
        ("research_70b_2node", ["nodes=null"], ["nodes"]),
        ("research_70b_2node", ["gpus_per_node=4"], ["gpus_per_node"]),  # on several nodes, whole ones
        ("research_70b_2node", ["gpus_per_node=null", "nodes=null"], ["nodes", "gpus_per_node"]),
    ],
)
def test_generation_on_gpus_of_its_own(recipe: str, overrides: list[str], expected: list[str]):
    below = "backend.nemo.generation."
    assert list(faults(recipe, APART, *(below + override for override in overrides))) == [below + key for key in expected]


def test_gpus_set_apart_neither_train_nor_count_as_copies():
    """4 GPUs, 2 of them roll out: one copy at tensor 2, and tensor 4 no longer fits, on either side."""
    two = [APART, "backend.nemo.generation.gpus_per_node=2"]
    _, layout = job_and_layout("research_14b", *two)
    assert (layout.training_gpus, layout.data_parallel) == (2, 1)
    found = faults("research_14b", *two, "backend.nemo.tensor=4", "backend.nemo.generation.tensor=4")
    assert "and 2 GPUs train" in found["backend.nemo.tensor"]
    assert "and 2 GPUs roll out" in found["backend.nemo.generation.tensor"]
    assert faults("research_14b", *two, "backend.nemo.generation.memory_utilization=0.95") == {}
    assert faults("research_14b", *two, "backend.nemo.generation.memory_utilization=0.96")


@pytest.mark.parametrize(
    ("tensor", "context", "multiple", "padded"),
    [(1, 1, 1, 4093), (8, 1, 8, 4096), (3, 1, 3, 4095), (1, 2, 4, 4096), (8, 4, 64, 4096), (2, 8, 32, 4096)],
)
def test_a_trajectory_is_padded_to_even_parts(tensor: int, context: int, multiple: int, padded: int):
    """4093 is prime; 3 x 1365 = 4095; context 4 under tensor 8 cuts into 8 x (2 x 4) = 64 parts, 64 x 64 = 4096."""
    layout = Layout(parallel=Parallel(tensor=tensor, context=context))
    assert sequence_multiple(layout) == multiple
    assert padded_length(Limits(max_trajectory_tokens=4093), layout) == padded


def test_lora_names_become_megatrons_fused_ones():
    assert megatron_modules(["v_proj", "q_proj", "k_proj", "o_proj"]) == ["linear_qkv", "linear_proj"]
    assert megatron_modules(["gate_proj", "up_proj", "down_proj"]) == ["linear_fc1", "linear_fc2"]


def test_lora_names_that_megatron_cannot_follow():
    cures = [str(fault) for fault in lora_faults(["q_proj", "k_proj", "v_proj", "up_proj", "dwn_proj"])]
    assert ["did you mean 'down_proj'?" in cures[0], "gate_proj missing" in cures[1], len(cures)] == [True, True, 2]


def test_a_fault_free_job_stays_so_without_a_reference_to_ask():
    job, layout = job_and_layout("research_14b", "reference=builtin", "algorithm.kl_coef=0")
    assert layout_faults(job, layout) == []
    full = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, lora=None))
    assert layout_faults(full, layout) == []
