"""Which machines a large run has and how it is laid out over them, as plain values."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Workers = Literal["megatron", "cpu"]
ReferenceEngine = Literal["builtin", "dedicated_worker", "dedicated_vllm", "adapter_off"]
ReferenceWeights = Literal["bfloat16", "fp8", "int4"]


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """The machines that train. A dedicated reference has a machine, or a GPU, of its own beside them."""

    address: str | None = None
    """A running Ray cluster's; None starts one here for the time of the run."""
    nodes: int = 1
    gpus_per_node: int = 1
    gpu_memory_gb: float = 80.0
    """Of one GPU, in 10^9 bytes as it is sold."""
    host_memory_gb: float = 2000.0
    """Of one node."""
    peak_tflops: float = 989.0
    """Of one GPU, dense bfloat16."""
    training_mfu: float = 0.35
    """Share of the peak that training reaches: what time and cost are planned with."""
    decode_tokens_per_second: float = 400.0
    """What one GPU generates, all its rollouts together: what time and cost are planned with."""
    gpu_hour_price: float = 0.0
    """In whatever currency; 0 leaves cost out."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


class Parallel(msgspec.Struct, frozen=True, kw_only=True):
    """Over how many GPUs one copy of the policy is cut."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1

    @property
    def size(self) -> int:
        return self.tensor * self.pipeline * self.context


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """Who rolls out. Colocated: vLLM on the very GPUs that train, in turn with them."""

    tensor: int = 1
    memory_utilization: float = 0.5
    """Share of a GPU that vLLM may take."""
    colocated: bool = True
    nodes: int | None = None
    """Not colocated: nodes for generation alone, out of the cluster's."""
    gpus_per_node: int | None = None
    """Not colocated."""
    asynchronous: bool = False
    """vLLM's asynchronous engine: rollouts go on each at its own pace."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Who says what the frozen base thinks of a sample.

    builtin: NeMo RL's own: a second set of weights in host memory, swapped in. dedicated_worker: the policy's own weights
    class, on a machine of its own. dedicated_vllm: vLLM's prompt log-probabilities, also quantised. adapter_off: with
    LoRA, the policy itself without its adapters.
    """

    engine: ReferenceEngine = "builtin"
    weights: ReferenceWeights = "bfloat16"
    path: str | None = None
    """Quantised weights, where they are a checkpoint of their own; None: the base."""
    resource: str = "reference_gpu"
    """The Ray resource that marks the machine for it."""
    gpu_memory_gb: float = 80.0
    max_batched_tokens: int = 512
    """Tokens that dedicated_vllm scores at once: what tokens x vocabulary takes is invisible to vLLM's own accounting."""

    @property
    def dedicated(self) -> bool:
        return self.engine.startswith("dedicated")


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    workers: Workers = "megatron"
    """cpu: small models, to prove everything but the GPUs."""
    cluster: Cluster = Cluster()
    parallel: Parallel = Parallel()
    generation: Generation = Generation()
    reference: Reference = Reference()
    micro_batch: int = 1
    """Sequences in one forward and backward pass."""
    activation_checkpointing: bool = True
    optimizer_on_cpu: bool = False
    environment_actors: int = 2
    """Processes that call tools and grade."""
    loggers: tuple[str, ...] = ()
    """wandb, tensorboard, mlflow, swanlab: beside our own."""
    overrides: dict[str, Any] = {}
    """NeMo RL's own keys, dotted, set last."""

    @property
    def training_gpus(self) -> int:
        """What is left of the cluster where generation has GPUs of its own."""
        generation, cluster = self.generation, self.cluster
        if generation.colocated:
            return cluster.gpus
        if cluster.nodes == 1:
            return cluster.gpus - (generation.gpus_per_node or 0)
        return cluster.gpus - (generation.nodes or 0) * cluster.gpus_per_node

    @property
    def data_parallel(self) -> int:
        return self.training_gpus // self.parallel.size
