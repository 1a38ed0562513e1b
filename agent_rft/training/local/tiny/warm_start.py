"""The warm start: from a wired model to one that searches, reads and copies with its teacher's habits.

Every step sees fresh companies, figures and questions. Copying is practised first, on dense drills and straight traces; the flawed
traces come in as it holds. Rows of like length share a forward pass, and the loss is on what the model says, nothing else.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from agent_rft.contracts.ports import ToolProvider
from agent_rft.datasets.filings import METRICS, Filing, Question, ask_one_figure, company_names, draw_question, folder_of, make_filings
from agent_rft.training.local.tiny.teacher import BRISK, SLOW, Call, Pace, Trace, queries, write_trace
from agent_rft.training.local.tiny.tokenizer import (
    ARGUMENT,
    CALL_CLOSE,
    CALL_OPEN,
    FRAMES,
    PAD,
    RESULT_CLOSE,
    RESULT_NEXT,
    RESULT_OPEN,
    TURN_END,
    USER_CLOSE,
    USER_OPEN,
    token_id,
)

COMPANIES, ROWS_A_WORLD = 240, 1500
STEP_TOKENS = 6000
MUON_RATE, ADAM_RATE = 5e-3, 3e-3
DIFFICULTIES = {"easy": 0.3, "medium": 0.45, "hard": 0.25}
RATIO_SHARE = 0.15
DRILLS = (0.15, 0.15, 0.3, 0.4)
"""Shares of the drills: ask, find, look up, answer."""
ToolsOf = Callable[[Sequence[Filing]], ToolProvider]
Row = tuple[list[int], list[float]]
"""Token ids, and how much each counts: nothing where somebody else said it."""
Piece = tuple[str, float]
Batch = tuple[torch.Tensor, torch.Tensor]
"""Ids and weights, a row each."""


class Stage(msgspec.Struct, frozen=True):
    """A run with a learning rate that starts high and ends low."""

    parts: int
    """How long, beside the other stages."""
    repeat_steps: int
    peak_rate: float
    """Beside the full learning rate."""
    pace: Pace
    answer_weight: float
    """What an answer counts for. It is one figure after dozens of call tokens, so it is learnt faster where it counts more; but
    then the model also answers sooner than its teacher did, until a stage where it counts like any other word."""
    mix: tuple[tuple[float, tuple[float, float, float]], ...]
    """Up to which part of the stage, in what shares: drills, straight traces, flawed traces."""


STAGES = (
    Stage(28, 60, 1.0, BRISK, 4.0, ((0.15, (0.8, 0.2, 0.0)), (0.5, (0.4, 0.35, 0.25)), (0.85, (0.15, 0.25, 0.6)), (1.0, (0.0, 0.0, 1.0)))),
    Stage(12, 0, 1.0, SLOW, 4.0, ((0.5, (0.35, 0.0, 0.65)), (1.0, (0.0, 0.0, 1.0)))),
    Stage(5, 0, 1.0, SLOW, 1.0, ((1.0, (0.0, 0.0, 1.0)),)),
    Stage(5, 0, 0.4, BRISK, 1.0, ((0.4, (0.3, 0.0, 0.7)), (1.0, (0.0, 0.0, 1.0)))),
)
"""Copying is learnt on short traces, then on long ones; then how often the teacher does what; and at last, gently, both."""


class Progress(msgspec.Struct, frozen=True):
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


# --- rows ---


class Supply(Protocol):
    rng: random.Random

    def row(self, shares: Sequence[float]) -> Row: ...


class Practice:
    """An endless supply of rows in worlds that last for some hundred rows each. No held-out company is ever in one."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, tools_of: ToolsOf, held_out: frozenset[str], stage: Stage, rng: random.Random
    ) -> None:
        self._encode, self._tools_of, self._held_out = tokenizer.backend_tokenizer.encode, tools_of, held_out
        self._stage, self.rng = stage, rng
        self._left = 0

    def row(self, shares: Sequence[float]) -> Row:
        if self._left == 0:
            self._new_world()
        self._left -= 1
        kind = self.rng.choices(("drill", "straight", "flawed"), shares)[0]
        return self._tokens(self._drill() if kind == "drill" else self._traced(self._stage.pace if kind == "flawed" else None))

    def _new_world(self) -> None:
        companies = [name for name in company_names(COMPANIES, self.rng) if name not in self._held_out]
        filings = make_filings(companies, self.rng)
        self._tools = self._tools_of(filings)
        self._companies = [list(group) for _, group in itertools.groupby(filings, key=lambda filing: filing.company)]
        self._left = ROWS_A_WORLD

    def _call(self, name: str, argument: str) -> str:
        return self._tools.call(name, {ARGUMENT[name]: argument})[0]

    def _question(self, company: Sequence[Filing]) -> Question:
        difficulty = self.rng.choices(list(DIFFICULTIES), list(DIFFICULTIES.values()))[0]
        return draw_question(company, difficulty, RATIO_SHARE, self.rng)

    def _traced(self, pace: Pace | None) -> list[Piece]:
        company = self.rng.choice(self._companies)
        trace = write_trace(self._question(company), company, self._call, self.rng, pace)
        return pieces_of(trace, self._stage.answer_weight)

    def _drill(self) -> list[Piece]:
        """Many short questions in a row: most of what a trace needs, at many times its density."""
        drills = (self._ask_drill, self._find_drill, self._look_up_drill, self._answer_drill)
        return self.rng.choices(drills, DRILLS)[0]()

    def _ask_drill(self) -> list[Piece]:
        """Questions about any company, each with the search or list that it calls for."""
        pieces: list[Piece] = []
        for company in self.rng.sample(self._companies, 8):
            question = self._question(company)
            filing = self.rng.choice(question.filings)
            call = ("search", self.rng.choice(queries(filing, question.metric)))
            pieces += asked(question, call_text(call if self.rng.random() < 0.75 else ("list", folder_of(filing.company))))
        return pieces

    def _find_drill(self) -> list[Piece]:
        """One company's filings: each question with a search, then with the path to read."""
        pieces: list[Piece] = []
        company = self.rng.choice(self._companies)
        for filing in self.rng.sample(company, 4):
            question = ask_one_figure(filing, self.rng.choice(list(METRICS)), self.rng)
            search = ("search", queries(filing, question.metric)[-1])
            pieces += asked(question, call_text(search))
            pieces.append(result_piece((self._call(*search),)))
            pieces.append((call_text(("read", filing.path)) + TURN_END, 1.0))
        return pieces

    def _look_up_drill(self) -> list[Piece]:
        """Some filings that were read, then each metric asked of one of them."""
        shown = self.rng.sample(self.rng.choice(self._companies), self.rng.choice((1, 1, 2, 3)))
        pieces = [result_piece((self._call("read", filing.path),)) for filing in shown]
        for metric in self.rng.sample(list(METRICS), len(METRICS)):
            filing = self.rng.choice(shown)
            pieces += asked(ask_one_figure(filing, metric, self.rng), filing.figure(metric))
        return pieces

    def _answer_drill(self) -> list[Piece]:
        """Each question with the reading it needs, then the answer: the question is further back than in a look-up."""
        pieces: list[Piece] = []
        for company in self.rng.sample(self._companies, 4):
            shown = self.rng.sample(company, self.rng.choice((1, 1, 2)))
            question = ask_one_figure(self.rng.choice(shown), self.rng.choice(list(METRICS)), self.rng)
            pieces.append(("\n" + USER_OPEN + question.prompt + USER_CLOSE, 0.0))
            for filing in shown:
                read = ("read", filing.path)
                pieces += [(call_text(read) + TURN_END, 0.0), result_piece((self._call(*read),))]
            pieces.append((question.answer + TURN_END, 1.0))
        return pieces

    def _tokens(self, pieces: Sequence[Piece]) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in pieces:
            encoded = self._encode(text).ids
            ids += encoded
            weights += [weight] * len(encoded)
        return ids, weights


