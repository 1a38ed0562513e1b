"""How long a step takes and what it costs, from the throughputs that the cluster's settings state. Tools are left out."""

from __future__ import annotations

import msgspec

from agent_rft.planning.formulas import forward_flops
from agent_rft.planning.megatron import generation_gpus
from agent_rft.planning.setup import Setup

SAMPLED = 0.5
"""Assumed: of a trajectory that fills its token limit the model writes half; prompt and tool results are the other half."""


class Stage(msgspec.Struct, frozen=True):
    name: str
    seconds: float
    how: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One training step, its stages one after the other."""

    stages: tuple[Stage, ...]
    gpus: int
    """Paid for, a dedicated reference's included."""
    price: float
    """Of a GPU for an hour."""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def cost(self) -> float:
        return self.seconds / 3600 * self.gpus * self.price


def step_of(setup: Setup) -> Step:
    """Every rollout is taken to fill its token limit: the real ones are shorter, and a step is faster by as much."""
    cluster, reference, nemo = setup.layout.cluster, setup.layout.reference, setup.engine == "nemo"
    length = setup.limits.max_trajectory_tokens
    tokens = setup.rollouts * length
    trainers = max(1, setup.layout.training_gpus) if nemo else 1
    generators = max(1, generation_gpus(setup)) if nemo else 1
    forward = tokens * forward_flops(setup.shape, length)
    speed = cluster.peak_tflops * 1e12 * cluster.training_mfu
    sampled = tokens * min(SAMPLED, setup.limits.max_turns * setup.limits.max_turn_tokens / length)
    decoding = sampled / (generators * cluster.decode_tokens_per_second)
    reading = forward * (1 - sampled / tokens) / (generators * speed)
    how = f"{sampled:,.0f} tokens at {cluster.decode_tokens_per_second:g} a second and GPU, the others read at the training MFU"
    stages = [Stage("rollouts", decoding + reading, how)]
    if nemo:  # the local engine keeps the log-probabilities that it sampled with
        stages.append(Stage("log-probs", forward / (trainers * speed), f"one forward pass over {tokens:,} tokens"))
    if setup.algorithm.kl_coef > 0 or not nemo:
        scorers = 1 if nemo and reference.dedicated else trainers
        where = "on one device" if scorers == 1 else f"on {scorers} GPUs"
        stages.append(Stage("reference", forward / (scorers * speed), f"one forward pass {where}, at the training MFU"))
    passes, named = _passes(setup)
    stages.append(Stage("update", passes * forward / (trainers * speed), f"{passes} forward passes' worth: {named}"))
    gpus = cluster.gpus + (1 if reference.dedicated and cluster.gpus else 0) if nemo else int(setup.model.device == "cuda")
    return Step(stages=tuple(stages), gpus=gpus, price=cluster.gpu_hour_price)


def _passes(setup: Setup) -> tuple[int, str]:
    """A backward pass is one forward pass for the gradients of what flows through, and one more for those of the weights;
    adapters are so thin that theirs do not count. Checkpointing runs the forward pass again."""
    recompute = setup.layout.activation_checkpointing if setup.engine == "nemo" else setup.model.device == "cuda"
    parts = ["forward", "backward through the base" if setup.model.lora else "backward twice"]
    passes = 2 if setup.model.lora else 3
    return (passes + 1, ", ".join([*parts, "recomputation"])) if recompute else (passes, ", ".join(parts))
