"""The formulas that both engines' plans stand on, each with its reason. Bytes, unless the name says otherwise."""

from __future__ import annotations

from agent_rft.contracts.layouts import ReferenceWeights
from agent_rft.planning.setup import GB, Item
from agent_rft.planning.shapes import ModelShape

BF16, FP32 = 2, 4
ADAM_FP32 = 8
"""Adam's two moments, float32."""
MASTER_AND_ADAM = 12
"""Of a weight that is trained in bfloat16: a float32 copy that small updates are not lost in, and Adam's two moments."""
PROMPT_LOGPROBS = 6
"""vLLM on each token x vocabulary it scores: the head's bfloat16 and a float32 copy."""
INT4 = 0.5 + 2.5 / 128
"""Four bits a weight; for each group of 128 a 16-bit scale and a 4-bit zero point."""

CUDA_PROCESS_GB = 2.0
"""Assumed: CUDA context, libraries' workspaces, NCCL's buffers of one process on a GPU."""
VLLM_ASLEEP_GB = 1.5
"""Assumed: what a sleeping vLLM leaves on its GPU, context and CUDA graphs."""
VLLM_WORKSPACE_GB = 3.0
"""Assumed: inside vLLM's share, for context, CUDA graphs and the activations of its largest batch."""


def kv_bytes(shape: ModelShape, width: int = BF16, tensor: int = 1) -> float:
    """Keys and values of one token on one GPU. Heads are dealt out over `tensor` GPUs; one is the least that a GPU holds."""
    heads = max(1.0, shape.kv_heads / tensor)
    return 2 * shape.layers * heads * shape.head_dim * width


def layer_bytes(shape: ModelShape, width: int = BF16, fused: bool = True) -> int:
    """What one layer keeps of one token for its backward pass.

    The inputs and outputs of both norms (4 x hidden), queries and the attention's output (2 x query), keys and values, gate,
    up and their product (3 x intermediate). Attention itself is recomputed by its kernel and keeps next to nothing.
    `fused`: as Megatron's kernels do. Layers of transformers keep the norms' float32 insides and the activated gate besides.
    """
    kept = width * (4 * shape.hidden + 2 * shape.query + 2 * shape.key + 3 * shape.intermediate)
    return kept if fused else kept + 2 * FP32 * shape.hidden + width * shape.intermediate


def activation_items(
    shape: ModelShape, tokens: float, *, layers: int, recompute: bool, tensor: int = 1, width: int = BF16, fused: bool = True
) -> tuple[Item, ...]:
    """Of `tokens` in `layers` layers. With sequence parallelism, which goes with tensor parallelism, all is cut by `tensor`."""
    one_layer = layer_bytes(shape, width, fused) * tokens / tensor / GB
    at_work = Item("layer at work", "activations", 2 * one_layer, "what a layer keeps of its tokens, and its gradients")
    if recompute:
        kept = layers * tokens * shape.hidden * width / tensor / GB
        how = f"{layers} layers' inputs x {tokens:,.0f} tokens x {shape.hidden} x {width} B{_over(tensor)}"
        return (Item("activation checkpoints", "activations", kept, how), at_work)
    how = f"everything that {layers} layers keep of {tokens:,.0f} tokens{_over(tensor)}"
    return (Item("activations", "activations", layers * one_layer, how), at_work)


def forward_item(shape: ModelShape, tokens: float) -> Item:
    """Without a backward pass nothing is kept: the layer at work is all."""
    return Item("layer at work", "activations", layer_bytes(shape) * tokens / GB, f"of {tokens:,.0f} tokens")


def logits_item(shape: ModelShape, tokens: float, *, tensor: int = 1, width: int = BF16, trained: bool = True) -> Item:
    """The head's output, in float32 for the softmax; what the backward pass needs of that; its gradient.

    The part of a model that is forgotten most often: at 150,000 words of vocabulary it is over 2 MB a token.
    """
    copies = width + FP32 + (2 * FP32 if trained else FP32)
    parts = "logits, float32 copy, softmax, gradient" if trained else "logits, float32 copy, softmax"
    how = f"{tokens:,.0f} tokens x {shape.vocabulary:,} words x {copies} B ({parts}){_over(tensor)}"
    return Item("logits", "activations", tokens * shape.vocabulary * copies / tensor / GB, how)


def reference_weights(shape: ModelShape, weights: ReferenceWeights) -> Item:
    """Quantised are the layers' matrices alone; embeddings, head, norms and biases stay bfloat16."""
    each = {"bfloat16": float(BF16), "fp8": 1.0, "int4": INT4}[weights]
    rest = shape.parameters - shape.linear_parameters
    how = f"{shape.linear_parameters / GB:.1f}B x {each:.2f} B + {rest / GB:.2f}B x 2 B"
    return Item(f"weights, {weights}", "reference", (shape.linear_parameters * each + rest * BF16) / GB, how)


def forward_flops(shape: ModelShape, context: float) -> float:
    """Of one token at the end of a `context`: two a weight it is multiplied with (embeddings are looked up, not multiplied),
    and for attention four a layer, query width and token it looks back on, which on average is half the context."""
    head = shape.vocabulary * shape.hidden
    return 2.0 * (shape.linear_parameters + head) + 4.0 * shape.layers * shape.query * context / 2


def _over(tensor: int) -> str:
    return f" / {tensor}" if tensor > 1 else ""
