"""What the batched sampler promises beyond the port: the log-probabilities of a plain forward pass on any architecture,
whatever the lengths and whoever leaves; words that depend on a row's own seed alone."""

import pytest
import small_world as world
import torch
from small_world import local_sampler, next_turn, opening, plain_logprobs, play

from agent_rft.contracts.errors import UserError
from agent_rft.training.local.sampler import draw, verify

ARCHITECTURES = {
    "qwen2": {},
    "grouped heads": {"key_value_heads": 1},
    "untied": {"tied": False},
    "llama": {"kind": "llama", "key_value_heads": 2, "tied": False},
    "one head each": {"key_value_heads": 4},
    "qwen3": {"kind": "qwen3", "head_dim": 16},
    "scaled logits": {"kind": "granite", "logits_scaling": 3.0},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_logprobs_are_those_of_a_plain_forward(architecture):
    """Twenty rows of different openings and results over five turns; some leave between turns, some are cut off."""
    model = world.make_model(**ARCHITECTURES[architecture])
    asks = [opening(str(row), seed=row, words="abc"[: 1 + row % 3]) for row in range(20)]
    told = await play(local_sampler(model, prefill_tokens=40), asks, 5, leaves=lambda row, turn: row % 5 == turn)
    assert max(len(turns) for turns in told.values()) >= 3 and min(len(turns) for turns in told.values()) == 1
    for turns in told.values():
        assert [x for turn in turns for x in turn.logprobs] == pytest.approx(plain_logprobs(model, turns), abs=1e-4)


async def test_what_a_row_says_does_not_depend_on_its_company():
    model = world.make_model()
    asks = [opening(str(row), seed=100 + row, words="abcd"[: 1 + row % 4]) for row in range(8)]
    together = await play(local_sampler(model), asks, 4)
    for ask in asks:
        alone = await play(local_sampler(model), [ask], 4)
        assert [t.sampled_ids for t in alone[ask.rollout_id]] == [t.sampled_ids for t in together[ask.rollout_id]]


async def test_the_same_asks_are_answered_the_same_to_the_last_bit():
    model = world.make_model()
    asks = [opening(str(row), seed=row) for row in range(6)]
    first, second = [await play(local_sampler(model), asks, 4) for _ in range(2)]
    assert first == second


async def test_another_seed_says_something_else():
    sampler = local_sampler(world.make_model())
    said = [(await sampler.sample([opening("0", seed)]))[0].sampled_ids for seed in range(8)]
    assert len({tuple(ids) for ids in said}) > 4


async def test_temperature_0_takes_the_likeliest_whatever_the_seed():
    model = world.make_model()
    one, two = await local_sampler(model, temperature=0.0).sample([opening("1", 1), opening("2", 2)])
    assert one.sampled_ids == two.sampled_ids
    logits = model(torch.tensor([one.context_ids])).logits[0, -1]
    assert one.sampled_ids[0] == int(logits.argmax())


async def test_new_rollouts_may_join_while_others_go_on():
    model = world.make_model()
    sampler = local_sampler(model)
    early = [opening(str(row), row, words="abc") for row in range(6)]
    said = {ask.rollout_id: [reply] for ask, reply in zip(early, await sampler.sample(early), strict=True)}
    going = [next_turn(ask) for ask in early if said[ask.rollout_id][0].stop == "stop"]
    late = [opening("late", 50, words="a" * 40), *going]
    assert going
    for ask, reply in zip(late, await sampler.sample(late), strict=True):
        turns = [*said.get(ask.rollout_id, []), reply]
        assert reply.logprobs == pytest.approx(plain_logprobs(model, turns)[-len(reply.logprobs) :], abs=1e-4)


async def test_a_group_reads_its_opening_once():
    sampler = local_sampler(world.make_model())
    replies = await sampler.sample([opening(str(row), row, words="abc") for row in range(8)])
    assert sampler.spent.prefill_tokens == len(replies[0].context_ids)


def test_drawing_inverts_the_cumulated_distribution():
    """Probabilities 0.5, 0.25, 0.25, 0: 0.49 falls into the first, 0.5 and 0.74 into the second, 0.99 into the third;
    nothing falls into the last."""
    logits = torch.tensor([0.5, 0.25, 0.25, 0.0]).log().expand(5, 4)
    tokens, logprobs = draw(logits, torch.tensor([0.0, 0.49, 0.5, 0.74, 1 - 2**-23]), 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25])


def test_drawing_follows_the_temperature():
    """Two tokens at odds 4 to 1; at temperature 2 the odds are 2 to 1."""
    tokens, logprobs = draw(torch.tensor([[4.0, 1.0]]).log(), torch.tensor([0.7]), 2.0)
    assert tokens.tolist() == [1]
    assert logprobs.exp().tolist() == pytest.approx([1 / 3])


def test_a_model_with_other_state_is_refused_at_load():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(UserError, match="MambaForCausalLM") as caught:
        verify(model)
    assert "vllm" in caught.value.cure


def test_ordinary_models_pass_the_same_check():
    for architecture in ARCHITECTURES.values():
        verify(world.make_model(**architecture))
