"""Reference models on a machine of their own: the policy's own kind of worker, or vLLM with quantised weights.

Each takes its place in the Ray cluster when it is made, so make it before NeMo RL's setup() shares out the GPUs.
"""

from __future__ import annotations

import copy
from typing import Any

import ray
import torch
from nemo_rl.distributed.ray_actor_environment_registry import get_actor_python_env
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.utils.venvs import create_local_venv_on_each_node
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.layouts import Reference
from agent_rft.training.nemo.policy import cpu_cluster, register

SLIVER = 0.001
"""Of the resource that marks the reference's machine: enough to be placed there."""
PLACE_SECONDS, LOAD_SECONDS = 120.0, 1800.0
"""To be given a GPU that is free, and to load 70B from a slow disk."""
SCORED_AT_ONCE = 16
"""vLLM tries out this many rows of logits as it starts; a few fill a scoring batch."""
MEMORY_SHARE = 0.95
"""Of its GPU's memory that vLLM may take; nothing else runs there, and 70B in fp8 needs all but 2 GB of 80."""
VLLM_WORKER = "nemo_rl.models.generation.vllm.vllm_worker.VllmGenerationWorker"


class WorkerGroupReference:
    """The base in a worker of the policy's own class: its log-probabilities are the policy's to the last bit."""

    def __init__(self, config: dict[str, Any], tokenizer: Any, *, worker: str | None, resource: str | None) -> None:
        """`config`: the policy's. `resource`: where it runs on a GPU; None on the CPU."""
        if worker is not None:
            register(worker, config)
        self._cluster = cpu_cluster("reference") if resource is None else gpu_cluster(resource)
        self._policy = Policy(
            cluster=self._cluster,
            config=frozen_config(config),
            tokenizer=tokenizer,
            name_prefix="reference",
            init_optimizer=False,
            init_reference_model=False,
            worker_extension_cls_fqn=worker,
        )

    def logprobs(self, data: Any, micro_batch_size: int) -> Tensor:
        """The group's micro-batches are those of its configuration, which is the policy's."""
        return self._policy.get_logprobs(data)["logprobs"]

    def shutdown(self) -> None:
        self._policy.shutdown()
        self._cluster.shutdown()


def gpu_cluster(resource: str) -> Any:
    """One GPU of the machine that has the resource, taken now."""
    cluster = RayVirtualCluster([1], use_gpus=True, num_gpus_per_node=1, name="reference", node_resource_constraints=[{resource: SLIVER}])
    cluster.get_placement_groups()
    return cluster


def frozen_config(config: dict[str, Any]) -> dict[str, Any]:
    """The policy's configuration for a worker that holds the base alone, whole on one GPU."""
    frozen = copy.deepcopy(config)
    for section, lora in (("dtensor_cfg", "lora_cfg"), ("megatron_cfg", "peft")):
        engine = frozen.get(section)
        if not engine or not engine.get("enabled"):
            continue
        engine.update(dict.fromkeys(("tensor_parallel_size", "context_parallel_size"), 1) if section == "dtensor_cfg" else MEGATRON_ALONE)
        if lora in engine:
            engine[lora]["enabled"] = False
    return frozen


MEGATRON_ALONE = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "train_iters": 1,
}
"""The last is set for the policy by setup(), and asked for by a worker that never trains."""


