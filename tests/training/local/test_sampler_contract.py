"""What drivers may rely on, whichever sampler was chosen: our own, or vLLM's (here behind a stand-in: it has yet to run on
a GPU)."""

import sys

import pytest
import small_world as world
import vllm_stand_in
from small_world import local_sampler, next_turn, opening, plain_logprobs, play

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.events import InfraFailed, ModelSpoke
from agent_rft.contracts.training import Lora
from agent_rft.training.local.checkpoints import Checkpoints
from agent_rft.training.local.engine import LocalEngine
from agent_rft.training.local.models import load_policy
from agent_rft.training.local.vllm_sampler import VllmSampler
from agent_rft.training.pretrained import template_of


@pytest.fixture(params=["batched", "vllm"])
def make_sampler(request, monkeypatch):
    def make(model, temperature=1.0):
        if request.param == "batched":
            return local_sampler(model, temperature)
        monkeypatch.setitem(sys.modules, "vllm", vllm_stand_in.make(model))
        tokenizer = world.make_tokenizer()
        template, ends = template_of(tokenizer, model.generation_config)
        return VllmSampler("base", tokenizer, template, ends, temperature=temperature, checkpoint=lambda: "test", dtype="float32")

    return make


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_logprobs_are_those_of_the_distribution_sampled_from(make_sampler, temperature):
    model = world.make_model()
    told = await play(make_sampler(model, temperature), [opening(str(row), row) for row in range(6)], 3)
    for turns in told.values():
        assert [x for turn in turns for x in turn.logprobs] == pytest.approx(plain_logprobs(model, turns, temperature), abs=1e-4)


async def test_the_same_asks_are_answered_the_same(make_sampler):
    model, asks = world.make_model(), [opening(str(row), row) for row in range(4)]
    assert await play(make_sampler(model), asks, 3) == await play(make_sampler(model), asks, 3)


async def test_replies_come_in_the_order_of_the_asks_whoever_is_new_among_them(make_sampler):
    sampler = make_sampler(world.make_model(), temperature=0.0)
    (alone,) = await sampler.sample([opening("new", 0, words="ha")])
    first = opening("old", 0, words="ab")
    await sampler.sample([first])
    replies = await sampler.sample([opening("new", 0, words="ha"), next_turn(first)])
    assert replies[0].sampled_ids == alone.sampled_ids and len(replies[1].context_ids) != len(alone.context_ids)


async def test_a_turn_ends_with_the_models_own_end_and_the_text_leaves_it_out(make_sampler):
    sampler = make_sampler(world.make_model())
    replies = await sampler.sample([opening(str(row), row, max_tokens=60) for row in range(12)])
    ended = [reply for reply in replies if reply.stop == "stop"]
    assert len(ended) > 3
    for reply in ended:
        assert reply.sampled_ids[-1] == 0 and 0 not in reply.sampled_ids[:-1]
        assert "<|end|>" not in reply.text
    with_call = next(reply for reply in ended if 3 in reply.sampled_ids)
    assert world.CALLS[0] in with_call.text  # special to the tokenizer, words to us


async def test_a_turn_is_cut_at_its_own_tokens_and_at_the_room_that_context_leaves(make_sampler):
    sampler = make_sampler(world.make_model())
    asks = [opening(str(row), row, max_tokens=3, room=96) for row in range(5)]
    context = len((await sampler.sample(asks))[0].context_ids)
    asks += [opening(str(row), row, max_tokens=12, room=context + 2) for row in range(5, 10)]
    for row, reply in enumerate(await sampler.sample(asks)):
        most = 3 if row < 5 else 2
        assert len(reply.sampled_ids) == most if reply.stop == "length" else len(reply.sampled_ids) <= most


async def test_without_room_the_model_is_not_asked(make_sampler):
    replies = await make_sampler(world.make_model()).sample([opening("0", 0, room=3), opening("1", 1)])
    assert replies[0] == ModelSpoke("", "no_room")
    assert replies[1].sampled_ids


async def test_a_conversation_stops_where_the_models_positions_end(make_sampler):
    model = world.make_model()
    model.config.max_position_embeddings = 10
    (reply,) = await make_sampler(model).sample([opening("0", 0, max_tokens=60)])
    assert len(reply.context_ids) + len(reply.sampled_ids) <= 10


async def test_a_turn_that_follows_nothing_is_a_failure_of_ours_not_an_exception(make_sampler):
    (reply,) = await make_sampler(world.make_model()).sample([next_turn(opening("0", 0))])
    assert isinstance(reply, InfraFailed) and reply.part == "model"


async def test_nobody_may_ask(make_sampler):
    assert await make_sampler(world.make_model()).sample([]) == []


# --- vLLM alone ----------------------------------------------------------------------------------------------------


async def test_a_model_server_that_fails_is_a_reply(monkeypatch):
    stand_in = vllm_stand_in.make(world.make_model())
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setattr(stand_in.LLM, "generate", lambda *args, **more: 1 / 0)
    tokenizer = world.make_tokenizer()
    template, ends = template_of(tokenizer, world.make_model().generation_config)
    sampler = VllmSampler("base", tokenizer, template, ends, temperature=1.0, checkpoint=lambda: "test", dtype="float32")
    (reply,) = await sampler.sample([opening("0", 0)])
    assert isinstance(reply, InfraFailed) and "ZeroDivisionError" in reply.what


def test_vllm_not_installed_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it fails
    job = world.make_job(world.save_base(tmp_path / "base"), tmp_path, model={"sampler": "vllm"})
    with pytest.raises(UserError, match="vLLM is not installed") as caught:
        LocalEngine(job.model, job.algorithm, Checkpoints(tmp_path / "c", 1), "run", 0, False)
    assert "agent-rft[vllm]" in caught.value.cure


@pytest.mark.parametrize("lora", [None, Lora(4, 8, ("q_proj", "down_proj"))])
async def test_vllm_speaks_with_the_weights_of_the_last_update(tmp_path, monkeypatch, lora):
    """After an update its log-probabilities are the trained policy's: adapters added in, and the base left as it was."""
    from agent_rft.training.local.batches import Trajectory

    base = world.save_base(tmp_path / "base")
    stand_in = vllm_stand_in.make(world.make_model(seed=5))
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    job = world.make_job(base, tmp_path, model={"sampler": "vllm", "lora": lora})
    engine = LocalEngine(job.model, job.algorithm, Checkpoints(tmp_path / "c", 1), "run", 0, False)
    frozen = [weight.clone() for weight in engine.policy.model.parameters() if not weight.requires_grad]
    for _ in range(2):
        engine.update([Trajectory([7, 8, 9, 10], [False, True, True, True], [-1.0] * 4, 1.0)], 0.05)
    assert stand_in.LLM.made.cache_resets == 3  # at the start and after each update
    told = await play(engine.sampler, [opening(str(row), row) for row in range(4)], 2)
    untrained = load_policy(job.model, checkpoint=None, trainable=False).model
    for turns in told.values():
        said = [x for turn in turns for x in turn.logprobs]
        assert said == pytest.approx(plain_logprobs(engine.policy.model, turns), abs=1e-4)
        assert said != pytest.approx(plain_logprobs(untrained, turns), abs=1e-2)
    now = [weight for weight in engine.policy.model.parameters() if not weight.requires_grad]
    assert all((one == other).all() for one, other in zip(frozen, now, strict=True))
