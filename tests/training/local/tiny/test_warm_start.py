"""What the warm start is fed, and that it learns from what the model says and from nothing else."""

import random
import re

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from agent_rft.datasets.filings import FIRST_WORDS, SECOND_WORDS
from agent_rft.training.local.tiny import warm_start
from agent_rft.training.local.tiny.card import README, add_measurement
from agent_rft.training.local.tiny.induction import make_model
from agent_rft.training.local.tiny.make import make_tiny_base
from agent_rft.training.local.tiny.tokenizer import PAD, token_id
from agent_rft.training.local.tiny.warm_start import Practice, make_optimizers, micro_batches, rate_at, weighted_loss

DRILL, STRAIGHT, FLAWED = (1, 0, 0), (0, 1, 0), (0, 0, 1)


@pytest.fixture(autouse=True)
def small_worlds(monkeypatch):
    monkeypatch.setattr(warm_start, "COMPANIES", 40)


def practice_with(tokenizer, tools_of, held_out=frozenset(), seed=0):
    return Practice(tokenizer, tools_of, held_out, warm_start.STAGES[0], random.Random(seed))


@pytest.mark.parametrize("shares", [DRILL, STRAIGHT, FLAWED])
def test_only_the_models_own_words_count(shares, tokenizer, tools_of):
    practice = practice_with(tokenizer, tools_of)
    for _ in range(20):
        ids, weights = practice.row(shares)
        words = tokenizer.decode([i for i, weight in zip(ids, weights, strict=True) if weight])
        assert "<tool_response>" not in words and "<|im_start|>" not in words and "What" not in words
        assert words.endswith("<|im_end|>")


def test_in_a_trace_all_of_the_models_words_count_and_its_answer_most(tokenizer, tools_of):
    practice = practice_with(tokenizer, tools_of)
    for _ in range(20):
        ids, weights = practice.row(FLAWED)
        others = tokenizer.decode([i for i, weight in zip(ids, weights, strict=True) if not weight])
        answer = tokenizer.decode([i for i, weight in zip(ids, weights, strict=True) if weight == warm_start.STAGES[0].answer_weight])
        assert "<tool_call>" not in others
        assert re.fullmatch(r"(about )?(\$\d+M|\d+\.\d%)<\|im_end\|>", answer)


def test_a_trace_is_written_as_the_chat_template_writes_it(tokenizer, tools_of):
    ids, _ = practice_with(tokenizer, tools_of).row(STRAIGHT)
    text = tokenizer.decode(ids)
    question = text.removeprefix("<|im_start|>user\n").split("<|im_end|>")[0]
    opening = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    assert text.startswith(opening)
    assert tokenizer(text)["input_ids"] == ids


def test_no_held_out_company_is_ever_seen(tokenizer, tools_of):
    """Half of the first words are held out with every second word, so that no row may say one of them."""
    held = FIRST_WORDS[:32]
    practice = practice_with(tokenizer, tools_of, frozenset(f"{first} {second}" for first in held for second in SECOND_WORDS))
    for _ in range(30):
        text = tokenizer.decode(practice.row(STRAIGHT)[0])
        assert not any(f"{first} " in text or f"/{first.lower()}-" in text for first in held)


rows_of_any_length = st.lists(st.integers(1, 60).map(lambda n: ([7] * n, [1.0] * n)), min_size=1, max_size=40)


@given(rows_of_any_length)
def test_micro_batches_hold_each_row_once_with_little_padding(rows):
    batches = list(micro_batches(rows, pad=0))
    lengths = sorted(int(row.sum()) for _, weights in batches for row in weights)
    assert lengths == sorted(len(ids) for ids, _ in rows)
    for ids, weights in batches:
        assert torch.equal(ids == 7, weights == 1)
        assert ids.shape[1] <= 1.25 * int(weights.sum(1).min()) + 8


def test_the_rate_holds_for_half_the_run_then_falls():
    assert [rate_at(done) for done in (0, 0.4, 0.75, 1)] == [1, 1, 0.5, 0.03]


def test_each_token_counts_by_its_weight_and_other_peoples_not_at_all(tokenizer):
    model = make_model(tokenizer, seed=0)
    ids = torch.tensor([[300, 301, 302, 303]])
    weights = torch.tensor([[0.0, 0.0, 1.0, 4.0]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0], -1)
    by_hand = -logprobs[1, 302] - 4 * logprobs[2, 303]
    assert weighted_loss(model, ids, weights, bfloat16=False).item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_muon_takes_the_matrices_inside_and_adam_the_rest(tokenizer):
    model = make_model(tokenizer, seed=0)
    counts = [sum(p.numel() for group in optimizer.param_groups for p in group["params"]) for optimizer, _ in make_optimizers(model)]
    assert counts[0] == 3 * (4 * 128 * 128 + 3 * 128 * 384)  # attention's four and the feed-forward's three, in each of three layers
    assert sum(counts) == model.num_parameters()


def test_made_twice_it_is_the_same_model_and_its_loss_falls(tmp_path, monkeypatch, tools_of):
    short = [msgspec.structs.replace(stage, repeat_steps=min(stage.repeat_steps, 2)) for stage in warm_start.STAGES]
    monkeypatch.setattr(warm_start, "STAGES", short)
    monkeypatch.setattr(warm_start, "STEP_TOKENS", 800)
    losses: list[float] = []
    for name in ("one", "two"):
        make_tiny_base(tmp_path / name, tools_of, frozenset({"Crown Optics"}), seed=5, steps=6, on_progress=lambda p: losses.append(p.loss))
    assert losses[:6] == losses[6:]
    assert losses[5] < losses[0]
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()
    add_measurement(tmp_path / "one", {"reward": 0.5})
    assert "| measured: reward | 0.5 |" in (tmp_path / "one" / README).read_text()
    assert token_id(AutoTokenizer.from_pretrained(tmp_path / "one"), PAD) == 256  # after the bytes
