"""LoRA adapters taken out of a model for a moment: with the second of their two factors zero, what remains is the base."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor

from agent_rft.contracts.errors import UserError

SECOND_FACTOR = ".adapter.linear_out."
"""What Megatron Bridge calls it within a parameter's name."""


@contextmanager
def adapters_off(weights: Iterable[tuple[str, Tensor]]) -> Generator[None]:
    """`weights`: a model's named parameters. They are back to the last bit when the block ends, however it ends."""
    factors = [weight for name, weight in weights if SECOND_FACTOR in f".{name}."]
    if not factors:
        raise UserError(
            f"reference.engine=adapter_off, but no weight of the policy has '{SECOND_FACTOR.strip('.')}' in its name",
            "set model.lora, or use another reference engine",
        )
    with torch.no_grad():
        kept = [weight.detach().clone() for weight in factors]
        for weight in factors:
            weight.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(factors, kept, strict=True):
                weight.copy_(value)
