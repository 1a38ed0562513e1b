"""Logits where they are wanted, and nowhere else: over a large vocabulary the last layer is most of a small model's work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CLOSE = 1e-3
"""How near the two ways must come, relative to the largest logit: they run the same operations, or not."""


class Scorer:
    """Runs a causal language model's layers on everything and its head only on chosen positions.

    Some models do more after their last layer than apply the head (scale logits, cap them). Whether this one does is
    tried once on a few tokens; if so the whole model is run and the choice made afterwards.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._parts = _parts_of(model)

    @property
    def split(self) -> bool:
        """True where the head runs by itself."""
        return self._parts is not None

    def logits(self, input_ids: Tensor, chosen: Any, **inputs: Any) -> Tensor:
        """Logits at `chosen`, any index into [row, position], in float32."""
        if self._parts is None:
            return self._model(input_ids=input_ids, **inputs).logits[chosen].float()
        decoder, head = self._parts
        return head(decoder(input_ids=input_ids, **inputs).last_hidden_state[chosen]).float()


def _parts_of(model: PreTrainedModel) -> tuple[nn.Module, nn.Module] | None:
    """Layers and head, if the one after the other is the whole model."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if not isinstance(decoder, nn.Module) or not isinstance(head, nn.Module) or decoder is model:
        return None
    with torch.no_grad():
        ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
        whole = model(input_ids=ids, use_cache=False).logits.float()
        parts = head(decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
    same = whole.shape == parts.shape and bool((whole - parts).abs().max() <= CLOSE * whole.abs().max())
    return (decoder, head) if same else None
