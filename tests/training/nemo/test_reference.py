"""References on machines of their own: where they lie, what they say, and what is missing said before anything starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "local")]
import policy_world as here
import small_world as world

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.layouts import Cluster, Layout, Reference
from agent_rft.training.nemo.adapters import adapters_off
from agent_rft.training.nemo.placement import missing_resources

FOLDER = Path(__file__).parent


def plain_logprobs(base: str, batch) -> torch.Tensor:
    """Row by row, unpadded, by the model as Hugging Face loads it."""
    model, told = AutoModelForCausalLM.from_pretrained(base), torch.zeros(batch["input_ids"].shape)
    for row, length in enumerate(batch["input_lengths"].tolist()):
        ids = batch["input_ids"][row, :length]
        with torch.no_grad():
            told[row, 1:length] = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return told


@pytest.mark.nemo
def test_on_eight_and_one_gpus_the_reference_lies_alone_on_its_machine_and_says_what_the_base_says(nemo_rl, tmp_path):
    base = world.save_base(tmp_path)
    command = [sys.executable, str(FOLDER / "placement_child.py"), base]
    child = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400, env=dict(os.environ))
    assert child.returncode == 0, child.stderr[-4000:]
    said = json.loads(child.stdout.strip().splitlines()[-1])
    assert said["reference"] == [said["apart"]] and said["vllm"] == said["apart"]
    assert len(said["policy"]) == 8 and said["apart"] not in said["policy"]
    assert said["complete"] == [] and len(said["lacking"]) == 1 and "apart" in said["lacking"][0]
    assert ["another run holds" in fault for fault in said["taken"]] == [True, True]
    torch.testing.assert_close(torch.tensor(said["scored"]), plain_logprobs(base, here.make_batch(base, rows=3)), rtol=0, atol=1e-5)


# --- vLLM ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "stand_in"))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    yield
    sys.modules.pop("vllm", None)


@pytest.mark.nemo
def test_vllms_scores_are_the_models_aligned_as_nemo_rl_has_them(nemo_rl, stand_in, tmp_path):
    from agent_rft.training.nemo.reference import VllmScorerImpl, aligned, engine_options

    base = world.save_base(tmp_path)
    batch = here.make_batch(base, rows=5)
    scorer = VllmScorerImpl(engine_options(Reference(engine="dedicated_vllm"), base, 40))
    rows = [row[:length] for row, length in zip(batch["input_ids"].tolist(), batch["input_lengths"].tolist(), strict=True)]
    told = aligned(scorer.score(rows), batch["input_ids"].shape[1])
    torch.testing.assert_close(told, plain_logprobs(base, batch), rtol=0, atol=1e-5)


@pytest.mark.nemo
def test_weights_are_quantised_as_they_are_loaded_or_were_before(nemo_rl):
    from agent_rft.training.nemo.reference import engine_options

    fp8 = engine_options(Reference(weights="fp8", max_batched_tokens=256), "base", 100)
    assert (fp8["model"], fp8["quantization"], fp8["max_num_batched_tokens"], fp8["max_model_len"]) == ("base", "fp8", 256, 101)
    int4 = engine_options(Reference(weights="int4", path="base-awq"), "base", 100)
    assert (int4["model"], int4["quantization"]) == ("base-awq", None)
    assert engine_options(Reference(weights="bfloat16"), "base", 100)["quantization"] is None
    with pytest.raises(UserError, match=r"int4.*\n.*reference\.path"):
        engine_options(Reference(weights="int4"), "base", 100)


@pytest.mark.nemo
def test_a_temperature_that_vllm_would_not_apply_is_refused(nemo_rl):
    from agent_rft.training.nemo.reference import VllmReference

    with pytest.raises(UserError, match=r"temperature=0\.6"):
        VllmReference(Reference(engine="dedicated_vllm"), "base", longest=10, temperature=0.6)


@pytest.mark.nemo
def test_a_gpu_that_another_run_holds_is_not_waited_for_without_end(ray_here, monkeypatch):
    """This Ray has none at all: to whoever waits it is the same."""
    from agent_rft.training.nemo import reference

    monkeypatch.setattr(reference, "PLACE_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"no GPU of the machine with the resource reference_gpu was free within 1 s\n.*ray status"):
        reference.VllmReference(Reference(engine="dedicated_vllm"), "base", longest=10, temperature=1.0)


# --- the policy's own kind of worker ---------------------------------------------------------------------------------


@pytest.mark.nemo
def test_a_dedicated_megatron_worker_holds_the_base_whole_on_one_gpu(nemo_rl):
    from agent_rft.training.nemo.reference import frozen_config

    megatron = {
        "enabled": True,
        "tensor_model_parallel_size": 8,
        "pipeline_model_parallel_size": 2,
        "context_parallel_size": 2,
        "sequence_parallel": True,
        "peft": {"enabled": True, "dim": 32},
    }
    config = {"megatron_cfg": megatron, "dtensor_cfg": {"enabled": False}}
    frozen = frozen_config(config)["megatron_cfg"]
    sizes = [frozen[f"{kind}_parallel_size"] for kind in ("tensor_model", "pipeline_model", "context")]
    assert sizes == [1, 1, 1] and not frozen["sequence_parallel"] and not frozen["peft"]["enabled"]
    assert megatron["tensor_model_parallel_size"] == 8 and megatron["peft"]["enabled"]  # the policy's own is left alone


# --- adapters off ----------------------------------------------------------------------------------------------------


class Adapted(torch.nn.Module):
    """A linear layer under an adapter, with Megatron Bridge's names."""

    def __init__(self) -> None:
        super().__init__()
        self.to_wrap = torch.nn.Linear(4, 4)
        self.adapter = torch.nn.Module()
        self.adapter.linear_in = torch.nn.Linear(4, 2, bias=False)
        self.adapter.linear_out = torch.nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.to_wrap(x) + self.adapter.linear_out(self.adapter.linear_in(x))


