"""The wired model copies before any training, and knows the spellings of a thing for kin."""

import random

import pytest
import torch
from torch.nn.functional import cosine_similarity

from agent_rft.training.local.tiny.induction import _distance_biases, make_model
from agent_rft.training.local.tiny.tokenizer import FRAMES, token_id
from agent_rft.training.local.tiny.warm_start import repeats


@pytest.fixture(scope="module")
def wired(tokenizer):
    return make_model(tokenizer, seed=1)


def test_untrained_it_continues_a_string_it_has_seen(wired, tokenizer):
    ids, weights = repeats(range(token_id(tokenizer, FRAMES[-1]) + 1, len(tokenizer)), random.Random(0))
    with torch.no_grad():
        guesses = wired(ids[:, :-1]).logits.argmax(-1)
    copied = (guesses == ids[:, 1:])[weights[:, 1:] > 0].float().mean()
    assert copied > 0.1  # one in 2,600 by chance


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_a_look_back_head_scores_its_own_distance_highest(distance):
    query, key = _distance_biases(distance)

    def rotated(vector: torch.Tensor, position: int) -> torch.Tensor:  # RoPE as Qwen2 applies it
        angle = position / 1e6 ** (torch.arange(16).float() / 16)
        first, second = vector[:16], vector[16:]
        return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()))

    scores = [float(rotated(query, 20) @ rotated(key, 20 - back)) for back in range(9)]
    assert max(range(9), key=scores.__getitem__) == distance


def test_spellings_of_a_thing_start_close_and_other_things_apart(wired, tokenizer):
    def likeness(one: str, other: str) -> float:
        table = wired.model.embed_tokens.weight.detach()
        return float(cosine_similarity(table[token_id(tokenizer, one)], table[token_id(tokenizer, other)], dim=0))

    assert likeness(" Crown", "crown") > 0.4
    assert likeness(" Q3 2025", "-10q-2025-q3.html") > 0.4
    assert likeness(" Crown", " Raven") < likeness(" Crown", "crown")
    assert likeness(" Crown", "$837M") < 0.3


def test_figures_of_like_size_start_closer_than_figures_far_apart(wired, tokenizer):
    table = wired.model.embed_tokens.weight.detach()
    low, near, far = (torch.stack([table[token_id(tokenizer, f"${n + i}M")] for i in range(20)]).mean(0) for n in (100, 130, 900))
    assert (low - near).norm() < (low - far).norm()


def test_the_same_seed_wires_the_same_model(wired, tokenizer):
    again = make_model(tokenizer, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(wired.parameters(), again.parameters(), strict=True))
