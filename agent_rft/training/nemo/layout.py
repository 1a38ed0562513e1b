"""Does a run fit the machines it names? The arithmetic that NeMo RL does late, or not at all, done before a GPU is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent_rft.contracts.errors import Fault, did_you_mean
from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.training import Algorithm, Model, TrainingJob
from agent_rft.planning.shapes import CATALOGUE, ModelShape

FUSED = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Megatron computes some layers as one, under one name: they have an adapter together or none."""
COLOCATED_UTILIZATION, OWN_UTILIZATION = 0.6, 0.95


def sequence_multiple(layout: Layout) -> int:
    """What a sequence's length is rounded up to: it is cut into even parts.

    Sequence parallelism cuts it over the tensor ranks; context parallelism into two chunks a rank, so that each rank has
    an early and a late one and all attend to about as much.
    """
    tensor, context = layout.parallel.tensor, layout.parallel.context
    return tensor * (2 * context if context > 1 else 1)


def padded_length(limits: Limits, layout: Layout) -> int:
    """The longest trajectory that the rollout machine allows, padded."""
    multiple = sequence_multiple(layout)
    return -(-limits.max_trajectory_tokens // multiple) * multiple


def megatron_modules(names: Sequence[str]) -> list[str]:
    """Ours, the names of Hugging Face's models, as Megatron's; lora_faults has found them whole."""
    return [fused for fused, parts in FUSED.items() if set(parts) <= set(names)]


def layout_faults(job: TrainingJob, layout: Layout) -> list[Fault]:
    """Everything that cannot work, at once."""
    shape = CATALOGUE.get(job.model.path)
    return [*arrangement_faults(job.model, job.algorithm, job.limits, layout, shape), *_row_faults(job)]


def arrangement_faults(model: Model, algorithm: Algorithm, limits: Limits, layout: Layout, shape: ModelShape | None) -> list[Fault]:
    """What no memory mends, however large: the plan asks it too. `shape`: where it is known."""
    machines = _cpu_faults(model, layout) if layout.workers == "cpu" else _megatron_faults(model, layout, shape)
    return [*machines, *_batch_faults(algorithm, limits, layout), *_reference_faults(model, algorithm, layout)]


def _cpu_faults(model: Model, layout: Layout) -> Iterator[Fault]:
    parallel, cure = layout.parallel, "CPU workers keep the whole model in one process: 1"
    for name, size in (("tensor", parallel.tensor), ("pipeline", parallel.pipeline), ("context", parallel.context)):
        if size != 1:
            yield Fault(f"backend.nemo.{name}", f"is {size} with workers cpu", cure)
    if layout.cluster.gpus_per_node or layout.cluster.nodes != 1:
        yield Fault("cluster", f"has {layout.cluster.gpus} GPUs on {layout.cluster.nodes} node(s), and workers cpu use none", "cluster=cpu")
    if layout.generation.asynchronous:
        yield Fault("backend.nemo.generation.asynchronous", "is vLLM's engine, which workers cpu do without", "false")
    if not layout.generation.colocated:
        yield Fault("backend.nemo.generation.colocated", "is false, and workers cpu have no GPUs to set apart", "true")
    if layout.reference.engine == "dedicated_vllm":
        yield Fault("reference.engine", "is dedicated_vllm, which needs a GPU, with workers cpu", "reference=dedicated_worker or builtin")
    if model.device != "cpu" or model.dtype != "float32":
        yield Fault("model.device", f"is {model.device} in {model.dtype}, with workers cpu", "model.device=cpu model.dtype=float32")


def _megatron_faults(model: Model, layout: Layout, shape: ModelShape | None) -> Iterator[Fault]:
    if model.device != "cuda":
        yield Fault("model.device", f"is {model.device}, and Megatron trains on GPUs", "cuda, or backend=nemo_cpu cluster=cpu")
    if model.dtype != "bfloat16":
        yield Fault("model.dtype", f"is {model.dtype}, and Megatron's fused attention and vLLM's run in 16 bits", "bfloat16")
    if model.lora:
        yield from lora_faults(model.lora.target_modules)
    if not layout.cluster.gpus:
        yield Fault("cluster.gpus_per_node", "is 0, and Megatron trains on GPUs", "the GPUs of one node, or backend=nemo_cpu cluster=cpu")
    elif apart := list(_apart_faults(layout)):
        yield from apart
    else:
        yield from _cut_faults(layout, shape)
    yield from _utilization_faults(layout)


def lora_faults(names: Sequence[str]) -> Iterator[Fault]:
    known = [part for parts in FUSED.values() for part in parts]
    for name in names:
        if name not in known:
            yield Fault("model.lora.target_modules", f"'{name}' has no counterpart in Megatron", did_you_mean(name, known))
    for fused, parts in FUSED.items():
        missing = [part for part in parts if part not in names]
        if missing and len(missing) < len(parts):
            what = f"{', '.join(missing)} missing: Megatron computes {', '.join(parts)} as one, {fused}"
            yield Fault("model.lora.target_modules", what, "name all of them or none")


def _apart_faults(layout: Layout) -> Iterator[Fault]:
    """Generation on GPUs of its own: on one node it takes some of its GPUs, on several whole nodes."""
    generation, cluster, where = layout.generation, layout.cluster, "backend.nemo.generation"
    if generation.colocated:
        return
    nodes, gpus = generation.nodes, generation.gpus_per_node
    if cluster.nodes == 1:
        if gpus is None or gpus >= cluster.gpus_per_node:
            what = f"is {_said(gpus)} of the node's {cluster.gpus_per_node} GPUs, with colocated false"
            yield Fault(f"{where}.gpus_per_node", what, "at least 1, and fewer than cluster.gpus_per_node: training needs the rest")
        if nodes not in {None, 1}:
            yield Fault(f"{where}.nodes", f"is {nodes} on a cluster of one node", "null")
        return
    if nodes is None or nodes >= cluster.nodes:
        what = f"is {_said(nodes)} of the cluster's {cluster.nodes} nodes, with colocated false"
        yield Fault(f"{where}.nodes", what, "at least 1, and fewer than cluster.nodes: training needs the rest")
    if gpus != cluster.gpus_per_node:
        what = f"is {_said(gpus)}, and on several nodes generation takes whole ones"
        yield Fault(f"{where}.gpus_per_node", what, f"cluster.gpus_per_node, {cluster.gpus_per_node}")


def _said(number: int | None) -> str:
    return "null" if number is None else str(number)


def _cut_faults(layout: Layout, shape: ModelShape | None) -> Iterator[Fault]:
    parallel, training, generation = layout.parallel, layout.training_gpus, layout.generation
    sizes = f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} = {parallel.size} GPUs a copy"
    if training % parallel.size:
        cure = f"sizes whose product divides {training}, or a cluster with a multiple of {parallel.size} GPUs for training"
        yield Fault("backend.nemo.tensor", f"{sizes}, and {training} GPUs train", cure)
    elif shape:
        yield from _uneven("backend.nemo.tensor", "the policy", parallel.tensor, shape.heads, "attention heads")
    if shape:
        yield from _uneven("backend.nemo.pipeline", "the policy", parallel.pipeline, shape.layers, "layers")
    rolling_out = layout.cluster.gpus if generation.colocated else layout.cluster.gpus - training
    if rolling_out % generation.tensor:
        what = f"is {generation.tensor}, and {rolling_out} GPUs roll out"
        yield Fault("backend.nemo.generation.tensor", what, f"a number that divides {rolling_out}")
    elif shape:
        yield from _uneven("backend.nemo.generation.tensor", "vLLM", generation.tensor, shape.heads, "attention heads")


