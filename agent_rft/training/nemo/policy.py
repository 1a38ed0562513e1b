"""NeMo RL's policy with a guard before each update and, where wanted, a reference that lives elsewhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY, get_actor_python_env
from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES, RayVirtualCluster
from nemo_rl.models.policy.lm_policy import Policy
from torch import Tensor

from agent_rft.training.nemo.ports import ReferenceModel, Watch

GAP_CAP, KL_CAP = 20.0, 10.0
"""NeMo RL's own, and the local engine's."""
MEGATRON_WORKER = "nemo_rl.models.policy.workers.megatron_policy_worker.MegatronPolicyWorker"


class GuardedPolicy(Policy):
    """Made as NeMo RL's setup() calls a policy factory, which knows the rest by functools.partial."""

    def __init__(
        self,
        *,
        watch: Watch,
        reference: ReferenceModel | None = None,
        adapter_off: bool = False,
        worker: str | None = None,
        cluster: Any,
        config: dict[str, Any],
        tokenizer: Any,
        init_reference_model: bool = True,
        **more: Any,
    ) -> None:
        """`worker` plugs in another worker class than NeMo RL's. One on the CPU gets a cluster of its own, and `cluster`, which
        has GPUs, is left alone.

        `adapter_off`: the worker answers for the reference without a frozen copy. Neither then, nor with a `reference`, does
        NeMo RL load one. `init_reference_model` is False where there is no penalty and so no reference at all.
        """
        self._watch, self._reference, self._compares = watch, reference, init_reference_model
        self._own_cluster: Any = None
        if worker is not None:
            register(worker, config)
        if on_cpu(config):
            self._own_cluster = cluster = cpu_cluster("policy")
            config = {**config, "seed": torch.initial_seed() % 2**31}  # set from grpo.seed by setup()
        builtin = init_reference_model and reference is None and not adapter_off
        super().__init__(
            cluster=cluster,
            config=config,
            tokenizer=tokenizer,
            init_reference_model=builtin,
            worker_extension_cls_fqn=worker,
            **more,
        )

    def get_reference_policy_logprobs(self, data: Any, micro_batch_size: int | None = None, timer: Any = None) -> Any:
        if self._reference is None:
            return super().get_reference_policy_logprobs(data, micro_batch_size=micro_batch_size, timer=timer)
        scored = self._reference.logprobs(data, micro_batch_size or self.cfg["logprob_batch_size"])
        return BatchedDataDict({"reference_logprobs": scored})

    def train(self, data: Any, loss_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """An update, where it is allowed and any token counts; else an answer in the same shape, and the workers untouched."""
        mask = counting(data)
        kl, finite = self._looked_over(data, mask, loss_fn)
        if self._watch.refuse_update(kl, finite) or not mask.any():
            return nothing_done(data, mask)
        began = time.monotonic()
        results = super().train(data, loss_fn, *args, **kwargs)
        means = means_of(results["all_mb_metrics"])
        self._watch.updated(
            loss=float(results["loss"].float().mean()),
            grad_norm=float(torch.as_tensor(results["grad_norm"]).float().mean()),
            clip_fraction=means.get("clip_fraction"),
            entropy=means.get("entropy", means.get("approx_entropy")),
            learning_rate=means.get("lr"),
            seconds=time.monotonic() - began,
        )
        return results

    def _looked_over(self, data: Any, mask: Tensor, loss_fn: Any) -> tuple[float | None, bool]:
        """KL to the reference, and whether everything that counts is a number."""
        # an on-policy ratio is 1 whatever the weights: NeMo RL then computes no log-probabilities before the update
        spoken = data["generation_logprobs" if loss_fn.force_on_policy_ratio else "prev_logprobs"][:, 1:][mask]
        finite = bool(spoken.isfinite().all() and data["advantages"][:, 1:][mask].isfinite().all())
        if not self._compares or not mask.any():
            return None, finite
        reference = data["reference_policy_logprobs"][:, 1:][mask]
        return float(k3(spoken, reference).mean()), finite and bool(reference.isfinite().all())

    def shutdown(self) -> bool:
        done = super().shutdown()
        if self._reference is not None:
            self._reference.shutdown()
        if self._own_cluster is not None:
            self._own_cluster.shutdown()
        return done

    def __del__(self) -> None:
        """NeMo RL's own raises where the workers are dead already, and says so of a Ray that has ended."""
        if hasattr(self, "worker_group") and ray.is_initialized():
            Policy.shutdown(self)


def on_cpu(config: Mapping[str, Any]) -> bool:
    """There are two kinds of workers: Megatron's, and ours on the CPU."""
    return not (config.get("megatron_cfg") or {}).get("enabled")


def register(worker: str, config: Mapping[str, Any]) -> None:
    """Which interpreter runs a worker class of ours: this one on the CPU, else the one that NeMo RL gives its Megatron worker."""
    python = PY_EXECUTABLES.SYSTEM if on_cpu(config) else get_actor_python_env(MEGATRON_WORKER)
    ACTOR_ENVIRONMENT_REGISTRY.setdefault(worker, python)


def cpu_cluster(name: str) -> Any:
    """Room for one worker that needs no GPU. Ray wants the name to be the only one of its kind."""
    return RayVirtualCluster([1], use_gpus=False, num_gpus_per_node=1, name=f"{name}-{secrets.token_hex(4)}")


def counting(data: Any) -> Tensor:
    """Of each position's next token, whether it counts: [row, position]."""
    return (data["token_mask"][:, 1:] * data["sample_mask"][:, None]) > 0


def k3(spoken: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) estimated a token, capped as in the loss."""
    gap = (reference - spoken).clamp(-GAP_CAP, GAP_CAP)
    return (torch.exp(gap) - gap - 1).clamp(max=KL_CAP)


def means_of(metrics: Mapping[str, list[float]]) -> dict[str, float]:
    """Of the micro-batches' metrics: the loss divides them by the whole batch already, but for the learning rate."""
    return {name: sum(values) / (len(values) if name == "lr" else 1) for name, values in metrics.items() if values}


def nothing_done(data: Any, mask: Tensor) -> dict[str, Any]:
    """What NeMo RL reads of an update, where none was made."""
    metrics = {
        "loss": 0.0,
        "lr": 0.0,
        "gen_kl_error": 0.0,
        "token_mult_prob_error": 1.0,
        "num_valid_samples": float(data["sample_mask"].sum()),
        "global_valid_seqs": float(data["sample_mask"].sum()),
        "global_valid_toks": float(mask.sum()),
    }
    zero = torch.zeros(1)
    return {"loss": zero, "grad_norm": zero.clone(), "all_mb_metrics": {name: [value] for name, value in metrics.items()}}
