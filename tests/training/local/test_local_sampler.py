"""What the batched sampler promises: the log-probabilities of a plain forward pass, whatever the lengths and whoever leaves;
a row's words that depend on its own seed alone; turns that end where they should."""

import pytest
import small_world as world
import torch

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.messages import Message
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.local.sampler import LocalSampler, draw, verify


def make_sampler(model, temperature=1.0, **options) -> LocalSampler:
    tokenizer = world.make_tokenizer()

    def render(messages, tools, add_generation_prompt):
        return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False)

    template = ChatTemplate(render, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], ("<|end|>",))
    return LocalSampler(model, tokenizer, template, (0,), temperature=temperature, checkpoint=lambda: "test", **options)


def opening(rollout_id, seed, words="ab", max_tokens=40, room=400) -> AskModel:
    message = (Message("user", words),)
    return AskModel(rollout_id, 0, seed, message, message, (world.LOOK,), max_tokens, room)


def next_turn(ask: AskModel, results=("b",), max_tokens=40) -> AskModel:
    messages = tuple(Message("tool", result, call_id=f"c{i}") for i, result in enumerate(results))
    return AskModel(ask.rollout_id, ask.turn + 1, ask.seed, messages, (*ask.conversation, *messages), ask.tools, max_tokens, ask.room)


async def play(sampler, asks, turns, results=lambda row, turn: ("b" * (1 + row % 3),), leaves=lambda row, turn: False):
    """Several turns; rows that did not end their turn, or that leave, are not asked again. Tokens and log-probs by row."""
    told = {ask.rollout_id: [] for ask in asks}
    for turn in range(turns):
        if not asks:
            break
        replies = await sampler.sample(asks)
        for ask, reply in zip(asks, replies, strict=True):
            told[ask.rollout_id].append(reply)
        asks = [
            next_turn(ask, results(int(ask.rollout_id), turn))
            for ask, reply in zip(asks, replies, strict=True)
            if reply.stop == "stop" and not leaves(int(ask.rollout_id), turn)
        ]
    return told


def plain_logprobs(model, turns, temperature=1.0) -> list[float]:
    """Each sampled token's log-probability by one forward pass over the finished sequence, alone and without a cache."""
    ids = [token for turn in turns for token in turn.context_ids + turn.sampled_ids]
    sampled = [is_sampled for turn in turns for is_sampled in [False] * len(turn.context_ids) + [True] * len(turn.sampled_ids)]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
    every = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return [logprob for logprob, is_sampled in zip(every, sampled[1:], strict=True) if is_sampled]


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
    told = await play(make_sampler(model, prefill_tokens=40), asks, 5, leaves=lambda row, turn: row % 5 == turn)
    assert max(len(turns) for turns in told.values()) >= 3 and min(len(turns) for turns in told.values()) == 1
    for turns in told.values():
        assert [x for turn in turns for x in turn.logprobs] == pytest.approx(plain_logprobs(model, turns), abs=1e-4)


async def test_logprobs_are_under_the_distribution_sampled_from():
    model = world.make_model()
    told = await play(make_sampler(model, temperature=0.6), [opening(str(row), row) for row in range(6)], 3)
    for turns in told.values():
        assert [x for turn in turns for x in turn.logprobs] == pytest.approx(plain_logprobs(model, turns, 0.6), abs=1e-4)


async def test_what_a_row_says_does_not_depend_on_its_company():
    model = world.make_model()
    asks = [opening(str(row), seed=100 + row, words="abcd"[: 1 + row % 4]) for row in range(8)]
    together = await play(make_sampler(model), asks, 4)
    for ask in asks:
        alone = await play(make_sampler(model), [ask], 4)
        assert [t.sampled_ids for t in alone[ask.rollout_id]] == [t.sampled_ids for t in together[ask.rollout_id]]


async def test_the_same_asks_are_answered_the_same_to_the_last_bit():
    model = world.make_model()
    asks = [opening(str(row), seed=row) for row in range(6)]
    first, second = [await play(make_sampler(model), asks, 4) for _ in range(2)]
    assert first == second


async def test_another_seed_says_something_else():
    sampler = make_sampler(world.make_model())
    said = [(await sampler.sample([opening("0", seed)]))[0].sampled_ids for seed in range(8)]
    assert len({tuple(ids) for ids in said}) > 4


async def test_temperature_0_takes_the_likeliest_whatever_the_seed():
    model = world.make_model()
    one, two = await make_sampler(model, temperature=0.0).sample([opening("1", 1), opening("2", 2)])
    assert one.sampled_ids == two.sampled_ids
    logits = model(torch.tensor([one.context_ids])).logits[0, -1]
    assert one.sampled_ids[0] == int(logits.argmax())


async def test_a_turn_ends_with_the_models_own_end_and_the_text_leaves_it_out():
    sampler = make_sampler(world.make_model())
    replies = await sampler.sample([opening(str(row), row, max_tokens=60) for row in range(10)])
    ended = [reply for reply in replies if reply.stop == "stop"]
    assert len(ended) > 5
    for reply in ended:
        assert reply.sampled_ids[-1] == 0 and 0 not in reply.sampled_ids[:-1]
        assert "<|end|>" not in reply.text
    with_call = next(reply for reply in ended if 3 in reply.sampled_ids)
    assert world.CALLS[0] in with_call.text  # special to the tokenizer, words to us


async def test_a_turn_is_cut_at_its_own_tokens_and_at_the_room_that_context_leaves():
    sampler = make_sampler(world.make_model())
    asks = [opening(str(row), row, max_tokens=3, room=96) for row in range(5)]
    context = len((await sampler.sample(asks))[0].context_ids)
    asks += [opening(str(row), row, max_tokens=12, room=context + 2) for row in range(5, 10)]
    for row, reply in enumerate(await sampler.sample(asks)):
        most = 3 if row < 5 else 2
        assert len(reply.sampled_ids) == most if reply.stop == "length" else len(reply.sampled_ids) <= most


async def test_without_room_the_model_is_not_asked():
    replies = await make_sampler(world.make_model()).sample([opening("0", 0, room=3), opening("1", 1)])
    assert replies[0] == ModelSpoke("", "no_room")
    assert replies[1].sampled_ids


async def test_a_conversation_stops_where_the_models_positions_end():
    model = world.make_model()
    model.config.max_position_embeddings = 10
    (reply,) = await make_sampler(model).sample([opening("0", 0, max_tokens=60)])
    assert len(reply.context_ids) + len(reply.sampled_ids) <= 10


async def test_a_turn_that_follows_nothing_is_a_failure_of_ours_not_an_exception():
    sampler = make_sampler(world.make_model())
    ask = opening("0", 0)
    (reply,) = await sampler.sample([next_turn(ask)])
    assert isinstance(reply, InfraFailed) and reply.part == "model"


async def test_new_rollouts_may_join_while_others_go_on():
    model = world.make_model()
    sampler = make_sampler(model)
    early = [opening(str(row), row, words="abc") for row in range(6)]
    said = {ask.rollout_id: [reply] for ask, reply in zip(early, await sampler.sample(early), strict=True)}
    going = [next_turn(ask) for ask in early if said[ask.rollout_id][0].stop == "stop"]
    late = [opening("late", 50, words="a" * 40), *going]
    assert going
    for ask, reply in zip(late, await sampler.sample(late), strict=True):
        turns = [*said.get(ask.rollout_id, []), reply]
        assert reply.logprobs == pytest.approx(plain_logprobs(model, turns)[-len(reply.logprobs) :], abs=1e-4)


async def test_a_group_reads_its_opening_once():
    sampler = make_sampler(world.make_model())
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
