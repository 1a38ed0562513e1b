"""How large a model is: its parameters counted from its shape, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.training import Lora


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder: attention with grouped keys and values, a gated MLP, two norms a layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    """The head is the embedding table."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """A norm on each head's query and key, as in Qwen3."""

    @property
    def query(self) -> int:
        """Width of all heads' queries together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys together, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Matrices of all layers: what is quantised, and what a token is multiplied with."""
        attention = self.hidden * self.query + 2 * self.hidden * self.key + self.query * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding_parameters(self) -> int:
        """The embedding table, and the head where it is another."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        bias = self.query + 2 * self.key if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.linear_parameters + self.layers * (bias + norms) + self.embedding_parameters + self.hidden


CATALOGUE = {
    "meta-llama/Llama-3.3-70B-Instruct": ModelShape(
        layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, intermediate=28672, vocabulary=128256
    ),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape(
        layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocabulary=152064, qkv_bias=True
    ),
    "Qwen/Qwen2.5-14B-Instruct": ModelShape(
        layers=48, hidden=5120, heads=40, kv_heads=8, head_dim=128, intermediate=13824, vocabulary=152064, qkv_bias=True
    ),
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(
        layers=64, hidden=5120, heads=40, kv_heads=8, head_dim=128, intermediate=27648, vocabulary=152064, qkv_bias=True
    ),
    "Qwen/Qwen2.5-72B-Instruct": ModelShape(
        layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, intermediate=29568, vocabulary=152064, qkv_bias=True
    ),
}
"""By Hugging Face id: the models of the recipes, so that a plan needs no network."""

NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def shape_of_config(config: Mapping[str, Any], where: str) -> ModelShape:
    """A model's config.json as a shape. `where` names it in errors."""
    text: Mapping[str, Any] = config.get("text_config") or config
    if experts := [key for key in EXPERTS if text.get(key)]:
        raise UserError(f"{where} has {experts[0]}: a mixture of experts, and the plan counts dense models only", "plan a dense model")
    if missing := [key for key in NEEDED if not isinstance(text.get(key), int)]:
        raise UserError(f"{where} does not say {', '.join(missing)}", "it should be a decoder's config.json as transformers writes it")
    kind, heads, hidden = str(text.get("model_type", "")), int(text["num_attention_heads"]), int(text["hidden_size"])
    return ModelShape(
        layers=int(text["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        intermediate=int(text["intermediate_size"]),
        vocabulary=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        qkv_bias=kind == "qwen2" or bool(text.get("attention_bias")),
        qk_norm=kind == "qwen3",
    )


def lora_parameters(shape: ModelShape, lora: Lora, fused: bool) -> int:
    """Of all adapters: two thin matrices beside each linear layer, rank x inputs and outputs x rank.

    `fused`: Megatron holds q, k and v as one matrix, gate and up as another, and puts one pair of adapters on each, so
    the pair on the inputs is shared and there are fewer parameters for the same rank.
    """
    hidden, query, key, inner = shape.hidden, shape.query, shape.key, shape.intermediate
    named = set(lora.target_modules)
    if fused:
        groups = ({"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"})
        widths = (hidden + query + 2 * key, query + hidden, hidden + 2 * inner, inner + hidden)
        return shape.layers * lora.rank * sum(width for group, width in zip(groups, widths, strict=True) if group & named)
    width_of = {
        "q_proj": hidden + query,
        "k_proj": hidden + key,
        "v_proj": hidden + key,
        "o_proj": query + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    return shape.layers * lora.rank * sum(width for name, width in width_of.items() if name in named)
