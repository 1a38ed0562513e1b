"""Which keys of NeMo RL's are not a user's to override: those that a setting of ours decides. Written past it, they would
part training from what guards, job cards, resume and the memory plan take it to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_rft.contracts.errors import Fault
from agent_rft.training.nemo.config_tree import OVERRIDES, leaves

DECIDED = {
    "grpo": "algorithm.*, evaluation.* and seed",
    "grpo.num_prompts_per_step": "algorithm.batch_size",
    "grpo.num_generations_per_prompt": "algorithm.group_size",
    "grpo.max_num_steps": "algorithm.max_steps",
    "grpo.max_num_epochs": "algorithm.epochs",
    "grpo.max_rollout_turns": "task.limits.max_turns",
    "grpo.seed": "seed",
    "grpo.val_period": "evaluation.every",
    "loss_fn.reference_policy_kl_penalty": "algorithm.kl_coef",
    "loss_fn.ratio_clip_min": "algorithm.clip_ratio",
    "data": "task.train and task.val",
    "env": "tools.* and grader.*",
    "cluster": "cluster.*",
    "checkpointing": "backend.checkpoint_every and backend.keep_checkpoints",
    "logger.log_dir": "run.folder",
    "policy.model_name": "model.path",
    "policy.tokenizer": "model.path",
    "policy.precision": "model.dtype",
    "policy.max_grad_norm": "algorithm.max_grad_norm",
    "policy.max_total_sequence_length": "task.limits.max_trajectory_tokens",
    "policy.train_global_batch_size": "algorithm.batch_size",
    "policy.train_micro_batch_size": "backend.nemo.micro_batch",
    "policy.logprob_batch_size": "backend.nemo.micro_batch",
    "policy.dtensor_cfg": "backend.nemo.workers",
    "policy.optimizer": "algorithm.learning_rate",
    "policy.scheduler": "algorithm.warmup_steps",
    "policy.generation.backend": "backend.nemo.workers",
    "policy.generation.max_new_tokens": "task.limits.max_turn_tokens",
    "policy.generation.temperature": "algorithm.temperature",
    "policy.generation.stop_token_ids": "model.path, whose chat template ends the turn",
    "policy.generation.stop_strings": "model.path, whose chat template ends the turn",
    "policy.generation.colocated": "backend.nemo.generation.colocated",
    "policy.generation.vllm_cfg.async_engine": "backend.nemo.generation.asynchronous",
    "policy.generation.vllm_cfg.precision": "model.dtype",
    "policy.generation.vllm_cfg.tensor_parallel_size": "backend.nemo.generation.tensor",
    "policy.generation.vllm_cfg.gpu_memory_utilization": "backend.nemo.generation.memory_utilization",
    "policy.generation.vllm_cfg.max_model_len": "task.limits.max_trajectory_tokens",
    "policy.megatron_cfg.enabled": "backend.nemo.workers",
    "policy.megatron_cfg.tensor_model_parallel_size": "backend.nemo.tensor",
    "policy.megatron_cfg.pipeline_model_parallel_size": "backend.nemo.pipeline",
    "policy.megatron_cfg.context_parallel_size": "backend.nemo.context",
    "policy.megatron_cfg.activation_checkpointing": "backend.nemo.activation_checkpointing",
    "policy.megatron_cfg.peft.enabled": "model.lora",
    "policy.megatron_cfg.peft.target_modules": "model.lora.target_modules",
    "policy.megatron_cfg.peft.dim": "model.lora.rank",
    "policy.megatron_cfg.peft.alpha": "model.lora.alpha",
    "policy.megatron_cfg.optimizer.lr": "algorithm.learning_rate",
    "policy.megatron_cfg.optimizer.clip_grad": "algorithm.max_grad_norm",
    "policy.megatron_cfg.optimizer.optimizer_cpu_offload": "backend.nemo.optimizer_on_cpu",
    "policy.megatron_cfg.scheduler.lr_warmup_iters": "algorithm.warmup_steps",
}
"""A section stands for all that is in it and is not named by itself."""


def decided_keys(overrides: Mapping[str, Any]) -> list[Fault]:
    """Overrides that a setting of ours should make instead."""
    found = ((key, _setting(key)) for key, _ in leaves(overrides))
    return [Fault(f"{OVERRIDES}.{key}", f"is decided by {setting}", f"set {setting} instead") for key, setting in found if setting]


def _setting(key: str) -> str | None:
    parts = key.split(".")
    names = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((DECIDED[name] for name in names if name in DECIDED), None)