def call_text(call: Call) -> str:
    name, argument = call
    return CALL_OPEN[name] + argument + CALL_CLOSE


def result_piece(results: Sequence[str]) -> Piece:
    return RESULT_OPEN + RESULT_NEXT.join(results) + RESULT_CLOSE, 0.0


def asked(question: Question, said: str) -> list[Piece]:
    """A question in the middle of a conversation, and what the model says to it."""
    return [("\n" + USER_OPEN + question.prompt + USER_CLOSE, 0.0), (said + TURN_END, 1.0)]


def pieces_of(trace: Trace, answer_weight: float) -> list[Piece]:
    """A trace as the chat template writes it, cut where the speaker changes."""
    pieces: list[Piece] = [(USER_OPEN + trace.prompt + USER_CLOSE, 0.0)]
    for turn in trace.turns:
        pieces.append(("\n".join(call_text(call) for call in turn.calls) + TURN_END, 1.0))
        pieces.append(result_piece(turn.results))
    return [*pieces, (trace.answer + TURN_END, answer_weight)]


# --- batches ---


def micro_batches(rows: Sequence[Row], pad: int) -> Iterator[Batch]:
    """Rows of like length together, padded to the longest."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or len(ordered[end][0]) > 1.25 * len(ordered[start][0]) + 8:
            group = ordered[start:end]
            width = len(group[-1][0])
            ids = torch.tensor([row[0] + [pad] * (width - len(row[0])) for row in group])
            weights = torch.tensor([row[1] + [0.0] * (width - len(row[1])) for row in group])
            yield ids, weights
            start = end


def repeats(words: range, rng: random.Random, rows: int = 32, width: int = 44) -> Batch:
    """Random strings said twice, at any distance: copying with nothing else to learn. A fixed distance would teach the distance."""
    ids = torch.tensor([rng.choices(words, k=width) for _ in range(rows)])
    weights = torch.zeros(rows, width)
    for row in range(rows):
        length = rng.randrange(6, 17)
        first = rng.randrange(0, width - 2 * length + 1)
        second = rng.randrange(first + length, width - length + 1)
        ids[row, second : second + length] = ids[row, first : first + length]
        weights[row, second + 1 : second + length] = 1.0
    return ids, weights


# --- training ---


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    practice_of: Callable[[int], Supply],
    steps: int,
    on_progress: Callable[[Progress], None],
    bfloat16: bool,
    stages: Sequence[Stage] = STAGES,
) -> None:
    """All stages. `practice_of` is given a stage's number."""
    started, done, tokens = time.monotonic(), 0, 0
    parts = sum(stage.parts for stage in stages)
    for number, stage in enumerate(stages):
        stage_steps = round(steps * stage.parts / parts)
        for loss, read in _stage_steps(model, tokenizer, practice_of(number), stage, stage_steps, bfloat16):
            done, tokens = done + 1, tokens + read
            seconds = time.monotonic() - started
            on_progress(Progress(done, steps, loss, tokens / seconds, seconds / done * (steps - done)))