class VllmReference:
    """vLLM's prompt log-probabilities, with weights small enough for one card. Held to its contract against a stand-in
    for vLLM: it has NOT yet run on a GPU."""

    def __init__(self, reference: Reference, base: str, *, longest: int, temperature: float) -> None:
        """`longest`: tokens of a trajectory at most."""
        if temperature != 1.0:
            raise UserError(
                f"reference.engine=dedicated_vllm with algorithm.temperature={temperature:g}: NeMo RL divides the policy's logits by the"
                " temperature, and vLLM scores a prompt without",
                "set algorithm.temperature=1.0, or use another reference engine",
            )
        self._place = one_gpu(reference.resource)
        self._scorer: Any = VllmScorer.options(
            num_cpus=0,
            num_gpus=1,
            resources={reference.resource: SLIVER},
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._place),
            runtime_env={"py_executable": vllm_python()},
        ).remote(engine_options(reference, base, longest))
        try:
            ray.get(self._scorer.ready.remote(), timeout=LOAD_SECONDS)
        except GetTimeoutError:
            raise InfraError("reference", f"vLLM was not ready within {LOAD_SECONDS / 60:g} minutes") from None

    def logprobs(self, data: Any, micro_batch_size: int) -> Tensor:
        """vLLM makes its own batches."""
        lengths = data["input_lengths"].tolist()
        rows = [row[:length] for row, length in zip(data["input_ids"].tolist(), lengths, strict=True)]
        return aligned(ray.get(self._scorer.score.remote(rows)), data["input_ids"].shape[1])

    def shutdown(self) -> None:
        ray.kill(self._scorer)
        remove_placement_group(self._place)


def one_gpu(resource: str) -> PlacementGroup:
    """Of the machine that has the resource, taken now: an actor alone would wait for it as long as another run holds it."""
    place = placement_group([{"GPU": 1, resource: SLIVER}])
    if not place.wait(PLACE_SECONDS):
        remove_placement_group(place)
        raise UserError(
            f"no GPU of the machine with the resource {resource} was free within {PLACE_SECONDS:g} s",
            "another run or process of this Ray cluster holds it (`ray status` shows what is in use): end that, or wait for it",
        )
    return place


def vllm_python() -> str:
    """The interpreter in which NeMo RL runs vLLM: an environment that it builds, where it builds them."""
    python = get_actor_python_env(VLLM_WORKER)
    return create_local_venv_on_each_node(py_executable=python, venv_name=VLLM_WORKER) if python.startswith("uv") else python


def engine_options(reference: Reference, base: str, longest: int) -> dict[str, Any]:
    """vLLM's arguments. It quantises to fp8 as it loads; int4 is a checkpoint of its own, which says itself how it is quantised."""
    if reference.weights == "int4" and not reference.path:
        raise UserError(
            "reference.weights=int4, and there is no checkpoint of that kind",
            "name a quantised one of the same base with reference.path=..., or use reference.weights=fp8",
        )
    return {
        "model": reference.path or base,
        "dtype": "bfloat16",
        "quantization": "fp8" if reference.weights == "fp8" and not reference.path else None,
        "max_model_len": longest + 1,  # it will not score a prompt without room for a token after it
        "max_num_batched_tokens": reference.max_batched_tokens,
        "max_num_seqs": SCORED_AT_ONCE,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,  # what is read from a cache has no log-probabilities
        "gpu_memory_utilization": MEMORY_SHARE,
        "enforce_eager": True,  # graphs of the decoding that never comes would take memory for nothing
    }


class VllmScorerImpl:
    """The engine, in a process of its own on the reference's machine."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            import vllm  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("reference.engine=dedicated_vllm, but vLLM is not installed there", "run it in NeMo RL's container") from error
        self._llm: Any = vllm.LLM(**options)
        self._params: Any = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=1.0, detokenize=False)

    def ready(self) -> bool:
        return True

    def score(self, rows: list[list[int]]) -> list[list[float]]:
        """Of each row's every token; of its first, which nothing comes before, 0."""
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs = self._llm.generate(prompts, self._params, use_tqdm=False)
        return [[0.0, *self._of(row, output.prompt_logprobs)] for row, output in zip(rows, outputs, strict=True)]

    def _of(self, row: list[int], told: list[dict[int, Any] | None] | None) -> list[float]:
        if told is None or len(told) != len(row):
            raise RuntimeError("vLLM did not score every token of the prompt")
        # the entry may name the likeliest token too: the prompt's own is asked for by its id
        return [float((at or {})[token].logprob) for token, at in zip(row[1:], told[1:], strict=True)]


VllmScorer: Any = ray.remote(VllmScorerImpl)


def aligned(scored: list[list[float]], width: int) -> Tensor:
    """As NeMo RL has them: token i's at position i, 0 beyond a row's end."""
    return torch.tensor([row + [0.0] * (width - len(row)) for row in scored])
