"""A Hugging Face causal language model with what is needed to let it speak and learn. Faults in what the user named are theirs."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.training import Lora
from agent_rft.contracts.training import Model as ModelSpec
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.local.sampler import LocalSampler, verify
from agent_rft.training.pretrained import SOURCE, check_folder, first_line, load_tokenizer, looks_local, template_of

if TYPE_CHECKING:
    from agent_rft.training.local.vllm_sampler import VllmSampler

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
transformers_logging.disable_progress_bar()  # the run has a table of its own


class Policy(msgspec.Struct):
    """A model that speaks; and learns, where its weights ask for gradients."""

    model: PreTrainedModel
    """The model itself, adapters at work inside it where there are any."""
    adapters: PeftModel | None
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    turn_ends: tuple[int, ...]
    path: str
    """Where the weights, but for adapters, were loaded from."""
    trainable: bool

    @property
    def learns(self) -> bool:
        """Its weights are, or may become, others than those at `path`."""
        return self.trainable or self.adapters is not None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """As a plain checkpoint would name them, adapters added in. The base itself is left alone: adding adapters to it
        and taking them off again would round it a little further each time, and it is the reference. Tied weights come once."""
        seen = set[int]()
        for name, module in self.model.named_modules():
            if ".lora_" in name or name.endswith(".base_layer"):
                continue
            adapted = module if isinstance(module, LoraLinear) else None
            for key, weight in (adapted.get_base_layer() if adapted else module).named_parameters(recurse=False):
                if id(weight) in seen:
                    continue
                seen.add(id(weight))
                added = adapted.get_delta_weight("default") if adapted and key == "weight" else None
                yield f"{name}.{key}", weight.detach() if added is None else weight.detach() + added.detach()

    def save(self, folder: Path) -> None:
        """In the layout that Hugging Face loads; of a model with adapters only these."""
        (self.adapters or self.model).save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))

    @contextlib.contextmanager
    def without_adapters(self) -> Generator[PreTrainedModel]:
        """The base under its adapters: the frozen reference, for free."""
        if self.adapters is None:
            raise ValueError("a model without adapters has no base under it")
        with self.adapters.disable_adapter():
            yield self.model


def load_policy(spec: ModelSpec, *, checkpoint: Path | None, trainable: bool, seed: int = 0) -> Policy:
    """The base, or a checkpoint of it. With `trainable` the weights, or fresh adapters on them, can learn."""
    device = device_of(spec.device)
    dtype = dtype_of(spec, full_training=trainable and spec.lora is None)
    whole = str(checkpoint) if checkpoint and not spec.lora else spec.path
    model, tokenizer = load_model(whole, dtype), load_tokenizer(whole)
    template, turn_ends = template_of(tokenizer, model.generation_config)
    silence_dropout(model)
    model.to(device)  # pyright: ignore[reportArgumentType]
    adapters = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about peft's use of transformers: not ours to mend
        if spec.lora and checkpoint:
            adapters = PeftModel.from_pretrained(model, checkpoint, is_trainable=trainable)
        elif spec.lora and trainable:
            adapters = add_lora(model, spec.lora, seed)
    if not trainable:
        model.requires_grad_(False)
    model.eval()
    return Policy(model, adapters, tokenizer, template, turn_ends, whole, trainable)


def load_model(path: str, dtype: torch.dtype) -> PreTrainedModel:
    if looks_local(path):
        check_folder(Path(path))
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except Exception as error:  # hub, network, configuration and weights each fail in their own ways
        raise UserError(f"model {path} could not be loaded: {first_line(error)}", SOURCE) from error


def add_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Adapters that change nothing yet. They stay float32 on a bfloat16 base: small updates would be rounded away."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    try:
        return get_peft_model(model, config)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise UserError(
            f"LoRA does not fit {type(model).__name__}: {first_line(error)}", "set model.lora.target_modules to names of its layers"
        ) from error


def silence_dropout(model: nn.Module) -> None:
    """The policy that learns must be the policy that spoke: no dropout in either."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


def device_of(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"model.device={name}, but no CUDA GPU is to be found", "use model.device=cpu, or a machine with a GPU and its torch"
        )
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device={name} is no device", "cpu or cuda") from error


def dtype_of(spec: ModelSpec, *, full_training: bool) -> torch.dtype:
    """bfloat16 cannot hold an update of 1e-5, so weights that are trained whole stay float32 (TF32 in the arithmetic)."""
    if spec.dtype not in DTYPES:
        raise UserError(f"model.dtype={spec.dtype}", f"one of: {', '.join(DTYPES)}")
    if spec.dtype == "bfloat16" and not spec.device.startswith("cuda"):
        raise UserError("model.dtype=bfloat16 needs a CUDA GPU", "use model.dtype=float32 on a CPU")
    if full_training and spec.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        return torch.float32
    return DTYPES[spec.dtype]


def use_threads(threads: int | None) -> None:
    """As many as there are cores that this process may run on; a second thread on a core only gets in the way."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), len(os.sched_getaffinity(0))))


def sampler_of(policy: Policy, spec: ModelSpec, temperature: float, checkpoint: Callable[[], str]) -> LocalSampler | VllmSampler:
    """The sampler that was chosen, speaking as this policy."""
    if spec.sampler == "vllm":
        from agent_rft.training.local.vllm_sampler import VllmSampler

        return VllmSampler(
            policy.path,
            policy.tokenizer,
            policy.template,
            policy.turn_ends,
            temperature=temperature,
            checkpoint=checkpoint,
            dtype=spec.dtype,
            weights=policy.weights if policy.learns else None,
        )
    verify(policy.model)
    return LocalSampler(policy.model, policy.tokenizer, policy.template, policy.turn_ends, temperature=temperature, checkpoint=checkpoint)
