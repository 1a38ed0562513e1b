"""A training job and its layout, said in NeMo RL's words: its whole configuration, and nothing run."""

from __future__ import annotations

from collections.abc import Sequence

from agent_rft.contracts.layouts import Layout
from agent_rft.contracts.rollouts import Limits
from agent_rft.contracts.training import Lora, Model, TrainingJob
from agent_rft.training.nemo.config_tree import Tree, leaves, put
from agent_rft.training.nemo.layout import megatron_modules, padded_length, sequence_multiple

BETAS = (0.9, 0.95)
EPSILON = 1e-8
LOGPROB_CHUNK = 1024
"""Positions whose logits are held in float32 at once: of a whole trajectory they would take gigabytes."""
GPU_LOG_SECONDS = 10


def nemo_config(job: TrainingJob, layout: Layout, turn_ends: Sequence[int], steps: int) -> Tree:
    """turn_ends: the tokens that end a turn of the model. steps: of the whole run; each has a full batch.

    The launcher feeds rows that are shuffled and cut to whole batches already, so nothing shuffles or repeats here.
    """
    config: Tree = {
        "grpo": _grpo(job, steps),
        "loss_fn": _loss(job, layout),
        "policy": _policy(job, layout, turn_ends),
        "data": _data(job, layout),
        "env": {},
        "logger": _logger(job, layout),
        "cluster": {"gpus_per_node": max(1, layout.cluster.gpus_per_node), "num_nodes": layout.cluster.nodes},
        "checkpointing": _checkpointing(job),
        "data_plane": None,
    }
    for key, value in leaves(layout.overrides):
        put(config, key, value)
    return config


def _grpo(job: TrainingJob, steps: int) -> Tree:
    algorithm = job.algorithm
    return {
        "num_prompts_per_step": algorithm.batch_size,
        "num_generations_per_prompt": algorithm.rollouts_per_prompt,
        "max_rollout_turns": job.limits.max_turns,
        "max_num_epochs": 1,
        "max_num_steps": steps,
        "seed": job.seed,
        **_validation(job),
        "normalize_rewards": True,
        "use_leave_one_out_baseline": False,
        "adv_estimator": {"name": "grpo", "normalize_rewards": True, "use_leave_one_out_baseline": False},
        "overlong_filtering": False,
        "use_dynamic_sampling": False,
        "batch_multiplier": 1,
        "reward_shaping": {"enabled": False},
        "reward_scaling": {"enabled": False},
        "seq_logprob_error_threshold": None,
        "async_grpo": {"enabled": False, "max_trajectory_age_steps": 1},
    }


