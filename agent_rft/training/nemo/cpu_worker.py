"""The policy on the CPU, as one of the worker classes that NeMo RL's own Policy and RayWorkerGroup drive.

For small models, and to prove everything but the GPUs: NeMo RL's loss, its optimizer and scheduler settings, its batches
and what it expects back are used as they are. The gradient of a batch is a sum over its rows, so rows are taken in the
order of their length, and those of which no token counts are left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import ray
import torch
from hydra.utils import get_class
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from agent_rft.training.nemo.cpu_model import CpuModel, load_frozen, load_policy
from agent_rft.training.nemo.cpu_sampler import CpuSampler, Said

THREADS = 1
"""Policy, generation and environments share the cores."""
STATE = "training.pt"


class Scored(msgspec.Struct):
    """What the model thinks of a micro-batch's tokens: a row's next token at each position, 0 where none counts."""

    logprobs: Tensor
    entropy: float
    """Summed over the tokens that count; only where there is something to learn."""


class CpuPolicyWorkerImpl:
    """Weights, optimizer and, where asked for, a frozen copy of the base. NeMo RL gives the names of the arguments."""

    def __init__(
        self,
        config: dict[str, Any],
        init_optimizer: bool = True,
        weights_path: str | None = None,
        optimizer_path: str | None = None,
        init_reference_model: bool = True,
        **unused: Any,
    ) -> None:
        self.cfg = config
        self._seed = int(config.get("seed", 0))
        self._policy = load_policy(config, weights_path, self._seed)
        self._frozen = load_frozen(config["model_name"]) if init_reference_model else None
        self._updates = 0
        self._sampler: CpuSampler | None = None
        if init_optimizer:
            self._trained = [weight for weight in self._policy.model.parameters() if weight.requires_grad]
            self._optimizer = get_class(config["optimizer"]["name"])(self._trained, **config["optimizer"]["kwargs"])
            self._scheduler = scheduler_of(self._optimizer, config.get("scheduler"))
        if optimizer_path:
            self._restore(Path(optimizer_path))

    # --- learning --------------------------------------------------------------------------------------------------

    def train(
        self,
        data: Any,
        loss_fn: Any,
        eval_mode: bool = False,
        gbs: int | None = None,
        mbs: int | None = None,
        check_dim_skip_keys: Iterable[str] | None = None,
    ) -> dict[str, Any]:
        """One optimizer step a global batch, as long as loss and gradient are numbers; what they were is answered as it is."""
        gbs = gbs or int(self.cfg["train_global_batch_size"])
        mbs = mbs or int(self.cfg["train_micro_batch_size"])
        losses: list[float] = []
        norms: list[float] = []
        metrics: dict[str, list[float]] = defaultdict(list)
        for index in range(data.size // gbs):
            batch = data.get_batch(batch_idx=index, batch_size=gbs)
            losses.append(self._accumulate(batch, loss_fn, mbs, metrics, learn=not eval_mode))
            norms.append(0.0 if eval_mode else self._step(losses[-1]))
            if not math.isfinite(losses[-1] + norms[-1]):
                break
        else:
            if not eval_mode:
                self._scheduler.step()
                self._updates += 1
        return {
            "global_loss": torch.tensor(losses),
            "grad_norm": torch.tensor(norms),
            "all_mb_metrics": dict(metrics),
            "gpu_name": "cpu",
            "model_dtype": torch.float32,
        }

    def _accumulate(self, batch: Any, loss_fn: Any, mbs: int, metrics: dict[str, list[float]], learn: bool) -> float:
        """Add the batch's gradient to the weights' `grad`; answers its loss."""
        sums = {
            "global_valid_seqs": batch["sample_mask"].sum(),
            "global_valid_toks": (batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]).sum(),
        }
        total = 0.0
        with torch.set_grad_enabled(learn):
            for rows in by_length(batch, mbs):
                part = cut(batch, rows)
                scored = self._score(self._policy.model, part)
                loss, said = loss_fn(next_token_logprobs=scored.logprobs, data=part, **sums)
                if learn:
                    loss.backward()
                total += float(loss.detach())
                said |= {name: float(value) for name, value in sums.items()} | self._seen(part, scored, loss_fn, sums["global_valid_toks"])
                for name, value in said.items():
                    metrics[name].append(value)
        return total

    def _seen(self, part: Any, scored: Scored, loss_fn: Any, tokens: Tensor) -> dict[str, float]:
        """What NeMo RL's loss does not tell; sums over micro-batches are means over tokens."""
        seen = {"entropy": scored.entropy / float(tokens), "lr": float(self._optimizer.param_groups[0]["lr"])}
        if not loss_fn.force_on_policy_ratio:
            moved = (scored.logprobs.detach() - part["prev_logprobs"][:, 1:]).exp() - 1
            clipped = (moved < -loss_fn.ratio_clip_min) | (moved > loss_fn.ratio_clip_max)
            seen["clip_fraction"] = float((clipped & counted(part)).sum() / tokens)
        return seen

    def _step(self, loss: float) -> float:
        """Clip and step, unless that would break the weights; answers the gradient's norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._trained, self.cfg["max_grad_norm"]))
        if math.isfinite(loss) and math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    # --- scoring ---------------------------------------------------------------------------------------------------

    def get_logprobs(self, data: Any, micro_batch_size: int | None = None) -> Any:
        return _batch_of(logprobs=self._logprobs(self._policy.model, data, micro_batch_size))

    def get_reference_policy_logprobs(self, data: Any, micro_batch_size: int | None = None) -> Any:
        """By the frozen copy; without one, by the policy without its adapters, which is the same base."""
        if self._frozen is not None:
            return _batch_of(reference_logprobs=self._logprobs(self._frozen.model, data, micro_batch_size))
        with self._policy.without_adapters() as base:
            return _batch_of(reference_logprobs=self._logprobs(base, data, micro_batch_size))

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, data: Any, micro_batch_size: int | None) -> Tensor:
        """[row, position] with 0 for the first token, and wherever the batch says that a token does not count."""
        told = torch.zeros(data["input_ids"].shape)
        for rows in by_length(data, micro_batch_size or self.cfg["logprob_batch_size"]):
            scored = self._score(model, cut(data, rows))
            told[rows, 1 : 1 + scored.logprobs.shape[1]] = scored.logprobs
        return told

    def _score(self, model: PreTrainedModel, part: Any) -> Scored:
        """The vocabulary is computed at positions whose next token counts in some row. Padding lies at the rows' ends,
        where causal attention never looks."""
        ids, wanted = part["input_ids"], counted(part)
        columns = wanted.any(0).nonzero()[:, 0]
        logits = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=columns).logits
        every = (logits[wanted[:, columns]].float() / self.cfg["generation"]["temperature"]).log_softmax(-1)
        logprobs = torch.zeros(wanted.shape)
        logprobs[wanted] = every.gather(1, ids[:, 1:][wanted][:, None])[:, 0]
        learning, every = every.requires_grad, every.detach()
        return Scored(logprobs, -float((every.exp() * every).sum()) if learning else 0.0)

    # --- speaking --------------------------------------------------------------------------------------------------

    def generate(self, data: Any, greedy: bool = False) -> Any:
        if self._sampler is None:
            self._sampler = sampler_of(self._policy, self.cfg["generation"], self.cfg["max_total_sequence_length"], self._seed)
        self._sampler.weights_changed(self._updates)
        return spoken(self._sampler, data, self.cfg["generation"]["_pad_token_id"], greedy)

    def prepare_refit_info(self) -> dict[str, Any]:
        """Whom the generation worker asks for weights: this actor."""
        return {"policy": ray.get_runtime_context().current_actor}

    def stream_weights_via_ipc_zmq(self, buffer_size_bytes: int = 0, kv_scales: Any = None) -> None:
        """Nothing to push: the generation worker fetches them through Ray, which needs no file and no second channel."""

    def weights(self) -> tuple[int, dict[str, Tensor]]:
        """How many updates made them, and the weights."""
        return self._updates, self._policy.weights()

    # --- saving ----------------------------------------------------------------------------------------------------

    def save_checkpoint(
        self, weights_path: str, optimizer_path: str | None = None, tokenizer_path: str | None = None, checkpointing_cfg: Any = None
    ) -> None:
        """`weights_path` becomes a folder that Hugging Face loads; of a model with adapters only these."""
        self._policy.save(weights_path)
        tokenizer = AutoTokenizer.from_pretrained(self.cfg["tokenizer"]["name"])
        for folder in filter(None, (weights_path, tokenizer_path)):
            tokenizer.save_pretrained(folder)
        if optimizer_path:
            Path(optimizer_path).mkdir(parents=True, exist_ok=True)
            state = {
                "updates": self._updates,
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "random": torch.get_rng_state(),
            }
            torch.save(state, Path(optimizer_path) / STATE)

    def _restore(self, folder: Path) -> None:
        state = torch.load(folder / STATE, weights_only=True)
        self._updates = state["updates"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])

    # --- what a worker on a GPU would have to do ---------------------------------------------------------------------

    def prepare_for_training(self) -> None: ...

    def prepare_for_lp_inference(self) -> None: ...

    def offload_before_refit(self) -> None: ...

    def offload_after_refit(self) -> None: ...

    def get_free_memory_bytes(self) -> int:
        """NeMo RL sizes its refit buffers by it; there are none."""
        return 0

    def report_node_ip_and_gpu_id(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), 0

    def shutdown(self) -> bool:
        return True


@ray.remote
class CpuPolicyWorker(CpuPolicyWorkerImpl):
    """The worker in a process of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        torch.set_num_threads(THREADS)
        super().__init__(*args, **kwargs)


