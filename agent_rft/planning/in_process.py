"""Memory of a run that trains, generates and holds its reference in one place: the local engine, and NeMo RL's CPU workers."""

from __future__ import annotations

from collections.abc import Iterator

from agent_rft.planning.formulas import (
    ADAM_FP32,
    BF16,
    CUDA_PROCESS_GB,
    FP32,
    activation_items,
    kv_bytes,
    logits_item,
)
from agent_rft.planning.setup import GB, Budget, Item, Setup

KV_GROWTH = 1.25
"""Our sampler allocates this much more than asked for, so that a rollout's growth copies its cache only now and then."""
VLLM_SHARE = 0.4
"""Of the GPU: what the local engine lets vLLM take."""
PYTHON_HOST_GB = 1.0
"""Assumed: a Python process with torch and transformers loaded."""


def local_budgets(setup: Setup) -> tuple[Budget, ...]:
    on_gpu = setup.model.device == "cuda"
    tokens = max(setup.algorithm.micro_batch_tokens, setup.limits.max_trajectory_tokens)
    cluster, process = setup.layout.cluster, Item("process", "process", PYTHON_HOST_GB, "assumed: Python, torch, the tool server")
    rollouts = (_vllm_share(setup) if setup.model.sampler == "vllm" else _key_values(setup, min(setup.rollouts, setup.in_flight)),)
    if not on_gpu:
        items = (*_model(setup, copies=1), *_learning(setup, tokens, recompute=False), *rollouts, process)
        return (Budget(place="process", count=1, limit=cluster.host_memory_gb, items=items),)
    cuda = Item("CUDA", "process", CUDA_PROCESS_GB, "assumed: context and workspaces")
    # The sampler lets go of its cache only when it is next asked, so keys and values are there while the policy learns.
    training = (*_model(setup, copies=1), *_learning(setup, tokens, recompute=True), *rollouts, cuda)
    generation = (*_model(setup, copies=1), *rollouts, cuda)
    loading = Item("weights while loading", "weights", setup.shape.parameters * _width(setup) / GB, "on their way to the GPU")
    memory = cluster.gpu_memory_gb
    return (
        Budget(place="training", count=1, limit=memory, items=training),
        Budget(place="generation", count=1, limit=memory, items=generation),
        Budget(place="host", count=1, limit=cluster.host_memory_gb, items=(loading, process)),
    )


def cpu_worker_budgets(setup: Setup) -> tuple[Budget, ...]:
    """NeMo RL without a GPU: policy, generation and reference each hold the weights, in processes of one machine."""
    layout = setup.layout
    tokens = layout.micro_batch * setup.limits.max_trajectory_tokens
    processes = 3 + layout.environment_actors
    items = (
        *_model(setup, copies=2),
        *_learning(setup, tokens, recompute=layout.activation_checkpointing),
        _key_values(setup, setup.rollouts),
        Item("processes", "process", processes * PYTHON_HOST_GB, f"assumed: {processes} x {PYTHON_HOST_GB:g} GB"),
    )
    return (Budget(place="process", count=1, limit=layout.cluster.host_memory_gb, items=items),)


def _width(setup: Setup) -> int:
    """bfloat16 cannot hold a small update, so the local engine trains whole models in float32."""
    return BF16 if setup.model.dtype == "bfloat16" and setup.model.lora else FP32


def _model(setup: Setup, copies: int) -> Iterator[Item]:
    """Weights, what learning adds to them, and the frozen reference where adapters do not make it free."""
    size, width, lora = setup.shape.parameters, _width(setup), setup.model.lora
    trained = setup.lora_parameters if lora else size
    yield Item("weights", "weights", copies * size * width / GB, f"{size / GB:.4g}B x {width} B" + (f" x {copies}" if copies > 1 else ""))
    if lora:
        yield Item("adapters", "weights", trained * FP32 / GB, f"{trained / 1e6:.1f}M x 4 B: adapters stay float32")
    states = trained * (FP32 + ADAM_FP32) / GB
    yield Item("gradients, optimizer", "optimizer", states, f"{trained / 1e6:,.4g}M x 12 B (gradient, Adam's moments)")
    needs_copy = not lora if setup.engine == "local" else setup.layout.reference.engine != "adapter_off"
    if needs_copy:
        yield Item("reference", "reference", size * width / GB, "a frozen copy of the base")


def _learning(setup: Setup, tokens: int, recompute: bool) -> Iterator[Item]:
    width = _width(setup)
    yield from activation_items(setup.shape, tokens, layers=setup.shape.layers, recompute=recompute, width=width, fused=False)
    yield logits_item(setup.shape, tokens, width=width)


def _key_values(setup: Setup, rollouts: int) -> Item:
    tokens = setup.limits.max_trajectory_tokens
    each = kv_bytes(setup.shape, _width(setup)) * tokens * KV_GROWTH / GB
    return Item("keys and values", "rollouts", rollouts * each, f"{rollouts} rollouts x {tokens:,} tokens x {KV_GROWTH} of room to grow")


def _vllm_share(setup: Setup) -> Item:
    return Item("vLLM", "rollouts", VLLM_SHARE * setup.layout.cluster.gpu_memory_gb, f"{VLLM_SHARE:.0%} of the GPU, its weights included")
