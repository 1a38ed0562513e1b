"""Setups to plan with: the 70B recipe's numbers, and ways to change them."""

from typing import Any

import msgspec

from agent_rft.contracts.layouts import Cluster, Generation, Layout, Parallel, Reference
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.training import Algorithm, Lora, Model
from agent_rft.planning.plan import Plan
from agent_rft.planning.setup import Item, Setup
from agent_rft.planning.shapes import CATALOGUE

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
ALL_LINEAR = Lora(32, 32, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
GRPO = Algorithm(
    group_size=8,
    batch_size=16,
    epochs=2,
    learning_rate=1e-5,
    warmup_steps=5,
    kl_coef=0.01,
    clip_ratio=0.2,
    call_cost=0.0,
    temperature=1.0,
    max_grad_norm=1.0,
    micro_batch_tokens=8192,
)
ON_8_GPUS = Layout(
    cluster=Cluster(nodes=1, gpus_per_node=8, gpu_hour_price=3.0),
    parallel=Parallel(tensor=8),
    generation=Generation(tensor=8),
    reference=Reference(engine="dedicated_vllm", weights="fp8"),
)


def setup(model: str = LLAMA, lora: Lora | None = ALL_LINEAR, tokens: int = 8192, **layout: Any) -> Setup:
    return Setup(
        engine="nemo",
        shape=CATALOGUE[model],
        model=Model(path=model, lora=lora, device="cuda", dtype="bfloat16", sampler="vllm"),
        algorithm=GRPO,
        limits=Limits(max_trajectory_tokens=tokens, max_turn_tokens=2048),
        layout=msgspec.structs.replace(ON_8_GPUS, **layout),
        in_flight=128,
    )


def item(plan: Plan, place: str, name: str) -> Item:
    budget = plan.budget(place)
    assert budget is not None, f"{place} is not planned"
    return next(item for item in budget.items if item.name == name)