# --- batches ---------------------------------------------------------------------------------------------------------


def counted(data: Any) -> Tensor:
    """Which positions have a next token that counts; where the batch does not say, all within their row's length."""
    if "token_mask" in data:
        return (data["token_mask"][:, 1:] * data["sample_mask"][:, None]) > 0
    return torch.arange(1, data["input_ids"].shape[1]) < data["input_lengths"][:, None]


def by_length(data: Any, size: int) -> list[list[int]]:
    """The rows of which some token counts, those of like length together."""
    lengths = data["input_lengths"].tolist()
    rows = sorted(counted(data).any(1).nonzero()[:, 0].tolist(), key=lambda row: lengths[row])
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def cut(data: Any, rows: list[int]) -> Any:
    """These rows, as wide as the longest of them."""
    width, longest = data["input_ids"].shape[1], int(data["input_lengths"][rows].max())
    tensors = {name: value[rows] for name, value in data.items() if isinstance(value, Tensor)}
    return _batch_of(**{name: value[:, :longest] if value.shape[1:2] == (width,) else value for name, value in tensors.items()})


def sampler_of(model: CpuModel, generation: dict[str, Any], longest: int, seed: int) -> CpuSampler:
    return CpuSampler(
        model.model,
        ends=generation["stop_token_ids"],
        temperature=generation["temperature"],
        max_new_tokens=generation["max_new_tokens"],
        longest=longest,
        seed=seed,
    )


