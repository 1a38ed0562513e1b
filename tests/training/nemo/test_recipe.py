"""Our settings in NeMo RL's words mean the same: batches, schedule, loss, limits, checkpoints."""

from typing import Any

import pytest
from nemo_jobs import NEMO_RECIPES, job_and_layout

from agent_rft.training.nemo.recipe import megatron_schedule, nemo_config, torch_schedule
from agent_rft.training.schedule import learning_rate


def config_of(recipe: str, *overrides: str, val: int = 100, steps: int = 50) -> dict[str, Any]:
    return nemo_config(*job_and_layout(recipe, *overrides, val=val), turn_ends=[7, 9], steps=steps)


def test_the_70b_recipe_as_nemo_rl_reads_it():
    config = config_of("research_70b")
    policy, grpo = config["policy"], config["grpo"]
    assert (grpo["num_prompts_per_step"], grpo["num_generations_per_prompt"], policy["train_global_batch_size"]) == (16, 8, 128)
    assert (grpo["max_num_steps"], grpo["max_num_epochs"], grpo["max_rollout_turns"], grpo["val_period"]) == (50, 1, 16, 10)
    assert config["cluster"] == {"gpus_per_node": 8, "num_nodes": 1}
    assert (policy["train_micro_batch_size"], policy["logprob_batch_size"]) == (1, 1)
    assert (policy["max_total_sequence_length"], policy["make_sequence_length_divisible_by"]) == (8192, 8)
    megatron = policy["megatron_cfg"]
    assert (megatron["tensor_model_parallel_size"], megatron["sequence_parallel"], megatron["activation_checkpointing"]) == (8, True, True)
    assert (policy["logprob_chunk_size"], megatron["defer_fp32_logits"]) == (1024, True)
    assert megatron["peft"]["target_modules"] == ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    assert (megatron["peft"]["dim"], megatron["peft"]["alpha"], megatron["peft"]["dropout"]) == (32, 32, 0.0)
    optimizer = megatron["optimizer"]
    assert (optimizer["lr"], optimizer["min_lr"], optimizer["clip_grad"], optimizer["bf16"]) == (1e-5, 1e-5, 1.0, True)
    generation = policy["generation"]
    assert (generation["max_new_tokens"], generation["stop_token_ids"], generation["temperature"]) == (2048, [7, 9], 1.0)
    vllm = generation["vllm_cfg"]
    assert (vllm["tensor_parallel_size"], vllm["gpu_memory_utilization"], vllm["max_model_len"]) == (8, 0.5, 8192)
    assert generation["colocated"]["enabled"] is True


def test_two_nodes_generate_on_one_of_them():
    config = config_of("research_70b_2node")
    assert config["cluster"] == {"gpus_per_node": 8, "num_nodes": 2}
    assert config["policy"]["generation"]["colocated"] == {"enabled": False, "resources": {"gpus_per_node": 8, "num_nodes": 1}}


