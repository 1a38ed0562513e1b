"""Memory of a run on NeMo RL: Megatron trains over tensor, pipeline, context and data parallel GPUs, vLLM rolls out."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent_rft.planning.formulas import (
    BF16,
    CUDA_PROCESS_GB,
    MASTER_AND_ADAM,
    PROMPT_LOGPROBS,
    VLLM_ASLEEP_GB,
    VLLM_WORKSPACE_GB,
    activation_items,
    forward_item,
    kv_bytes,
    logits_item,
    reference_weights,
)
from agent_rft.planning.setup import GB, Budget, Item, Setup

WORKER_HOST_GB = 5.0
"""Assumed: host memory of a process that drives a GPU, CUDA's libraries and pinned buffers included."""
ACTOR_HOST_GB = 1.0
"""Assumed: of a process that calls tools and grades."""
SAMPLE_BYTES = 40
"""Host memory of one token of the batch: ids, masks, three kinds of log-probabilities, advantages."""

REFERENCE_SHARE = 0.95
"""Of its card's memory: what vLLM is given as the reference."""
REPORTED = 1.06
"""What a card reports, of what it is sold as, in 10^9 bytes. Of 80 an A100 or H100 reports 79.1 GiB or more (84.9, 1.061), of 141 an
H200 139.7 GiB (1.064). vLLM's share is one of this; all else is planned with what is sold, so that the difference stays as room."""


class Share(msgspec.Struct, frozen=True):
    """What one training GPU holds of the model, in parameters. The fullest pipeline stage counts."""

    layers: int
    weights: float
    trained: float