def spoken(sampler: CpuSampler, data: Any, pad: int, greedy: bool) -> Any:
    """Generate from NeMo RL's batch of prompts; answers its batch of outputs."""
    asked = [row[:length] for row, length in zip(data["input_ids"].tolist(), data["input_lengths"].tolist(), strict=True)]
    return outputs(asked, sampler.generate(asked, greedy=greedy), pad)


def outputs(asked: list[list[int]], said: list[Said], pad: int) -> Any:
    lengths = torch.tensor([len(row) for row in asked])
    counts = torch.tensor([len(one.ids) for one in said])
    width = int((lengths + counts).max())
    whole = [(row + one.ids, [0.0] * len(row) + one.logprobs) for row, one in zip(asked, said, strict=True)]
    return _batch_of(
        output_ids=torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in whole]),
        logprobs=torch.tensor([logprobs + [0.0] * (width - len(logprobs)) for _, logprobs in whole]),
        generation_lengths=counts,
        unpadded_sequence_lengths=lengths + counts,
        truncated=torch.tensor([not one.ended for one in said]),
    )


def _batch_of(**tensors: Tensor) -> Any:
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    return BatchedDataDict(tensors)


def scheduler_of(optimizer: Any, config: Any) -> Any:
    """From NeMo RL's setting: one schedule; or several and a last entry that says at which steps the next takes over."""
    schedules = torch.optim.lr_scheduler
    if not config:
        return schedules.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if not isinstance(config, (list, tuple)):
        return get_class(config["name"])(optimizer, **config["kwargs"])
    parts = [get_class(part["name"])(optimizer, **part["kwargs"]) for part in config if "name" in part]
    milestones = [step for part in config for step in part.get("milestones", ())]
    return schedules.SequentialLR(optimizer, parts, milestones)