def _stage_steps(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, practice: Supply, stage: Stage, steps: int, bfloat16: bool
) -> Iterator[tuple[float, int]]:
    """The loss and the tokens of each step, the repeats before them left out."""
    optimizers = make_optimizers(model)
    words, pad = range(token_id(tokenizer, FRAMES[-1]) + 1, len(tokenizer)), token_id(tokenizer, PAD)
    for step in range(stage.repeat_steps):
        _step(model, [repeats(words, practice.rng)], optimizers, min(1.0, (step + 1) / 20), bfloat16)
    for step in range(steps):
        shares = next(shares for until, shares in stage.mix if step / steps < until)
        rows = draw_rows(practice, shares)
        loss = _step(model, list(micro_batches(rows, pad)), optimizers, stage.peak_rate * rate_at(step / steps), bfloat16)
        yield loss, sum(len(row[0]) for row in rows)


def draw_rows(practice: Supply, shares: Sequence[float]) -> list[Row]:
    rows: list[Row] = []
    while sum(len(row[0]) for row in rows) < STEP_TOKENS:
        rows.append(practice.row(shares))
    return rows


def rate_at(done: float) -> float:
    """Full for half of the run, then straight down."""
    return 1.0 if done < 0.5 else max(0.03, 2 * (1 - done))


def make_optimizers(model: Qwen2ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each with its full learning rate. Muon for the matrices inside; AdamW for the embeddings and whatever is not a matrix."""
    inside = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    muon = torch.optim.Muon(inside, lr=MUON_RATE, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [(muon, MUON_RATE), (adam, ADAM_RATE)]


def _step(
    model: Qwen2ForCausalLM,
    batches: Sequence[Batch],
    optimizers: Sequence[tuple[torch.optim.Optimizer, float]],
    rate: float,
    bfloat16: bool,
) -> float:
    whole = sum(float(weights[:, 1:].sum()) for _, weights in batches)
    total = 0.0
    for ids, weights in batches:
        loss = weighted_loss(model, ids, weights, bfloat16) / whole
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, full_rate in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = full_rate * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def weighted_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, weights: torch.Tensor, bfloat16: bool) -> torch.Tensor:
    """Cross-entropy summed by weight; the vocabulary is only scored where a token counts."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        counts = weights[:, 1:] > 0
        logits = model.lm_head(hidden[counts])
    losses = functional.cross_entropy(logits.float(), ids[:, 1:][counts], reduction="none")
    return (losses * weights[:, 1:][counts]).sum()