def share_of(setup: Setup) -> Share:
    """The layers are dealt out over the pipeline's stages, each matrix over the tensor-parallel GPUs. The first stage has the
    embeddings besides, the last the head; context and data parallel GPUs hold copies."""
    shape, parallel = setup.shape, setup.layout.parallel
    layers = -(-shape.layers // parallel.pipeline)
    each = (shape.parameters - shape.embedding_parameters - shape.hidden) / shape.layers
    ends = shape.embedding_parameters if parallel.pipeline == 1 else shape.vocabulary * shape.hidden
    weights = (layers * each + ends + shape.hidden) / parallel.tensor
    adapters = setup.lora_parameters * layers / shape.layers / parallel.tensor
    return Share(layers, weights, adapters if setup.model.lora else weights)


def megatron_budgets(setup: Setup) -> tuple[Budget, ...]:
    gpu = (_training(setup), *_hand_over(setup), _generation(setup), *_reference(setup))
    return (*gpu, _host(setup))


def _training(setup: Setup) -> Budget:
    layout, share = setup.layout, share_of(setup)
    parallel, lora = layout.parallel, setup.model.lora
    tokens = layout.micro_batch * setup.limits.max_trajectory_tokens / parallel.context
    under_way = share.layers * parallel.pipeline  # the first of p stages holds the activations of p micro-batches
    asleep = [Item("vLLM asleep", "process", VLLM_ASLEEP_GB, "assumed")] if layout.generation.colocated else []
    items = [
        _policy_weights(setup, share),
        *([Item("adapters", "weights", share.trained * BF16 / GB, f"{share.trained / 1e6:.0f}M x 2 B")] if lora else []),
        Item("gradients", "optimizer", share.trained * BF16 / GB, f"{share.trained / 1e6:,.0f}M trained weights x 2 B"),
        *([] if layout.optimizer_on_cpu else [_optimizer(setup, share)]),
        *activation_items(setup.shape, tokens, layers=under_way, recompute=layout.activation_checkpointing, tensor=parallel.tensor),
        logits_item(setup.shape, tokens, tensor=parallel.tensor),
        Item("process", "process", CUDA_PROCESS_GB, "assumed: CUDA, NCCL, workspaces"),
        *asleep,
    ]
    return Budget(place="training", count=layout.training_gpus, limit=layout.cluster.gpu_memory_gb, items=tuple(items))


def _policy_weights(setup: Setup, share: Share) -> Item:
    parallel = setup.layout.parallel
    cut = f" / (TP{parallel.tensor} x PP{parallel.pipeline})" if parallel.tensor * parallel.pipeline > 1 else ""
    return Item("weights", "weights", share.weights * BF16 / GB, f"{setup.shape.parameters / GB:.2f}B x 2 B{cut}")


def _optimizer(setup: Setup, share: Share) -> Item:
    """The distributed optimizer deals its states out over all GPUs that hold the same weights."""
    copies = max(1, setup.layout.data_parallel * setup.layout.parallel.context)
    how = f"{share.trained / 1e6:,.0f}M x 12 B (float32 copy, Adam's moments) / {copies} copies of the policy"
    return Item("optimizer", "optimizer", share.trained * MASTER_AND_ADAM / copies / GB, how)


def _hand_over(setup: Setup) -> Iterator[Budget]:
    """While vLLM takes over the weights both sets are there, and one matrix whole."""
    layout, shape, share = setup.layout, setup.shape, share_of(setup)
    if not layout.generation.colocated:
        return
    whole = max(shape.vocabulary * shape.hidden, 2 * shape.hidden * shape.intermediate) * BF16 / GB
    items = (
        _policy_weights(setup, share),
        _vllm_weights(setup),
        Item("a matrix whole", "weights", whole, "gathered from all tensor-parallel GPUs to be passed on"),
        Item("processes", "process", CUDA_PROCESS_GB + VLLM_ASLEEP_GB, "assumed: the trainer's and vLLM's"),
    )
    yield Budget(place="hand-over", count=layout.training_gpus, limit=layout.cluster.gpu_memory_gb, items=items)


def _vllm_weights(setup: Setup) -> Item:
    tensor = setup.layout.generation.tensor
    how = f"{setup.shape.parameters / GB:.2f}B x 2 B / TP{tensor}, adapters merged"
    return Item("vLLM's weights", "weights", setup.shape.parameters * BF16 / tensor / GB, how)


def generation_gpus(setup: Setup) -> int:
    layout = setup.layout
    return layout.training_gpus if layout.generation.colocated else layout.cluster.gpus - layout.training_gpus


def _generation(setup: Setup) -> Budget:
    """vLLM takes its share whole, whatever it needs: after weights and workspace all the rest is for keys and values."""
    layout, generation, limits = setup.layout, setup.layout.generation, setup.limits
    memory = layout.cluster.gpu_memory_gb
    weights = _vllm_weights(setup)
    room = generation.memory_utilization * memory - weights.gb - VLLM_WORKSPACE_GB
    one = kv_bytes(setup.shape, tensor=generation.tensor) * limits.max_trajectory_tokens / GB
    replicas = max(1, generation_gpus(setup) // generation.tensor)
    wanted = -(-setup.rollouts // replicas)
    holds = max(0, int(room / one))
    how = f"the rest of {generation.memory_utilization:.2f} x {memory:g} GB: {holds} whole rollouts of {wanted} ({one:.2f} GB each)"
    short = f"vLLM's share leaves {room:.1f} GB for keys and values, and one rollout takes {one:.1f} GB" if room < one else ""
    note = f"keys and values of {holds} of {wanted} rollouts at once, so that some wait" if not short and holds < wanted else ""
    items = (
        weights,
        Item("vLLM's workspace", "process", VLLM_WORKSPACE_GB, "assumed: context, CUDA graphs, activations"),
        Item("keys and values", "rollouts", max(room, 0.0), how),
        *_left_beside_vllm(setup),
    )
    return Budget(place="generation", count=generation_gpus(setup), limit=memory, items=items, short=short, note=note)


def _left_beside_vllm(setup: Setup) -> Iterator[Item]:
    """What the trainer leaves on the GPU while vLLM generates. NeMo RL moves away the buffers of what is trained, so weights
    that are trained whole go to the host, while a frozen base under adapters stays."""
    if not setup.layout.generation.colocated:
        return
    if setup.model.lora:
        yield msgspec.structs.replace(_policy_weights(setup, share_of(setup)), name="frozen base stays")
    yield Item("trainer's process", "process", CUDA_PROCESS_GB, "assumed")


def _reference(setup: Setup) -> Iterator[Budget]:
    """Only a dedicated one has a GPU of its own; the others take the policy's turn and need less than training does."""
    reference, shape = setup.layout.reference, setup.shape
    if reference.engine == "dedicated_vllm":
        yield _scoring_vllm(setup)
    elif reference.dedicated:
        tokens = setup.layout.micro_batch * setup.limits.max_trajectory_tokens
        items = (
            reference_weights(shape, "bfloat16"),
            forward_item(shape, tokens),
            logits_item(shape, tokens, trained=False),
            Item("process", "process", CUDA_PROCESS_GB, "assumed"),
        )
        yield Budget(place="reference", count=1, limit=reference.gpu_memory_gb, items=items)


def _scoring_vllm(setup: Setup) -> Budget:
    """vLLM takes its share of what the card reports, and takes it whole: what it counts must lie within, what it does not
    count in the rest. On which side a process's 2 GB lie nobody here has seen, so they are in both."""
    reference, shape, length = setup.layout.reference, setup.shape, setup.limits.max_trajectory_tokens
    scored, process = reference.max_batched_tokens, Item("process", "process", CUDA_PROCESS_GB, "assumed")
    how = f"{scored} tokens at once x {shape.vocabulary:,} x 6 B, which vLLM does not count"
    logits = Item("logits", "activations", scored * shape.vocabulary * PROMPT_LOGPROBS / GB, how)
    counted = (
        reference_weights(shape, reference.weights),
        Item("keys and values", "rollouts", kv_bytes(shape) * length / GB, f"of one rollout of {length:,} tokens"),
        forward_item(shape, scored),
        process,
    )
    inside, outside = sum(item.gb for item in counted), logits.gb + process.gb
    reported = REPORTED * reference.gpu_memory_gb
    share, rest = REFERENCE_SHARE * reported, (1 - REFERENCE_SHARE) * reported
    given = f"vLLM is given {REFERENCE_SHARE:.0%} of the {reported:.1f} GB that the card reports"
    short = ""
    if inside > share:
        short = f"{given}, {share:.1f}, and needs {inside:.1f} there"
    elif outside > rest:
        short = f"{given}, which leaves {rest:.1f}, and what it does not count needs {outside:.1f}"
    note = "" if short else f"{given}: {inside:.1f} GB of {share:.1f}; beside it {outside:.1f} of {rest:.1f}"
    return Budget(place="reference", count=1, limit=reference.gpu_memory_gb, items=(*counted, logits), short=short, note=note)


def _host(setup: Setup) -> Budget:
    """Of the node that holds most: one with training GPUs."""
    layout, share, cluster = setup.layout, share_of(setup), setup.layout.cluster
    gpus = min(cluster.gpus_per_node, layout.training_gpus)
    colocated, whole = layout.generation.colocated, share.weights * BF16 * gpus / GB
    workers = cluster.gpus_per_node * (2 if colocated else 1)
    items: list[Item] = []
    if colocated:
        asleep = _vllm_weights(setup).gb * gpus
        items.append(Item("vLLM's weights asleep", "weights", asleep, f"{gpus} GPUs' shares, while it trains"))
    if colocated or layout.optimizer_on_cpu:
        when = "always" if layout.optimizer_on_cpu else "while vLLM generates"
        items.append(Item("optimizer", "optimizer", _optimizer(setup, share).gb * gpus, f"{gpus} GPUs' shares, {when}"))
    if colocated and not setup.model.lora:
        items.append(Item("policy's weights", "weights", whole, "while vLLM generates"))
    if layout.reference.engine == "builtin":
        items.append(Item("reference", "reference", whole, f"a second set of weights, {gpus} GPUs' shares"))
        items.append(Item("policy swapped out", "reference", whole, "while the reference is on the GPU"))
    batch = setup.rollouts * setup.limits.max_trajectory_tokens * SAMPLE_BYTES / GB
    items += [
        Item("the batch", "rollouts", batch, f"{setup.rollouts} rollouts x {setup.limits.max_trajectory_tokens:,} tokens x 40 B"),
        Item("workers", "process", workers * WORKER_HOST_GB, f"assumed: {workers} processes x {WORKER_HOST_GB:g} GB"),
        Item("environment", "process", layout.environment_actors * ACTOR_HOST_GB, f"assumed: {layout.environment_actors} actors"),
    ]
    return Budget(place="host", count=cluster.nodes, limit=cluster.host_memory_gb, items=tuple(items))
