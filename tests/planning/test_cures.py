"""A run that does not fit is told the smallest change that makes it fit, and the change truly does."""

import msgspec
import pytest
from planned_setups import setup

from agent_rft.contracts.layouts import Cluster, Generation, Parallel, Reference
from agent_rft.planning.plan import plan
from agent_rft.planning.setup import Setup

FAILING = {
    "trained whole": setup(lora=None),
    "sixteen tensor-parallel GPUs of eight": setup(parallel=Parallel(tensor=16)),
    "on four GPUs": setup(cluster=Cluster(nodes=1, gpus_per_node=4)),
    "a bfloat16 reference on one GPU": setup(reference=Reference(engine="dedicated_worker")),
    "a greedy vLLM": setup(generation=Generation(tensor=8, memory_utilization=0.9)),
    "a vLLM without room": setup(generation=Generation(tensor=8, memory_utilization=0.25)),
    "nothing recomputed": setup(activation_checkpointing=False, micro_batch=4),
    "a small host": setup(reference=Reference(engine="builtin"), cluster=Cluster(gpus_per_node=8, host_memory_gb=400)),
    "whole, without adapters to switch off": setup(lora=None, reference=Reference(engine="adapter_off")),
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING.keys())
def test_every_cure_makes_it_fit(failing: Setup):
    told = plan(failing)
    assert not told.fits and told.why and told.cures
    for change in told.cures:
        assert plan(change.setup).fits, change.words
        assert change.setup != failing


def test_full_fine_tuning_of_70b_on_one_node():
    told = plan(FAILING["trained whole"])
    # 35.3 weights and gradients + 105.8 optimizer + 1.34 + 0.56 + 1.84 activations + 3.5 processes
    assert told.why == "training needs 148.4 GB of 80, 105.8 of them optimizer"
    assert told.cure == "backend.nemo.optimizer_on_cpu=true, or model.lora.rank=32, or cluster.nodes=4"


def test_a_greedy_vllm_is_told_the_nearest_share_that_fits():
    # 80 - 17.64 frozen base - 2 process leaves 60.4 GB, and beside a policy 0.6 is the most that the engine lets vLLM have
    assert plan(FAILING["a greedy vLLM"]).cures[0].settings == ("backend.nemo.generation.memory_utilization=0.6",)


def test_two_changes_where_one_is_not_enough():
    told = plan(setup(lora=None, generation=Generation(tensor=8, memory_utilization=0.98)))
    assert all(len(change.settings) >= 2 for change in told.cures)
    assert plan(told.cures[0].setup).fits


def test_what_nothing_cures_says_so():
    told = plan(setup(tokens=50_000_000))
    assert not told.fits and "smaller model" in told.cure


def test_what_fits_has_no_cure():
    assert plan(setup()).cure == ""


def test_a_local_run_is_told_its_own_settings():
    model = msgspec.structs.replace(setup().model, sampler="batched")
    local = msgspec.structs.replace(setup("Qwen/Qwen2.5-7B-Instruct", tokens=8192), engine="local", model=model)
    told = plan(local)
    assert not told.fits
    assert any("backend.rollouts_in_flight=" in setting for change in told.cures for setting in change.settings)
