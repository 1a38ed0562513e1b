"""A tiny base for a task of somebody else's: the same wired model, warmed up on their worked examples alone.

It knows the words of its examples and copies what it is shown; it has no arithmetic and no language. That is enough where the tools do
the work, and to see on a laptop whether rows, tools, grader and guards hold together before a large model is paid for.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import PreTrainedTokenizerFast

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import Message
from agent_rft.datasets.examples import Example
from agent_rft.rollouts.templates import as_chat
from agent_rft.training.local.tiny.card import CARD, README, WEIGHTS
from agent_rft.training.local.tiny.induction import make_model
from agent_rft.training.local.tiny.make import has_bfloat16
from agent_rft.training.local.tiny.teacher import BRISK
from agent_rft.training.local.tiny.tokenizer import (
    CALL_CLOSE,
    RESULT_CLOSE,
    RESULT_NEXT,
    RESULT_OPEN,
    USER_CLOSE,
    USER_OPEN,
    Kind,
    make_tokenizer,
)
from agent_rft.training.local.tiny.warm_start import Progress, Row, Stage, train

STEPS = 100
LONGEST = 4096
"""Tokens of an example."""
PIECE = re.compile(r" ?[^\W\d_]+|\d|[^\w\s]+")
"""A word with the space before it, a digit, a run of signs."""
OFTEN, MOST_WORDS = 3, 8000
"""A word that stands so often among the examples is one token; the rest is spelled in bytes."""
SPOKEN = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)
STAGE = Stage(parts=1, repeat_steps=25, peak_rate=1.0, pace=BRISK, answer_weight=1.0, mix=((1.0, (0.0, 0.0, 1.0)),))
"""One stage: copying of random words, then the examples. The pace is a teacher's, and there is none."""


class _Supply:
    """Examples by lot, for ever."""

    def __init__(self, rows: Sequence[Row], rng: random.Random) -> None:
        self._rows, self.rng = rows, rng

    def row(self, shares: Sequence[float]) -> Row:
        return self.rng.choice(self._rows)


def make_base_of_examples(
    out: Path,
    examples: Sequence[Example],
    seed: int,
    steps: int = STEPS,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Write model, tokenizer and card to `out`. On one thread, so that the same examples and seed make the same model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started, words = time.monotonic(), words_of(examples)
        tokenizer = make_tokenizer([*_frames(examples), *words])
        rows = [row_of(tokenizer, example, number) for number, example in enumerate(examples, 1)]
        model = make_model(tokenizer, seed, _things(words))
        train(model, tokenizer, lambda _: _Supply(rows, random.Random(seed)), steps, on_progress, has_bfloat16(), [STAGE])
        seconds = time.monotonic() - started
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / WEIGHTS).chmod(0o644)
    _write_card(out, examples, seed, steps, seconds)


def words_of(examples: Sequence[Example]) -> list[str]:
    """The words that are one token each, the most frequent first."""
    counted = Counter(piece for example in examples for message in example for said in _said(message) for piece in PIECE.findall(said))
    return [word for word, count in counted.most_common(MOST_WORDS) if count >= OFTEN]


def row_of(tokenizer: PreTrainedTokenizerFast, example: Example, number: int) -> Row:
    """The conversation as a rollout would hold it. What the assistant says counts, and nothing else."""
    text: Any = tokenizer.apply_chat_template([as_chat(message) for message in example], tokenize=False)
    ids: list[int] = []
    weights: list[float] = []
    for at, part in enumerate(SPOKEN.split(text)):
        encoded = tokenizer.backend_tokenizer.encode(part).ids
        ids += encoded
        weights += [float(at % 2)] * len(encoded)
    if len(ids) > LONGEST:
        raise UserError(f"example {number} has {len(ids)} tokens, and a tiny base reads {LONGEST}", "shorten it, or leave it out")
    return ids, weights


def _said(message: Message) -> Iterator[str]:
    yield message.content
    for call in message.tool_calls:
        yield msgspec.json.encode(call.arguments).decode()


def _frames(examples: Sequence[Example]) -> list[str]:
    """What stands around the words, a token each; the last one is where warm_start's words begin."""
    tools = sorted({call.name for example in examples for message in example for call in message.tool_calls})
    opened = [f'<tool_call>\n{{"name": "{name}", "arguments": {{"' for name in tools]
    return [*opened, CALL_CLOSE, '": "', '", "', USER_OPEN, USER_CLOSE, RESULT_OPEN, RESULT_NEXT, RESULT_CLOSE]


def _things(words: Sequence[str]) -> list[Kind]:
    """Spellings of one word, close to one another from the start: ` Kilogram`, `kilogram`."""
    spellings: dict[str, list[str]] = {}
    for word in words:
        spellings.setdefault(word.strip().casefold(), []).append(word)
    return [[tuple(forms)] for forms in spellings.values()]


def _write_card(out: Path, examples: Sequence[Example], seed: int, steps: int, seconds: float) -> None:
    content = msgspec.json.encode(examples)
    card = {
        "name": out.name,
        "weights_sha256": hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest(),
        "examples": len(examples),
        "examples_sha256": hashlib.sha256(content).hexdigest(),
        "recipe": {"seed": seed, "steps": steps, "seconds": round(seconds), "torch": str(torch.__version__)},
    }
    (out / CARD).write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    lines = [
        f"# {out.name}",
        "",
        f"A Qwen2 model of about a million parameters, made from nothing by `rft tiny-base --examples`: {steps} steps on {len(examples)}",
        f"worked examples, seed {seed}, {seconds / 60:.0f} minutes on one CPU thread. It knows these examples' words and no language.",
    ]
    (out / README).write_text("\n".join([*lines, ""]), encoding="utf-8")
