"""Making the tiny base from nothing: one call, one seed, one folder that transformers loads without custom code."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import torch

from agent_rft.training.local.tiny.card import WEIGHTS, Recipe, write_card
from agent_rft.training.local.tiny.induction import make_model
from agent_rft.training.local.tiny.tokenizer import make_tokenizer
from agent_rft.training.local.tiny.warm_start import STAGES, Practice, Progress, ToolsOf, train

SEED, STEPS = 7, 5000


def make_tiny_base(
    out: Path,
    tools_of: ToolsOf,
    held_out: frozenset[str],
    seed: int = SEED,
    steps: int = STEPS,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Write model, tokenizer and card to `out`. `held_out` are the companies that the warm start may not see.

    One thread, because sums in another order are other sums: the same seed on the same machine makes the same model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started, bfloat16 = time.monotonic(), has_bfloat16()
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, seed)

        def practice_of(number: int) -> Practice:
            return Practice(tokenizer, tools_of, held_out, STAGES[number], random.Random(seed + number))

        train(model, tokenizer, practice_of, steps, on_progress, bfloat16)
        seconds = time.monotonic() - started
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / WEIGHTS).chmod(0o644)
    write_card(out, Recipe(seed=seed, steps=steps, held_out=len(held_out), bfloat16=bfloat16, seconds=seconds))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, it is slower than float32."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
