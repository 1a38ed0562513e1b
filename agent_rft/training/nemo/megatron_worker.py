"""NeMo RL's Megatron worker whose reference is the policy itself without its LoRA adapters: exact, with no second set of
weights anywhere. It has NOT yet run on a GPU.

Plugged in by name, on machines that have Megatron; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from nemo_rl.models.policy.utils import get_runtime_env_for_policy_worker
from nemo_rl.models.policy.workers.megatron_policy_worker import MegatronPolicyWorkerImpl
from torch import Tensor

from agent_rft.training.nemo.adapters import adapters_off


@ray.remote(runtime_env=get_runtime_env_for_policy_worker("megatron_policy_worker"))
class AdapterOffWorker(MegatronPolicyWorkerImpl):
    @contextmanager
    def use_reference_model(self) -> Generator[None]:
        """In place of swapping in a copy of the base. Top-k and top-p are off meanwhile, as with NeMo RL's own reference."""
        sampling: Any = self.sampling_params
        if self.should_disable_forward_pre_hook:
            self.disable_forward_pre_hook()  # it would gather the weights anew, adapters and all
        try:
            with adapters_off(self._named_weights()):
                self.sampling_params = type(sampling)(top_k=None, top_p=1.0, temperature=sampling.temperature) if sampling else None
                yield
        finally:
            self.sampling_params = sampling
            if self.should_disable_forward_pre_hook:
                self.enable_forward_pre_hook()

    def _named_weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.model.named_parameters()
