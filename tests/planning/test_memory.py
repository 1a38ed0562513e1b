"""The arithmetic of memory against figures worked out by hand, and against what PyTorch itself keeps."""

import re
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planned_setups import ALL_LINEAR, LLAMA, item, setup
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

import agent_rft
from agent_rft.contracts.layouts import Cluster, Generation, Parallel, Reference
from agent_rft.contracts.training import Lora
from agent_rft.planning import megatron
from agent_rft.planning.formulas import kv_bytes, layer_bytes, reference_weights
from agent_rft.planning.in_process import KV_GROWTH, VLLM_SHARE, local_budgets
from agent_rft.planning.megatron import megatron_budgets
from agent_rft.planning.plan import plan
from agent_rft.planning.shapes import CATALOGUE, ModelShape
from agent_rft.training.keyvalues import GROWTH
from agent_rft.training.local.vllm_sampler import MEMORY_SHARE

SHAPE = CATALOGUE[LLAMA]


def test_weights_of_70b_over_eight_gpus():
    assert item(plan(setup()), "training", "weights").gb == pytest.approx(70.553706496 * 2 / 8)  # 17.6


def test_adapters_and_their_states_take_16_bytes_each():
    one = plan(setup())
    held = sum(item(one, "training", name).gb for name in ("adapters", "gradients", "optimizer"))
    assert held == pytest.approx(0.351272960 * 16 / 8)  # 0.70


def test_full_fine_tuning_takes_16_bytes_a_weight():
    one = plan(setup(lora=None))
    held = sum(item(one, "training", name).gb for name in ("weights", "gradients", "optimizer"))
    assert held == pytest.approx(70.553706496 * 16 / 8)  # 141.1
    assert not one.fits


def test_an_optimizer_on_the_cpu_moves_twelve_bytes_a_weight_to_the_host():
    one = plan(setup(lora=None, optimizer_on_cpu=True))
    assert sum(item(one, "training", name).gb for name in ("weights", "gradients")) == pytest.approx(35.277, abs=0.001)
    assert item(one, "host", "optimizer").gb == pytest.approx(70.553706496 * 12)  # 847
    assert "optimizer" not in [part.name for part in one.budgets[0].items]


def test_activation_checkpoints_and_logits_of_8192_tokens():
    one = plan(setup())
    assert item(one, "training", "activation checkpoints").gb == pytest.approx(80 * 8192 * 8192 * 2 / 8 / 1e9)  # 1.34
    # of the 14 bytes, 4 are the float32 copy: 8192 x 128256 x 4 / 8 = 0.525 GB
    assert item(one, "training", "logits").gb * 4 / 14 == pytest.approx(0.5253, abs=1e-4)


def test_keys_and_values_of_a_token():
    assert kv_bytes(SHAPE, tensor=8) == 2 * 80 * 1 * 128 * 2 == 40_960
    assert kv_bytes(SHAPE) == 8 * 40_960
    assert kv_bytes(SHAPE, tensor=16) == 40_960, "a head of keys and values is not cut"


def test_vllms_share_less_weights_and_workspace_is_for_keys_and_values():
    keys = item(plan(setup()), "generation", "keys and values")
    assert keys.gb == pytest.approx(0.5 * 80 - 17.638 - 3.0, abs=0.001)
    assert "57 whole rollouts of 128" in keys.how  # 19.36 GB / (8192 x 40960 B = 0.3355 GB) = 57.7


@pytest.mark.parametrize(("weights", "gb"), [("bfloat16", 141.1), ("fp8", 72.7), ("int4", 39.8)])
def test_the_reference_on_a_gpu_of_its_own(weights, gb: float):
    # layers' matrices 68.451B at 2, 1 or 0.51953 bytes; the other 2.103B at 2
    assert reference_weights(SHAPE, weights).gb == pytest.approx(gb, abs=0.05)


def test_an_fp8_reference_fits_80_gb_by_a_hair_and_an_int4_one_well():
    fp8, int4 = (plan(setup(reference=Reference(engine="dedicated_vllm", weights=weights, path="x"))) for weights in ("fp8", "int4"))
    # 72.66 weights + 2.68 keys and values + 0.39 logits + 0.14 a layer at work + 2 assumed = 77.87
    assert fp8.fits and fp8.budget("reference").margin == pytest.approx(2.1, abs=0.05)
    assert "2.1 GB to spare of 80" in fp8.why
    assert int4.fits and int4.budget("reference").margin > 30 and not int4.why


def test_what_vllm_counts_of_the_reference_lies_within_its_share_of_what_the_card_reports(monkeypatch: pytest.MonkeyPatch):
    """80 x 1.06 = 84.8 reported, 95% of it 80.56. 72.66 weights + 2.68 keys and values + 0.14 a layer at work + 2 process = 77.48."""
    assert "77.5 GB of 80.6" in plan(setup()).budget("reference").note
    monkeypatch.setattr(megatron, "REFERENCE_SHARE", 0.9)  # 76.32
    told = plan(setup())
    assert not told.fits
    assert told.why == "reference: vLLM is given 90% of the 84.8 GB that the card reports, 76.3, and needs 77.5 there"
    monkeypatch.setattr(megatron, "REFERENCE_SHARE", 0.914)  # 77.51: the least that does
    assert plan(setup()).fits


def test_what_vllm_does_not_count_has_only_what_it_leaves():
    """5% of 84.8 GB = 4.24, and 8192 tokens x 128256 words x 6 B = 6.30, with 2 of the process, though int4 leaves the half free."""
    greedy = Reference(engine="dedicated_vllm", weights="int4", path="awq", max_batched_tokens=8192)
    told = plan(setup(reference=greedy))
    assert told.budget("reference").margin > 25 and not told.fits
    assert told.why.endswith("which leaves 4.2, and what it does not count needs 8.3")
    assert "reference.max_batched_tokens=512" in told.cure


