"""Generation on the CPU where NeMo RL expects vLLM: a process of its own with a copy of the policy's weights. It also serves
alone, to let a checkpoint speak."""

from __future__ import annotations

from typing import Any

import ray
import torch
from nemo_rl.models.generation.interfaces import GenerationInterface, verify_right_padding

from agent_rft.contracts.errors import UserError
from agent_rft.training.nemo.cpu_model import load_frozen
from agent_rft.training.nemo.cpu_worker import THREADS, sampler_of, spoken


class CpuGenerationWorkerImpl:
    """A model that speaks, with weights fetched from whoever trains it."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self._model = load_frozen(config["model_name"])
        self._sampler = sampler_of(self._model, config, config["vllm_cfg"]["max_model_len"], seed)
        self._pad = config["_pad_token_id"]

    def generate(self, data: Any, greedy: bool) -> Any:
        return spoken(self._sampler, data, self._pad, greedy)

    def fetch_weights(self, policy: Any) -> bool:
        updates, weights = ray.get(policy.weights.remote())
        self._model.take_over(weights)
        self._sampler.weights_changed(updates)
        return True


@ray.remote(num_cpus=0)
class CpuGenerationWorker(CpuGenerationWorkerImpl):
    """The worker in a process of its own."""

    def __init__(self, *args: Any) -> None:
        torch.set_num_threads(THREADS)
        super().__init__(*args)


class CpuGeneration(GenerationInterface):
    """Made as NeMo RL makes VllmGeneration; `cluster` may be None. What it speaks is `config["model_name"]`: a folder, one of
    adapters too, or an id. Its random numbers follow from torch's seed where it is made, which NeMo RL's setup sets."""

    def __init__(self, cluster: Any, config: dict[str, Any], **unused: Any) -> None:
        if config.get("top_p") not in (None, 1, 1.0) or config.get("top_k") not in (None, -1):
            raise UserError("workers on the CPU sample from the whole distribution", "leave policy.generation.top_p and top_k alone")
        self.cfg = config
        self._policy: Any = None
        actor: Any = CpuGenerationWorker
        self._worker: Any = actor.remote(config, torch.initial_seed() % 2**31)

    def generate(self, data: Any, greedy: bool = False) -> Any:
        verify_right_padding(data, pad_value=self.cfg["_pad_token_id"])
        return ray.get(self._worker.generate.remote(data, greedy))

    def prepare_refit_info(self, state_dict_info: dict[str, Any]) -> None:
        self._policy = state_dict_info["policy"]

    def update_weights_via_ipc_zmq(self) -> list[Any]:
        return [self._worker.fetch_weights.remote(self._policy)]

    def prepare_for_generation(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def finish_generation(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def init_collective(self, ip: str, port: int, world_size: int, **unused: Any) -> list[Any]:
        raise UserError("generation on the CPU is colocated", "set backend.nemo.generation.colocated=true")

    def shutdown(self) -> bool:
        ray.kill(self._worker)
        return True