def test_with_its_second_factor_zero_the_adapter_is_gone_and_comes_back_to_the_last_bit():
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(Adapted(), Adapted()).bfloat16(), torch.randn(3, 4).bfloat16()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    base = model[1].to_wrap(model[0].to_wrap(x))

    def interrupted() -> None:
        with adapters_off(model.named_parameters()):
            assert torch.equal(model(x), base)
            raise KeyError("even then")

    with pytest.raises(KeyError):
        interrupted()
    assert not torch.equal(model(x), base)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


def test_a_model_without_adapters_is_refused():
    with pytest.raises(UserError, match=r"adapter_off.*linear_out"), adapters_off(torch.nn.Linear(2, 2).named_parameters()):
        pass


# --- what is missing -------------------------------------------------------------------------------------------------


def node(alive=True, **resources) -> dict:
    return {"Alive": alive, "Resources": {"CPU": 8.0, **resources}}


EIGHT = Cluster(address="auto", gpus_per_node=8)
DEDICATED = Layout(cluster=EIGHT, reference=Reference(engine="dedicated_worker"))


def test_a_complete_cluster_lacks_nothing():
    assert missing_resources(DEDICATED, [node(GPU=8.0), node(GPU=1.0, reference_gpu=1.0)]) == []
    assert missing_resources(Layout(cluster=EIGHT), [node(GPU=8.0)]) == []
    assert missing_resources(Layout(workers="cpu", reference=Reference(engine="dedicated_worker")), [node()]) == []


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node(GPU=8.0)], ["no Ray node has the resource reference_gpu"]),
        ([node(GPU=8.0, reference_gpu=1.0)], ["1 node(s) of 8 GPUs are asked for beside the reference's, and Ray has 0"]),
        ([node(GPU=8.0), node(reference_gpu=1.0)], ["the Ray node with the resource reference_gpu has no GPU"]),
        ([node(GPU=8.0), node(alive=False, GPU=1.0, reference_gpu=1.0)], ["no Ray node has the resource reference_gpu"]),
        ([node(GPU=4.0), node(GPU=4.0)], ["and Ray has 0", "no Ray node has the resource"]),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_starts_it(nodes, said):
    faults = missing_resources(DEDICATED, nodes)
    assert len(faults) == len(said)
    for fault, part in zip(faults, said, strict=True):
        assert part in fault.what and "ray start --address=" in fault.cure
    if "resource" in said[-1]:
        assert """--num-gpus=1 --resources='{"reference_gpu": 1}'""" in faults[-1].cure


def partly(free: dict, **resources) -> dict:
    """Ray leaves out of what is free a resource of which nothing is."""
    return node(**resources) | {"Available": {"CPU": 8.0, **free}}


REFERENCE_NODE = {"GPU": 1.0, "reference_gpu": 1.0}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([partly({"GPU": 8.0}, GPU=8.0), partly(REFERENCE_NODE, **REFERENCE_NODE)], []),
        ([partly({}, GPU=8.0), partly(REFERENCE_NODE, **REFERENCE_NODE)], ["of Ray's 1 only 0 are free: another run holds their GPUs"]),
        ([partly({"GPU": 7.0}, GPU=8.0), partly({"GPU": 8.0}, GPU=8.0), partly(REFERENCE_NODE, **REFERENCE_NODE)], []),
        (
            [partly({"GPU": 8.0}, GPU=8.0), partly({"reference_gpu": 0.999}, **REFERENCE_NODE)],
            ["reference_gpu is taken: another run holds it"],
        ),
        ([partly({}, GPU=8.0), partly({}, **REFERENCE_NODE)], ["only 0 are free", "is taken"]),
    ],
)
def test_what_another_run_holds_is_not_there_for_this_one(nodes, said):
    faults = missing_resources(DEDICATED, nodes)
    assert len(faults) == len(said)
    for fault, part in zip(faults, said, strict=True):
        assert part in fault.what and fault.cure == "wait until it has ended; `ray status` says what is taken"