def _uneven(key: str, whose: str, ways: int, number: int, things: str) -> Iterator[Fault]:
    if number % ways:
        yield Fault(key, f"is {ways} for {whose}, and the model's {number} {things} do not divide by it", f"a number that divides {number}")


def _utilization_faults(layout: Layout) -> Iterator[Fault]:
    generation = layout.generation
    most = COLOCATED_UTILIZATION if generation.colocated else OWN_UTILIZATION
    if generation.memory_utilization > most:
        who = "beside a policy on the same GPUs, part of which stays there" if generation.colocated else "of which the driver takes some"
        what = f"is {generation.memory_utilization:g} of a GPU's memory, {who}"
        yield Fault("backend.nemo.generation.memory_utilization", what, f"at most {most:g}")


def _batch_faults(algorithm: Algorithm, limits: Limits, layout: Layout) -> Iterator[Fault]:
    copies = 1 if layout.workers == "cpu" else layout.data_parallel
    rollouts, at_once = algorithm.batch_size * algorithm.rollouts_per_prompt, copies * layout.micro_batch
    if copies > 0 and rollouts % at_once:
        what = f"{copies} copies of the policy x {layout.micro_batch} sequences = {at_once} do not divide the step's {rollouts} rollouts"
        yield Fault("backend.nemo.micro_batch", what, "change it, or algorithm.batch_size or group_size, until they do")
    if limits.max_turn_tokens >= limits.max_trajectory_tokens:
        what = f"is {limits.max_turn_tokens}, and the whole trajectory, prompt included, may have {limits.max_trajectory_tokens} tokens"
        yield Fault("task.limits.max_turn_tokens", what, "less than max_trajectory_tokens")


def _row_faults(job: TrainingJob) -> Iterator[Fault]:
    rows, wanted = len(job.train_rows), job.algorithm.batch_size
    if rows < wanted:
        what = f"is {wanted}, and there are {rows} training rows: NeMo RL trains on full batches only"
        yield Fault("algorithm.batch_size", what, f"at most {rows}")


def _reference_faults(model: Model, algorithm: Algorithm, layout: Layout) -> Iterator[Fault]:
    reference = layout.reference
    by_vllm = reference.engine == "dedicated_vllm"
    if reference.engine == "adapter_off" and model.lora is None:
        yield Fault("reference.engine", "is adapter_off, and model.lora is null: there is no adapter to turn off", "reference=builtin")
    if reference.dedicated and not algorithm.kl_coef:
        yield Fault("reference.engine", f"is {reference.engine}, and algorithm.kl_coef is 0: nothing would ask it", "reference=builtin")
    if by_vllm and reference.weights == "int4" and not reference.path:
        what = "is null, and weights int4 are a checkpoint of their own: vLLM cannot make them of the base while loading"
        yield Fault("reference.path", what, "a folder or id with the base in int4 (AWQ, GPTQ, compressed-tensors)")
    if by_vllm and algorithm.temperature != 1.0:
        what = f"is {algorithm.temperature:g}: NeMo RL divides the policy's logits by it, vLLM not those of its prompt log-probabilities"
        yield Fault("algorithm.temperature", f"{what}, so the KL would compare two different things", "1.0, or another reference")
