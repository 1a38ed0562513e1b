"""A model ready to speak through NeMo RL's generation: the one that has just been trained, or any that lies in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
from nemo_rl.models.generation import configure_generation_config
from nemo_rl.models.generation.vllm import VllmGeneration

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.training import Model
from agent_rft.training.nemo.launch import Speaker
from agent_rft.training.nemo.recipe import generation_config


def start_generation(
    layout: Layout, limits: Limits, model: Model, weights: str, speaker: Speaker, temperature: float
) -> tuple[Any, Callable[[], None]]:
    """Generation workers with the weights of a folder, or of a Hugging Face id, without training beside them; and how to end them."""
    if not loadable(weights):
        raise UserError(
            f"{weights} holds Megatron's weights, which vLLM does not load",
            "convert them first: docs/nemo.md, 'From a checkpoint to serving', names the command",
        )
    config: Any = generation_config(model, limits, temperature, layout, speaker.turn_ends) | {"model_name": weights}
    config = configure_generation_config(config, speaker.tokenizer, is_eval=True)
    if layout.workers == "cpu":
        from agent_rft.training.nemo.cpu_generation import CpuGeneration

        alone: Any = CpuGeneration(None, config)
        return alone, alone.shutdown
    gpus = layout.generation.gpus_per_node or layout.cluster.gpus_per_node
    cluster = RayVirtualCluster([gpus], use_gpus=True, num_gpus_per_node=gpus, max_colocated_worker_groups=1, name="speaking")
    generation = VllmGeneration(cluster=cluster, config=config)

    def end() -> None:
        generation.shutdown()
        cluster.shutdown()  # else its GPUs stay taken for as long as anyone holds the generation

    return generation, end


def loadable(weights: str) -> bool:
    """A Hugging Face id, or a folder in that layout."""
    folder = Path(weights)
    return not folder.is_dir() or (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
