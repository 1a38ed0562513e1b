"""A small Hugging Face model on the CPU, as NeMo RL's policy configuration asks for it: whole, or under LoRA adapters."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from agent_rft.contracts.errors import UserError
from agent_rft.training.pretrained import SOURCE, check_folder, first_line, looks_local

transformers_logging.disable_progress_bar()

ADAPTERS = "adapter_config.json"
"""A folder that holds this holds adapters alone."""


class CpuModel(msgspec.Struct):
    model: PreTrainedModel
    """The model itself, adapters at work inside it where there are any."""
    adapters: PeftModel | None = None

    def weights(self) -> dict[str, Tensor]:
        """By the plain model's names, adapters added in beside the base, which stays as it is. Tied weights come once."""
        plain: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if ".lora_" in name or name.endswith(".base_layer"):
                continue
            adapted = module if isinstance(module, LoraLinear) else None
            for key, weight in (adapted.get_base_layer() if adapted else module).named_parameters(recurse=False):
                added = adapted.get_delta_weight("default") if adapted and key == "weight" else 0.0
                plain[f"{name}.{key}" if name else key] = (weight + added).detach().clone()
        return plain

    def take_over(self, weights: dict[str, Tensor]) -> None:
        """Of a plain model of the same kind; what is tied to another weight follows it."""
        own = dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)

    @contextlib.contextmanager
    def without_adapters(self) -> Generator[PreTrainedModel]:
        """The base under its adapters."""
        if self.adapters is None:
            raise UserError("reference.engine=adapter_off needs adapters, and the whole model is trained", "set model.lora, or use builtin")
        with self.adapters.disable_adapter():
            yield self.model

    def save(self, folder: str) -> None:
        """In the layout that Hugging Face loads; of a model with adapters only these."""
        (self.adapters or self.model).save_pretrained(folder)


def load_policy(config: dict[str, Any], weights: str | None, seed: int) -> CpuModel:
    """The model that learns: the base, under fresh adapters where they are asked for; or a checkpoint of it."""
    lora: dict[str, Any] = config["dtensor_cfg"].get("lora_cfg") or {"enabled": False}
    base = config["model_name"]
    if not lora["enabled"]:
        return CpuModel(_load(weights or base))
    model = _load(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about peft's use of transformers: not ours to mend
        if weights:
            return CpuModel(model, PeftModel.from_pretrained(model, weights, is_trainable=True))
        torch.manual_seed(seed)
        return CpuModel(model, _add_lora(model, lora))


def load_frozen(path: str) -> CpuModel:
    """A model that only speaks. A folder of adapters names its base itself."""
    if not (Path(path) / ADAPTERS).is_file():
        loaded = CpuModel(_load(path))
    else:
        base = str(LoraConfig.from_pretrained(path).base_model_name_or_path)
        model = _load(base)
        loaded = CpuModel(model, PeftModel.from_pretrained(model, path))
    loaded.model.requires_grad_(False)
    return loaded


def _load(path: str) -> PreTrainedModel:
    if looks_local(path):
        check_folder(Path(path))
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except Exception as error:  # hub, network, configuration and weights each fail in their own ways
        raise UserError(f"model {path} could not be loaded: {first_line(error)}", SOURCE) from error
    return model.eval()  # never in training mode: the policy that learns must be the one that spoke, so no dropout


def _add_lora(model: PreTrainedModel, lora: dict[str, Any]) -> PeftModel:
    every = lora.get("match_all_linear") or not lora["target_modules"]
    config = LoraConfig(
        r=lora["dim"],
        lora_alpha=lora["alpha"],
        target_modules="all-linear" if every else list(lora["target_modules"]),
        exclude_modules=list(lora.get("exclude_modules") or []) or None,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)  # pyright: ignore[reportReturnType]
    except ValueError as error:
        raise UserError(
            f"LoRA does not fit {type(model).__name__}: {first_line(error)}", "name its layers in model.lora.target_modules"
        ) from error