def _validation(job: TrainingJob) -> Tree:
    """Every try of every validation row: NeMo RL runs max_val_samples // val_batch_size batches, so the first is rounded up.

    A batch of validation is as large as a step's, which is known to fit.
    """
    tries = len(job.val_rows) * job.val_samples
    batch = min(tries, _rollouts_a_step(job))
    return {
        "val_period": job.evaluate_every,
        "val_at_start": True,
        "val_at_end": True,
        "val_batch_size": batch,
        "max_val_samples": -(-tries // batch) * batch,
    }


def _loss(job: TrainingJob, layout: Layout) -> Tree:
    """The local engine's loss, term by term. Without a KL penalty NeMo RL loads no reference."""
    algorithm = job.algorithm
    return {
        "reference_policy_kl_penalty": algorithm.kl_coef,
        "reference_policy_kl_type": "k3",
        "kl_input_clamp_value": 20.0,
        "kl_output_clamp_value": 10.0,
        "use_kl_in_reward": False,
        "use_on_policy_kl_approximation": False,
        "ratio_clip_min": algorithm.clip_ratio,
        "ratio_clip_max": algorithm.clip_ratio,
        "ratio_clip_c": None,
        "token_level_loss": True,
        "sequence_level_importance_ratios": False,
        "disable_ppo_ratio": False,
        "use_cispo": False,
        "force_on_policy_ratio": False,
        "positive_example_nll_weight": 0.0,
        # vLLM's kernels sample from slightly other probabilities than Megatron's train; a CPU worker's are the same.
        "use_importance_sampling_correction": layout.workers == "megatron",
        # no token may outweigh the rest of its batch because the two disagree about it
        "truncated_importance_sampling_type": "tis" if layout.workers == "megatron" else None,
        "truncated_importance_sampling_ratio": 2.0 if layout.workers == "megatron" else None,
        "truncated_importance_sampling_ratio_min": None,
    }


def _policy(job: TrainingJob, layout: Layout, turn_ends: Sequence[int]) -> Tree:
    on_cpu = layout.workers == "cpu"
    return {
        "model_name": job.model.path,
        "tokenizer": {"name": job.model.path, "chat_template_kwargs": None},
        "hf_config_overrides": {},
        "train_global_batch_size": _rollouts_a_step(job),
        "train_micro_batch_size": layout.micro_batch,
        "logprob_batch_size": layout.micro_batch,
        "logprob_chunk_size": None if on_cpu else LOGPROB_CHUNK,
        "max_total_sequence_length": padded_length(job.limits, layout),
        "make_sequence_length_divisible_by": sequence_multiple(layout),
        "precision": job.model.dtype,
        "max_grad_norm": job.algorithm.max_grad_norm,
        "offload_optimizer_for_logprob": False,
        "dynamic_batching": {"enabled": False},
        "sequence_packing": _packing(job, layout),
        "draft": {"enabled": False},
        "generation": generation_config(job.model, job.limits, job.algorithm.temperature, layout, turn_ends),
        **(_cpu_workers(job, layout) if on_cpu else _megatron_workers(job, layout)),
    }


def _packing(job: TrainingJob, layout: Layout) -> Tree:
    """Only where a sequence is cut over GPUs, which NeMo RL does to packed ones alone; its LoRA recipes do without."""
    if layout.parallel.context == 1:
        return {"enabled": False}
    tokens = padded_length(job.limits, layout) * layout.micro_batch
    return {
        "enabled": True,
        "train_mb_tokens": tokens,
        "logprob_mb_tokens": tokens,
        "algorithm": "modified_first_fit_decreasing",
    }


def _cpu_workers(job: TrainingJob, layout: Layout) -> Tree:
    algorithm = job.algorithm
    return {
        "megatron_cfg": {"enabled": False},
        "dtensor_cfg": {
            "enabled": True,
            "_v2": True,
            "tensor_parallel_size": 1,
            "context_parallel_size": 1,
            "sequence_parallel": False,
            "activation_checkpointing": layout.activation_checkpointing,
            "cpu_offload": False,
            "lora_cfg": _dtensor_lora(job.model.lora),
        },
        "optimizer": {
            "name": "torch.optim.AdamW",
            "kwargs": {"lr": algorithm.learning_rate, "betas": list(BETAS), "eps": EPSILON, "weight_decay": 0.0},
        },
        "scheduler": torch_schedule(algorithm.warmup_steps),
    }


def _dtensor_lora(lora: Lora | None) -> Tree:
    if lora is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "target_modules": list(lora.target_modules),
        "exclude_modules": [],
        "match_all_linear": False,
        "dim": lora.rank,
        "alpha": lora.alpha,
        "dropout": 0.0,
        "dropout_position": "post",
        "lora_A_init": "xavier",
        "use_triton": False,
    }


def torch_schedule(warmup: int) -> list[Tree]:
    """training.schedule.learning_rate as torch's schedulers in a row, each from the step that a milestone names."""
    constant: Tree = {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 1}}
    if warmup <= 1:
        return [constant, {"milestones": []}]
    rising: Tree = {"start_factor": 1 / warmup, "end_factor": 1.0, "total_iters": warmup - 1}
    return [{"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": rising}, constant, {"milestones": [warmup - 1]}]


def _megatron_workers(job: TrainingJob, layout: Layout) -> Tree:
    return {
        "dtensor_cfg": {"enabled": False},
        "optimizer": None,
        "scheduler": None,
        "megatron_cfg": {
            "enabled": True,
            **_megatron_parallel(job, layout),
            **_megatron_without_experts(),
            "empty_unused_memory_level": 1,
            "activation_checkpointing": layout.activation_checkpointing,
            "defer_fp32_logits": True,
            "apply_rope_fusion": True,
            "bias_activation_fusion": True,
            "gradient_accumulation_fusion": False,
            "use_fused_weighted_squared_relu": False,
            "peft": _megatron_lora(job.model.lora),
            "optimizer": _megatron_optimizer(job, layout),
            "scheduler": megatron_schedule(job.algorithm.learning_rate, job.algorithm.warmup_steps),
            "distributed_data_parallel_config": {
                "grad_reduce_in_fp32": False,
                "overlap_grad_reduce": True,
                "overlap_param_gather": True,
                "use_custom_fsdp": False,
                "data_parallel_sharding_strategy": "optim_grads_params",
            },
        },
    }


def _megatron_parallel(job: TrainingJob, layout: Layout) -> Tree:
    parallel = layout.parallel
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.tensor > 1,
        "pipeline_dtype": job.model.dtype,
        "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": None,
    }


def _megatron_without_experts() -> Tree:
    """The worker reads these of every model; the models of our recipes have no experts."""
    return {
        "expert_tensor_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "freeze_moe_router": False,
        "moe_router_dtype": "fp64",
        "moe_router_load_balancing_type": "none",
        "moe_router_bias_update_rate": 0.0,
        "moe_permute_fusion": False,
        "moe_enable_deepep": False,
        "moe_token_dispatcher_type": "alltoall",
        "moe_shared_expert_overlap": False,
        "moe_per_layer_logging": False,
    }