def test_cpu_workers_get_torchs_optimizer_and_no_gpu_features():
    config = config_of("research_tiny_nemo", "model.lora={rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}")
    policy = config["policy"]
    assert (policy["megatron_cfg"], policy["dtensor_cfg"]["enabled"], policy["precision"]) == ({"enabled": False}, True, "float32")
    lora = policy["dtensor_cfg"]["lora_cfg"]
    assert (lora["enabled"], lora["dim"], lora["alpha"], lora["target_modules"]) == (True, 4, 8, ["q_proj", "v_proj"])
    assert lora["match_all_linear"] is False
    assert policy["optimizer"]["kwargs"] == {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    assert config["cluster"] == {"gpus_per_node": 1, "num_nodes": 1}  # setup() asks for one, on CPU workers too
    assert config["logger"]["monitor_gpus"] is False
    assert config["loss_fn"]["use_importance_sampling_correction"] is False


def test_without_lora_every_weight_trains():
    assert config_of("research_14b", "model.lora=null")["policy"]["megatron_cfg"]["peft"] == {"enabled": False}
    assert config_of("research_tiny_nemo")["policy"]["dtensor_cfg"]["lora_cfg"] == {"enabled": False}


@pytest.mark.parametrize(
    ("rows", "tries", "batch", "most"),
    [
        (100, 1, 64, 128),  # 8 prompts x 8 = 64 at once: 100 tries are 64 + 36, two batches
        (100, 2, 64, 256),  # 200 = 3 x 64 + 8: four
        (64, 1, 64, 64),
        (40, 1, 40, 40),  # fewer than a step's rollouts: one batch of them all
        (1, 3, 3, 3),
    ],
)
def test_every_validation_try_is_validated(rows: int, tries: int, batch: int, most: int):
    grpo = config_of("research_tiny_nemo", f"evaluation.val_samples={tries}", val=rows)["grpo"]
    assert (grpo["val_batch_size"], grpo["max_val_samples"]) == (batch, most)
    assert grpo["max_val_samples"] // grpo["val_batch_size"] * grpo["val_batch_size"] >= rows * tries  # as NeMo RL rounds


def test_sequences_are_packed_only_where_they_are_cut_over_gpus():
    assert config_of("research_70b")["policy"]["sequence_packing"] == {"enabled": False}
    # 4093 tokens, tensor 2 x (2 x context 2) = 8: padded to 4096
    cut = config_of("research_14b", "backend.nemo.context=2", "backend.nemo.micro_batch=2", "task.limits.max_trajectory_tokens=4093")
    packing = cut["policy"]["sequence_packing"]
    assert (packing["enabled"], packing["train_mb_tokens"], packing["logprob_mb_tokens"]) == (True, 8192, 8192)
    assert cut["policy"]["max_total_sequence_length"] == 4096


def test_the_optimizer_moves_to_the_cpu_whole():
    optimizer = config_of("research_14b", "backend.nemo.optimizer_on_cpu=true")["policy"]["megatron_cfg"]["optimizer"]
    assert (optimizer["optimizer_cpu_offload"], optimizer["optimizer_offload_fraction"]) == (True, 1.0)


def test_loggers_and_folders_follow_the_run():
    config = config_of("research_14b", "backend.nemo.loggers=[wandb, mlflow]")
    logger = config["logger"]
    assert [logger[f"{name}_enabled"] for name in ("wandb", "tensorboard", "mlflow", "swanlab")] == [True, False, True, False]
    assert (logger["wandb"]["name"], logger["mlflow"]["run_name"], logger["log_dir"]) == ("run-1", "run-1", "runs/run-1/nemo-logs")
    assert config["checkpointing"]["checkpoint_dir"] == "runs/run-1/checkpoints"
    assert (config["checkpointing"]["keep_top_k"], config["checkpointing"]["metric_name"]) == (2, None)


def test_overrides_come_last():
    config = config_of("research_14b", "backend.nemo.overrides.policy.megatron_cfg.optimizer.weight_decay=0.01")
    optimizer = config["policy"]["megatron_cfg"]["optimizer"]
    assert (optimizer["weight_decay"], optimizer["lr"]) == (0.01, 1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
def test_torchs_schedulers_give_our_learning_rate(warmup: int):
    """Built and stepped as NeMo RL's own worker does: one step of theirs after each update."""
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    *parts, last = torch_schedule(warmup)
    schedulers = [getattr(torch.optim.lr_scheduler, part["name"].rpartition(".")[2])(optimizer, **part["kwargs"]) for part in parts]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, last["milestones"])
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([learning_rate(step, 1e-4, warmup) for step in range(8)], rel=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
def test_megatrons_scheduler_gives_our_learning_rate(warmup: int):
    """Megatron counts samples: both its warm-up and each step are the batch size times ours, here 128."""
    schedule, batch, peak = megatron_schedule(1e-4, warmup), 128, 1e-4
    rise, first = schedule["lr_warmup_iters"] * batch, schedule["lr_warmup_init"]

    def megatron(samples: int) -> float:
        return first + (peak - first) * samples / rise if rise > 0 and samples <= rise else peak

    assert [megatron(step * batch) for step in range(8)] == pytest.approx([learning_rate(step, peak, warmup) for step in range(8)])
    assert rise < schedule["lr_decay_iters"] * batch  # Megatron asserts it
    assert first <= peak


def required(kind: Any, value: Any, above: str, missing: list[str]) -> list[str]:
    """Keys that a typed dict of NeMo RL's requires and a value lacks, all the way down."""
    from typing import get_args, get_type_hints

    choices = [choice for choice in (kind, *get_args(kind)) if hasattr(choice, "__required_keys__")]
    if not isinstance(value, dict) or not choices:
        return missing
    lacking = {choice: [key for key in choice.__required_keys__ if key not in value] for choice in choices}
    nearest = min(choices, key=lambda choice: len(lacking[choice])) if value.get("enabled") is not True else choices[0]
    missing += [f"{above}.{key}" for key in lacking[nearest]]
    for key, hint in get_type_hints(nearest).items():
        required(hint, value.get(key), f"{above}.{key}", missing)
    return missing


@pytest.mark.nemo
@pytest.mark.parametrize("recipe", NEMO_RECIPES)
def test_nemo_rl_takes_the_whole_config_and_gives_it_back(nemo_rl: None, recipe: str):
    from nemo_rl.algorithms.grpo import MasterConfig
    from nemo_rl.models.generation.vllm.config import VllmConfig

    config = config_of(recipe)
    master = MasterConfig(**config)
    kept = master.model_dump()
    assert {key: kept[key] for key in config} == config
    for section in ("grpo", "policy", "data", "logger", "cluster", "checkpointing"):
        assert required(MasterConfig.model_fields[section].annotation, config[section], section, []) == []
    missing = required(VllmConfig, config["policy"]["generation"], "generation", [])
    assert missing == ["generation.vllm_cfg.skip_tokenizer_init"]  # configure_generation_config puts it in


@pytest.mark.nemo
def test_nemo_rls_loss_is_the_local_engines(nemo_rl: None):
    """Its value, and the gradient of its policy term, with clipping up and down and masked tokens."""
    import torch
    from nemo_rl.algorithms.loss.loss_functions import ClippedPGLossConfig, ClippedPGLossFn

    from agent_rft.training.local.loss import grpo_loss

    draw = torch.Generator().manual_seed(3)
    shape = (6, 9)
    old = -torch.rand(shape, generator=draw) * 3
    start, reference = (old + 0.4 * torch.randn(shape, generator=draw) for _ in range(2))
    mask = (torch.rand(shape, generator=draw) > 0.3).float()
    advantages = torch.randn((6, 1), generator=draw).expand(shape)
    data = {
        "token_mask": mask, "sample_mask": torch.ones(6), "advantages": advantages,
        "prev_logprobs": old, "generation_logprobs": old, "reference_policy_logprobs": reference,
    }  # fmt: skip
    for kl_coef in (0.0, 0.05):
        theirs, ours = (start.clone().requires_grad_() for _ in range(2))
        terms = config_of("research_tiny_nemo", f"algorithm.kl_coef={kl_coef}")["loss_fn"]
        tokens = mask[:, 1:].sum()
        loss, _ = ClippedPGLossFn(ClippedPGLossConfig(**terms))(theirs[:, 1:], data, torch.tensor(6.0), tokens)
        kept = mask[:, 1:].bool()
        cut = [tensor[:, 1:][kept] for tensor in (ours, old, reference, advantages)]
        mine = grpo_loss(*cut, clip_ratio=0.2, kl_coef=kl_coef, tokens=int(tokens)).loss
        assert loss.item() == pytest.approx(mine.item(), rel=1e-6)
        if not kl_coef:
            loss.backward()
            mine.backward()
            assert torch.allclose(theirs.grad, ours.grad, rtol=1e-5, atol=1e-8)
