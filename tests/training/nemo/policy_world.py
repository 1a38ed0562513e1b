"""What the tests of the policy share: a NeMo RL configuration for CPU workers, and a batch of trajectories as NeMo RL has them."""

import random

import torch

from agent_rft.training.nemo.cpu_model import load_frozen

PAD = 2
ENDS = [0]


def make_config(base: str, *, lora: dict | None = None, **changes) -> dict:
    generation = {
        "backend": "vllm",
        "max_new_tokens": 12,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": None,
        "stop_token_ids": ENDS,
        "stop_strings": None,
        "vllm_cfg": {"max_model_len": 128},
        "model_name": base,
        "_pad_token_id": PAD,
    }
    config = {
        "model_name": base,
        "tokenizer": {"name": base, "chat_template_kwargs": None},
        "train_global_batch_size": 8,
        "train_micro_batch_size": 3,
        "logprob_batch_size": 3,
        "max_total_sequence_length": 128,
        "make_sequence_length_divisible_by": 1,
        "precision": "float32",
        "max_grad_norm": 1.0,
        "dynamic_batching": {"enabled": False},
        "sequence_packing": {"enabled": False},
        "draft": {"enabled": False},
        "megatron_cfg": {"enabled": False},
        "dtensor_cfg": {
            "enabled": True,
            "_v2": True,
            "tensor_parallel_size": 1,
            "context_parallel_size": 1,
            "lora_cfg": {"enabled": False} if lora is None else {"enabled": True, "match_all_linear": False, **lora},
        },
        "optimizer": {"name": "torch.optim.AdamW", "kwargs": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}},
        "scheduler": [
            {"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"start_factor": 0.5, "end_factor": 1.0, "total_iters": 1}},
            {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 1}},
            {"milestones": [1]},
        ],
        "generation": generation,
        "seed": 7,
    }
    return config | changes


LORA = {"target_modules": ["q_proj", "v_proj"], "dim": 4, "alpha": 8}


def make_loss(kl_coef: float = 0.01, **changes):
    from nemo_rl.algorithms.loss.loss_functions import ClippedPGLossConfig, ClippedPGLossFn

    return ClippedPGLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=kl_coef, **changes))


def make_batch(base: str, rows: int = 8, seed: int = 0, failed: tuple[int, ...] = ()):
    """Random trajectories of two turns each; old and reference log-probabilities a little off the base's own, as if both had
    moved. `failed` rows are masked out, as those are that infrastructure failed."""
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    source, vocabulary = random.Random(seed), 17
    lengths = [source.randint(14, 40) for _ in range(rows)]
    width = max(lengths)
    ids = torch.full((rows, width), PAD)
    mask = torch.zeros(rows, width)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor([source.randrange(3, vocabulary) for _ in range(length)])
        mask[row, 5:9] = mask[row, 12:length] = 1
    torch.manual_seed(seed)
    with torch.no_grad():
        every = load_frozen(base).model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    said = torch.zeros(rows, width)
    said[:, 1:] = every.gather(-1, ids[:, 1:, None])[..., 0]
    said = said * mask
    advantages = torch.randn(rows, 1).expand(rows, width)
    sample_mask = torch.ones(rows)
    sample_mask[list(failed)] = 0
    return BatchedDataDict(
        input_ids=ids,
        input_lengths=torch.tensor(lengths),
        generation_logprobs=said,
        prev_logprobs=said + 0.3 * torch.randn(rows, width) * mask,
        reference_policy_logprobs=said + 0.3 * torch.randn(rows, width) * mask,
        token_mask=mask,
        sample_mask=sample_mask,
        advantages=advantages,
    )
