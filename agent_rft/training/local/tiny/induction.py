"""A Qwen2 model that can copy before it has learnt anything: a two-layer induction circuit written into its first weights.

Layer 0 looks back one to four tokens: RoPE turns constant query and key biases into a score that depends on the distance alone.
Layer 1 finds the place where the current token, and the one before it, occurred earlier, and copies what came next. Left to itself a
model of this size needs thousands of steps to find that circuit; given it, it spends them on learning what to copy, and when.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from agent_rft.training.local.tiny.tokenizer import PAD, TURN_END, Kind, figures, kinds, token_id

WIDTH, LAYERS, HEADS, FEED_FORWARD = 128, 3, 4, 384
HEAD_WIDTH = WIDTH // HEADS
ROPE_BASE = 1e6
EMBEDDING_STD = 0.1
THING, KIND, SPELLING, ITSELF = 0.65, 0.45, 0.35, 0.5
"""What a token's first vector is made of: their squares sum to about one."""
MAGNITUDE = 3.0
"""How far, in standard deviations, a figure's size moves its vector along the one direction that all figures share."""
ATTENTION = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias", "v_proj.weight", "o_proj.weight")
POSITION_BIAS, POSITION_PAIRS = 6.0, 3
LOOK_BACK = 0.1
MATCH = 2.5
COPY = 0.8
QUIET = 0.3
"""Everything the circuit does not use starts this much smaller than usual."""


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, words: Sequence[Kind] = ()) -> Qwen2ForCausalLM:
    """`words` are kinds of thing, as in tokenizer.kinds, which they stand for where nothing is given, together with its figures."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=(len(tokenizer) + 15) // 16 * 16,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        initializer_range=0.04,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, TURN_END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model = Qwen2ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights = dict(model.named_parameters())
        known, sizes = (words, []) if words else (kinds(), figures())
        _embed(weights["model.embed_tokens.weight"], tokenizer, known, sizes, generator)
        _wire(weights, generator)
    return model


def _embed(
    table: torch.Tensor, tokenizer: PreTrainedTokenizerFast, kinds: Sequence[Kind], figures: Sequence[list[str]], generator: torch.Generator
) -> None:
    """A token starts as a sum: of what it names, what kind of thing that is, how it is spelled here, and itself."""
    table.normal_(0, 1, generator=generator)
    for kind in kinds:
        ids = torch.tensor([[token_id(tokenizer, form) for form in forms] for forms in kind])
        thing = torch.randn(len(kind), 1, WIDTH, generator=generator)
        alike = torch.randn(1, 1, WIDTH, generator=generator)
        spelling = torch.randn(1, ids.shape[1], WIDTH, generator=generator)
        table[ids] = THING * thing + KIND * alike + SPELLING * spelling + ITSELF * table[ids]
    size = functional.normalize(torch.randn(1, WIDTH, generator=generator))
    for kind in figures:
        ids = torch.tensor([token_id(tokenizer, figure) for figure in kind])
        place = torch.linspace(-1, 1, len(kind))[:, None]
        alike = torch.randn(1, WIDTH, generator=generator)
        table[ids] = (THING**2 + ITSELF**2) ** 0.5 * table[ids] + KIND * alike + MAGNITUDE * place * size
    table.mul_(EMBEDDING_STD)


def _wire(weights: dict[str, torch.nn.Parameter], generator: torch.Generator) -> None:
    for name, weight in weights.items():
        if name.endswith(("down_proj.weight", "o_proj.weight")):
            weight.mul_(QUIET)
    seen = _orthogonal(generator)[:HEAD_WIDTH]  # what layer 0 takes from the token it looks back at
    kept = _orthogonal(generator)  # where in the stream each of layer 0's heads leaves it
    copied = _orthogonal(generator)
    look, match = ({name: weights[f"model.layers.{layer}.self_attn.{name}"] for name in ATTENTION} for layer in (0, 1))
    for head in range(HEADS):
        rows = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        look["q_proj.weight"][rows] *= 0.2
        look["k_proj.weight"][rows] *= 0.2
        look["q_proj.bias"][rows], look["k_proj.bias"][rows] = _distance_biases(head + 1)
        look["v_proj.weight"][rows] = seen
        look["o_proj.weight"][:, rows] = LOOK_BACK * kept[:, rows]
        match["q_proj.weight"][rows], match["k_proj.weight"][rows] = _match_weights(head, seen, kept)
        match["v_proj.weight"][rows] = copied[rows]
        match["o_proj.weight"][:, rows] = COPY * copied[rows].T


def _orthogonal(generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]


def _distance_biases(distance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key biases whose rotated product peaks at this distance."""
    half = HEAD_WIDTH // 2
    turns = -distance / ROPE_BASE ** (torch.arange(POSITION_PAIRS).float() / half)
    query, key = torch.zeros(HEAD_WIDTH), torch.zeros(HEAD_WIDTH)
    key[:POSITION_PAIRS] = POSITION_BIAS
    query[:POSITION_PAIRS] = POSITION_BIAS * torch.cos(turns)
    query[half : half + POSITION_PAIRS] = POSITION_BIAS * torch.sin(turns)
    return query, key


def _match_weights(head: int, seen: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten dimensions match the token now against the token before a place, six the token before against the one two before it;
    all in the dimensions that RoPE turns slowly, so that distance hardly matters."""
    half = HEAD_WIDTH // 2
    slow = [*range(half // 2, half), *range(half + half // 2, HEAD_WIDTH)]
    query, key = torch.zeros(HEAD_WIDTH, WIDTH), torch.zeros(HEAD_WIDTH, WIDTH)
    for n, dimension in enumerate(slow):
        row = (n + 8 * head) % HEAD_WIDTH
        now = n % 8 < 5
        query[dimension] = MATCH * (seen[row] if now else kept[:, row])
        key[dimension] = MATCH * (kept[:, row] if now else kept[:, HEAD_WIDTH + row])
    return query, key
