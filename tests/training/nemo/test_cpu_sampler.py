"""Rollouts on CPU workers: what is kept between turns changes nothing but the time, and every sampled token's log-probability
is what the policy says of it afterwards."""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "local")]
import policy_world as here
import small_world as world

from agent_rft.contracts.errors import Diverged
from agent_rft.training.nemo.cpu_sampler import CpuSampler, followed


@pytest.fixture(scope="module")
def model():
    return world.make_model(seed=5)


def make_sampler(model, *, longest=300, seed=0, max_new_tokens=12) -> CpuSampler:
    return CpuSampler(model, ends=here.ENDS, temperature=0.8, max_new_tokens=max_new_tokens, longest=longest, seed=seed)


def openings(groups: int, size: int) -> list[list[int]]:
    """Of each group the same tokens."""
    source = random.Random(0)
    drawn = [[source.randrange(3, 17) for _ in range(source.randint(4, 20))] for _ in range(groups)]
    return [list(row) for row in drawn for _ in range(size)]


def play(sampler, turns: int, *, greedy=False, forget=False):
    """Several turns; every third row leaves after each. Answers each turn's rows with what they said."""
    rows, told = openings(3, 4), []
    for turn in range(turns):
        if forget:
            sampler._held = []
        said = sampler.generate(rows, greedy=greedy)
        told.append((rows, said))
        rows = [row + one.ids + [3 + turn] * (1 + i % 4) for i, (row, one) in enumerate(zip(rows, said, strict=True)) if i % 3 != turn]
    return told


def plain_logprobs(model, row: list[int], ids: list[int]) -> list[float]:
    with torch.no_grad():
        every = (model(torch.tensor([row + ids])).logits[0, :-1] / 0.8).log_softmax(-1)
    return every[len(row) - 1 :].gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def test_log_probabilities_are_those_of_one_plain_forward_pass_over_the_finished_sequence(model):
    for rows, said in play(make_sampler(model), 3):
        for row, one in zip(rows, said, strict=True):
            assert one.logprobs == pytest.approx(plain_logprobs(model, row, one.ids), abs=2e-5)


def test_turns_that_go_on_from_the_cache_are_those_read_anew(model):
    cached, anew = (play(make_sampler(model), 4, greedy=True, forget=forget) for forget in (False, True))
    for (rows, said), (others, again) in zip(cached, anew, strict=True):
        assert rows == others and [one.ids for one in said] == [one.ids for one in again]
        for one, other in zip(said, again, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_only_new_tokens_are_read(model, monkeypatch):
    sampler = make_sampler(model)
    read: list[list[int]] = []
    original = sampler._forward_all
    monkeypatch.setattr(sampler, "_forward_all", lambda starts, unread: read.append(list(map(len, unread))) or original(starts, unread))
    (rows, _), (later, _) = play(sampler, 2)
    assert len(read[0]) == 3 and sorted(read[0]) == sorted({len(row) for row in rows})  # one of each group of four
    assert len(later) == 8 and set(read[1]) <= {2, 3, 4, 5}  # the last sampled token and the 1 to 4 that were added


def test_a_turn_ends_by_its_end_token_or_its_room(model):
    sampler = make_sampler(model, max_new_tokens=5)
    for _, said in play(sampler, 2):
        for one in said:
            assert one.ended == (one.ids[-1] in here.ENDS) and (one.ended or len(one.ids) == 5)
            assert not set(one.ids[:-1]) & set(here.ENDS)
    short = make_sampler(model, longest=24).generate([[3] * 20, [4] * 22])
    assert [len(one.ids) <= room for one, room in zip(short, (4, 2), strict=True)] == [True, True]


def test_frequencies_are_the_models(model):
    """4,000 draws of one token: each within four standard deviations of its probability."""
    sampler = make_sampler(model, max_new_tokens=1)
    said = sampler.generate([[5, 6, 7]] * 4000)
    with torch.no_grad():
        p = (model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.8).softmax(-1)
    found = torch.bincount(torch.tensor([one.ids[0] for one in said]), minlength=len(p)) / 4000
    assert bool(((found - p).abs() <= 4 * (p * (1 - p) / 4000).sqrt() + 1e-9).all())


def test_the_same_number_of_updates_draws_the_same_and_another_does_not(model):
    rows = openings(2, 4)
    one, other = make_sampler(model), make_sampler(model)
    one.generate(rows)
    for sampler in (one, other):
        sampler.weights_changed(3)
    again = [[said.ids for said in sampler.generate(rows)] for sampler in (one, other)]
    assert again[0] == again[1]
    one.weights_changed(4)
    assert [said.ids for said in one.generate(rows)] != again[0]


def test_rows_are_found_again_in_their_order():
    held = [[1, 2], [1, 2], [3], [4, 5, 6]]
    assert followed(held, [[1, 2, 9], [1, 2, 8], [3, 7], [4, 5, 6, 7]]) == [0, 1, 2, 3]
    assert followed(held, [[1, 2, 9], [4, 5, 6]]) == [0, 3]
    assert followed(held, [[3, 1], [1, 2, 1]]) is None  # out of order: read anew
    assert followed(held, [[1]]) is None
    assert followed([], [[1]]) is None


def test_weights_that_are_broken_are_named():
    broken = world.make_model(seed=5)
    with torch.no_grad():
        broken.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="not numbers"):
        make_sampler(broken).generate([[3, 4]])


@pytest.mark.nemo
def test_a_batch_comes_back_as_nemo_rl_wants_it_and_the_policy_thinks_the_same_of_it(nemo_rl, tmp_path):
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict
    from nemo_rl.models.generation.interfaces import verify_right_padding

    from agent_rft.training.nemo.cpu_worker import CpuPolicyWorkerImpl

    worker = CpuPolicyWorkerImpl(here.make_config(world.save_base(tmp_path)))
    rows = openings(3, 2)
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [here.PAD] * (int(lengths.max()) - len(row)) for row in rows])
    out = worker.generate(BatchedDataDict(input_ids=ids, input_lengths=lengths))
    assert verify_right_padding(out, pad_value=here.PAD) == (True, None)
    assert torch.equal(out["unpadded_sequence_lengths"], lengths + out["generation_lengths"])
    whole = BatchedDataDict(input_ids=out["output_ids"], input_lengths=out["unpadded_sequence_lengths"])
    told = worker.get_logprobs(whole)["logprobs"]
    for row, (start, end) in enumerate(zip(lengths.tolist(), out["unpadded_sequence_lengths"].tolist(), strict=True)):
        torch.testing.assert_close(out["logprobs"][row, start:end], told[row, start:end], rtol=0, atol=1e-5)
        assert not out["logprobs"][row, :start].any() and not out["logprobs"][row, end:].any()
        assert bool(out["truncated"][row]) == (int(out["output_ids"][row, end - 1]) not in here.ENDS)