@pytest.mark.parametrize(("sold", "gib"), [(80, 79.1), (141, 139.7)])
def test_a_card_reports_at_least_what_is_planned_with(sold: float, gib: float):
    """As CUDA tells it of an H100 (the least of several reports) and an H200."""
    assert sold < megatron.REPORTED * sold < gib * 1.024**3


def test_the_references_share_is_what_vllm_is_given():
    """Read, since importing it takes NeMo RL."""
    source = Path(agent_rft.__file__).with_name("training") / "nemo" / "reference.py"
    assert re.findall(r"^MEMORY_SHARE = (.*)$", source.read_text(), re.MULTILINE) == [str(megatron.REFERENCE_SHARE)]
    assert '"gpu_memory_utilization": MEMORY_SHARE,' in source.read_text()


def test_a_dedicated_worker_holds_the_base_whatever_weights_are_named():
    one = plan(setup("Qwen/Qwen2.5-7B-Instruct", reference=Reference(engine="dedicated_worker", weights="int4")))
    assert item(one, "reference", "weights, bfloat16").gb == pytest.approx(7.615616512 * 2)


def test_the_built_in_reference_takes_the_host_two_more_sets_of_weights():
    one = plan(setup(reference=Reference(engine="builtin")))
    named = ("vLLM's weights asleep", "reference", "policy swapped out")
    assert [item(one, "host", name).gb for name in named] == pytest.approx([141.1] * 3, abs=0.05)
    assert one.budget("reference") is None


def test_generation_on_nodes_of_its_own_leaves_no_policy_beside_vllm():
    apart = Generation(tensor=8, colocated=False, nodes=1, gpus_per_node=8, memory_utilization=0.85)
    one = plan(setup(cluster=Cluster(nodes=2, gpus_per_node=8), generation=apart))
    assert one.budget("hand-over") is None and one.budget("generation").total == pytest.approx(0.85 * 80)
    assert "vLLM asleep" not in [part.name for part in one.budget("training").items]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_keeps_what_pytorch_saves_for_its_backward_pass(dtype: torch.dtype):
    shape = ModelShape(layers=1, hidden=256, heads=8, kv_heads=2, head_dim=32, intermediate=1024, vocabulary=100, qkv_bias=True)
    config = Qwen2Config(hidden_size=256, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1024, attn_implementation="sdpa")
    layer, tokens = Qwen2DecoderLayer(config, 0).to(dtype), 128
    hidden = torch.randn(1, tokens, 256, dtype=dtype, requires_grad=True)
    own = {weight.untyped_storage().data_ptr() for weight in layer.parameters()}
    positions = Qwen2RotaryEmbedding(config)(hidden, torch.arange(tokens)[None])
    saved: list[torch.Tensor] = []  # held on to, so that no storage is used twice
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(hidden, position_embeddings=positions)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    kept = sum(size for at, size in storages.items() if at not in own)
    # beside what is counted: the rotary tables, and a number a token for each norm and each head's softmax
    assert layer_bytes(shape, dtype.itemsize, fused=False) == pytest.approx(kept / tokens, rel=0.03)


def test_the_local_engine_keeps_its_cache_while_it_learns():
    model = msgspec.structs.replace(setup().model, path="Qwen/Qwen2.5-7B-Instruct", sampler="batched", lora=Lora(32, 64, ("q_proj",)))
    local = msgspec.structs.replace(setup(tokens=4096), engine="local", shape=CATALOGUE[model.path], model=model)
    training, generation, _ = local_budgets(local)
    # 2 x 28 layers x 4 heads x 128 x 2 B = 57,344 B a token, 128 rollouts x 4096 tokens, a quarter more to grow
    keys = 57_344 * 128 * 4096 * 1.25 / 1e9
    for budget in (training, generation):
        assert next(one.gb for one in budget.items if one.name == "keys and values") == pytest.approx(keys)  # 37.6


def test_what_the_plan_says_of_the_local_engine_is_what_it_does():
    assert (KV_GROWTH, VLLM_SHARE) == (GROWTH, MEMORY_SHARE)


def per_gpu(**changed: object) -> dict[str, float]:
    budgets = megatron_budgets(setup(**changed))  # pyright: ignore[reportArgumentType]
    return {budget.place: budget.total for budget in budgets if budget.place != "host"}


@given(nodes=st.integers(1, 6), more=st.integers(1, 4), tensor=st.sampled_from([1, 2, 4, 8]), adapted=st.booleans())
def test_more_gpus_never_need_more_memory_on_each(nodes: int, more: int, tensor: int, adapted: bool):
    lora = ALL_LINEAR if adapted else None
    few, many = (
        per_gpu(lora=lora, cluster=Cluster(nodes=count, gpus_per_node=8), parallel=Parallel(tensor=tensor))
        for count in (nodes, nodes + more)
    )
    assert all(many[place] <= few[place] + 1e-9 for place in few)


@given(rank=st.sampled_from([1, 8, 32, 128]), model=st.sampled_from(sorted(CATALOGUE)), tensor=st.sampled_from([1, 2, 4, 8]))
def test_training_adapters_never_needs_more_than_training_everything(rank: int, model: str, tensor: int):
    adapters = Lora(rank, rank, ALL_LINEAR.target_modules)
    lora, full = (per_gpu(model=model, lora=lora, parallel=Parallel(tensor=tensor))["training"] for lora in (adapters, None))
    assert lora < full