def _megatron_lora(lora: Lora | None) -> Tree:
    if lora is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "target_modules": megatron_modules(lora.target_modules),
        "exclude_modules": [],
        "dim": lora.rank,
        "alpha": lora.alpha,
        "dropout": 0.0,
        "dropout_position": "post",
        "lora_A_init_method": "xavier",
        "lora_B_init_method": "zero",
        "a2a_experimental": False,
        "lora_dtype": None,
    }


def _megatron_optimizer(job: TrainingJob, layout: Layout) -> Tree:
    """min_lr is the peak: nothing decays."""
    algorithm = job.algorithm
    return {
        "optimizer": "adam",
        "lr": algorithm.learning_rate,
        "min_lr": algorithm.learning_rate,
        "weight_decay": 0.0,
        "bf16": job.model.dtype == "bfloat16",
        "fp16": False,
        "params_dtype": "float32",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_eps": EPSILON,
        "sgd_momentum": 0.0,
        "use_distributed_optimizer": True,
        "use_precision_aware_optimizer": True,
        "clip_grad": algorithm.max_grad_norm,
        "optimizer_cpu_offload": layout.optimizer_on_cpu,
        "optimizer_offload_fraction": 1.0 if layout.optimizer_on_cpu else 0.0,
    }


def megatron_schedule(peak: float, warmup: int) -> Tree:
    """training.schedule.learning_rate as Megatron counts: it is at lr_warmup_init before the first update, not after it.

    lr_decay_iters is never reached in meaning, but must be more than the warm-up; it does not follow the length of the
    run, so that a run can be resumed for longer.
    """
    return {
        "lr_decay_style": "constant",
        "lr_decay_iters": max(1, warmup),
        "lr_warmup_iters": max(0, warmup - 1),
        "lr_warmup_init": peak / max(1, warmup),
        # what the user says on resuming holds, not what lies in the checkpoint: else Megatron refuses another rate or length
        "override_opt_param_scheduler": True,
        "start_weight_decay": 0.0,
        "end_weight_decay": 0.0,
        "weight_decay_incr_style": "constant",
    }


def generation_config(model: Model, limits: Limits, temperature: float, layout: Layout, turn_ends: Sequence[int]) -> Tree:
    generation = layout.generation
    return {
        "backend": "vllm",
        "max_new_tokens": limits.max_turn_tokens,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": None,
        "stop_token_ids": list(turn_ends),
        "stop_strings": None,
        "vllm_cfg": {
            "async_engine": generation.asynchronous,
            "precision": model.dtype,
            "kv_cache_dtype": "auto",
            "tensor_parallel_size": generation.tensor,
            "pipeline_parallel_size": 1,
            "expert_parallel_size": 1,
            "gpu_memory_utilization": generation.memory_utilization,
            "max_model_len": padded_length(limits, layout),
            "enforce_eager": False,
            "use_tqdm": False,
            "enable_vllm_metrics_logger": False,
        },
        "vllm_kwargs": {},
        "colocated": {
            "enabled": generation.colocated,
            "resources": {"gpus_per_node": generation.gpus_per_node, "num_nodes": generation.nodes},
        },
    }


def _data(job: TrainingJob, layout: Layout) -> Tree:
    """The launcher hands the rows in, so no data set is named here; and no process is forked to load them."""
    return {
        "max_input_seq_length": padded_length(job.limits, layout),
        "shuffle": False,
        "num_workers": 0,
        "use_multiple_dataloader": False,
        "train": {},
        "validation": None,
        "default": None,
    }


def _logger(job: TrainingJob, layout: Layout) -> Tree:
    project = "agent-rft"
    return {
        "log_dir": f"{job.run_dir}/nemo-logs",
        "wandb_enabled": "wandb" in layout.loggers,
        "tensorboard_enabled": "tensorboard" in layout.loggers,
        "mlflow_enabled": "mlflow" in layout.loggers,
        "swanlab_enabled": "swanlab" in layout.loggers,
        "wandb": {"project": project, "name": job.run_id},
        "swanlab": {"project": project, "name": job.run_id},
        "mlflow": {"experiment_name": project, "run_name": job.run_id},
        "tensorboard": {},
        "monitor_gpus": layout.workers == "megatron",
        "gpu_monitoring": {"collection_interval": GPU_LOG_SECONDS, "flush_interval": GPU_LOG_SECONDS},
        "num_val_samples_to_print": 0,
    }


def _checkpointing(job: TrainingJob) -> Tree:
    """No metric: NeMo RL then keeps the newest. With one, it would keep the best and could not resume a run's end."""
    return {
        "enabled": True,
        "checkpoint_dir": f"{job.run_dir}/checkpoints",
        "metric_name": None,
        "higher_is_better": True,
        "keep_top_k": job.keep_checkpoints,
        "save_period": job.checkpoint_every,
        "save_optimizer": True,
        "checkpoint_must_save_by": None,
    }


def _rollouts_a_step(job: TrainingJob) -> int:
    return job.algorithm.batch_size * job.algorithm.rollouts_per_prompt
