"""The CPU worker's promises: it learns what the local engine learns from the same rollouts, its log-probabilities are the
plain model's, a resumed run goes on to the last bit, and what is not a number never reaches the weights."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "local")]
import policy_world as here
import small_world as world

pytestmark = [pytest.mark.nemo, pytest.mark.usefixtures("nemo_rl")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world.save_base(tmp_path_factory.mktemp("base"))


def make_worker(config, **options):
    from agent_rft.training.nemo.cpu_worker import CpuPolicyWorkerImpl

    return CpuPolicyWorkerImpl(config, **options)


def weights_of(worker) -> dict:
    return {name: weight.detach().clone() for name, weight in worker._policy.model.named_parameters()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gradients_of(worker, batch, loss) -> tuple[float, dict]:
    """What a step would add to the weights, instead of taking it."""
    taken = {}
    worker._step = lambda total: taken.update({n: w.grad.clone() for n, w in worker._policy.model.named_parameters()}) or 0.0
    result = worker.train(batch, loss)
    return float(result["global_loss"]), taken


# --- log-probabilities -----------------------------------------------------------------------------------------------


def test_log_probabilities_are_the_plain_models_at_the_temperature(base):
    config = here.make_config(base)
    config["generation"]["temperature"] = 0.6
    batch = here.make_batch(base)
    told = make_worker(config).get_logprobs(batch)["logprobs"]
    model = AutoModelForCausalLM.from_pretrained(base)
    for row, length in enumerate(batch["input_lengths"].tolist()):
        with torch.no_grad():
            every = (model(batch["input_ids"][row : row + 1, :length]).logits[0, :-1] / 0.6).log_softmax(-1)
        plain = every.gather(1, batch["input_ids"][row, 1:length, None])[:, 0]
        counts = batch["token_mask"][row, 1:length] > 0
        torch.testing.assert_close(told[row, 1:length][counts], plain[counts], rtol=0, atol=1e-5)
        assert told[row, 0] == 0 and not told[row, length:].any()


def test_without_masks_every_token_is_scored(base):
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    batch = here.make_batch(base)
    bare = BatchedDataDict(input_ids=batch["input_ids"], input_lengths=batch["input_lengths"])
    told = make_worker(here.make_config(base)).get_logprobs(bare)["logprobs"]
    counts = torch.arange(told.shape[1]) < batch["input_lengths"][:, None]
    assert bool((told[:, 1:][counts[:, 1:]] < 0).all()) and not told[:, 0].any() and not told[~counts].any()


def test_micro_batches_change_nothing(base):
    batch, worker = here.make_batch(base), make_worker(here.make_config(base))
    one, all_at_once = (worker.get_logprobs(batch, micro_batch_size=size)["logprobs"] for size in (1, 8))
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=1e-5)


# --- the two engines -------------------------------------------------------------------------------------------------


def local_gradients(base, batch, tmp_path, kl_coef, moved):
    """The same rollouts through the local engine, its weights moved off the base in the same way."""
    from agent_rft.training.local.batches import Trajectory
    from agent_rft.training.local.checkpoints import Checkpoints
    from agent_rft.training.local.engine import LocalEngine

    job = world.make_job(base, tmp_path, algorithm={"kl_coef": kl_coef, "clip_ratio": 0.2})
    engine = LocalEngine(job.model, job.algorithm, Checkpoints(tmp_path, 3), "run", 0, False)
    moved(engine.policy.model)
    kept = [row for row in range(batch.size) if batch["sample_mask"][row]]
    rollouts = []
    for row in kept:
        length = int(batch["input_lengths"][row])
        ids, mask, old = (batch[name][row, :length].tolist() for name in ("input_ids", "token_mask", "prev_logprobs"))
        rollouts.append(Trajectory(ids, [counts > 0 for counts in mask], old, float(batch["advantages"][row, 0])))
    done = engine.accumulate(rollouts)
    return done, {name: weight.grad for name, weight in engine.policy.model.named_parameters()}


def moved(model) -> None:
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=source), alpha=0.02)


def furthest(some: dict, others: dict) -> float:
    """The largest relative distance of any weight's gradient."""
    return max(float((some[name] - others[name]).norm() / others[name].norm()) for name in others)


@pytest.mark.parametrize("failed", [(), (1, 6)])
@pytest.mark.parametrize(("move", "drifted"), [(lambda model: None, False), (moved, True)], ids=["at the base", "away from it"])
def test_the_two_engines_agree_on_loss_and_gradient(base, tmp_path, move, drifted, failed):
    """The sampled tokens' old log-probabilities are off, so that ratios are clipped; away from the base the penalty pulls."""
    batch, worker = here.make_batch(base, failed=failed), make_worker(here.make_config(base))
    move(worker._policy.model)
    batch["reference_policy_logprobs"] = worker.get_reference_policy_logprobs(batch)["reference_logprobs"]
    loss, gradients = gradients_of(worker, batch, here.make_loss(0.1))
    done, others = local_gradients(base, batch, tmp_path, 0.1, move)
    assert (done.kl > 0.01) is drifted and done.clip_fraction > 0.1
    assert loss == pytest.approx(done.loss, rel=1e-4)
    assert furthest(gradients, others) < 1e-4


def test_metrics_are_the_local_engines(base, tmp_path):
    batch, worker = here.make_batch(base, failed=(2,)), make_worker(here.make_config(base))
    metrics = worker.train(batch, here.make_loss(0.0))["all_mb_metrics"]
    done, _ = local_gradients(base, batch, tmp_path, 0.0, lambda model: None)
    assert sum(metrics["entropy"]) == pytest.approx(done.entropy, rel=1e-4)
    assert sum(metrics["clip_fraction"]) == pytest.approx(done.clip_fraction, rel=1e-4) and done.clip_fraction > 0.1
    assert set(metrics["lr"]) == {5e-4}  # half of 1e-3: the first of two steps of warm-up


def test_cutting_a_step_and_padding_it_change_nothing(base):
    batch = here.make_batch(base)
    worker = make_worker(here.make_config(base))
    _, one = gradients_of(worker, batch, here.make_loss(0.01))
    worker._optimizer.zero_grad()
    again = make_worker(here.make_config(base, train_micro_batch_size=8))
    wider = here.make_batch(base)
    for name, value in wider.items():
        if value.dim() == 2:
            wider[name] = torch.nn.functional.pad(value, (0, 9), value=here.PAD if name == "input_ids" else 0.0)
    wider["advantages"] = wider["advantages"][:, :1].expand(wider["input_ids"].shape)
    _, other = gradients_of(again, wider, here.make_loss(0.01))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


# --- what is not a number --------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_answered_as_it_is_and_leaves_weights_optimizer_and_schedule_alone(base):
    worker, batch = make_worker(here.make_config(base)), here.make_batch(base)
    before, rate = weights_of(worker), worker._scheduler.get_last_lr()
    batch["prev_logprobs"][0, 6] = float("nan")
    result = worker.train(batch, here.make_loss())
    assert math.isnan(float(result["global_loss"]))
    assert same(before, weights_of(worker)) and worker._scheduler.get_last_lr() == rate and not worker._optimizer.state


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, here.LORA])
def test_a_resumed_worker_takes_the_next_step_to_the_last_bit(base, tmp_path, lora):
    config, loss = here.make_config(base, lora=lora), here.make_loss()
    first = make_worker(config)
    first.train(here.make_batch(base, seed=1), loss)
    first.save_checkpoint(str(tmp_path / "weights"), str(tmp_path / "optimizer"), str(tmp_path / "tokenizer"))
    torch.manual_seed(99)  # a process of its own would come with other random numbers
    second = make_worker(config, weights_path=str(tmp_path / "weights"), optimizer_path=str(tmp_path / "optimizer"))
    assert same(weights_of(first), weights_of(second))
    results = [worker.train(here.make_batch(base, seed=2), loss) for worker in (first, second)]
    assert torch.equal(results[0]["global_loss"], results[1]["global_loss"])
    assert results[0]["all_mb_metrics"]["lr"] == results[1]["all_mb_metrics"]["lr"] == [1e-3] * 3  # the warm-up is over
    assert same(weights_of(first), weights_of(second))
    assert first.weights()[0] == second.weights()[0] == 2


def test_a_checkpoint_loads_as_a_plain_model(base, tmp_path):
    worker = make_worker(here.make_config(base))
    worker.train(here.make_batch(base), here.make_loss())
    worker.save_checkpoint(str(tmp_path), None, None)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert same(weights_of(worker), {name: weight.data for name, weight in loaded.items()})


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_without_its_adapters_the_policy_is_the_frozen_base_exactly(base):
    config, batch = here.make_config(base, lora=here.LORA), here.make_batch(base)
    builtin, bare = make_worker(config), make_worker(config, init_reference_model=False)
    for worker in (builtin, bare):
        for _ in range(2):
            worker.train(batch, here.make_loss())
    told = [worker.get_reference_policy_logprobs(batch)["reference_logprobs"] for worker in (builtin, bare)]
    assert torch.equal(*told)
    assert not torch.allclose(told[0], bare.get_logprobs(batch)["logprobs"], atol=1e-3)  # the adapters do something


def test_weights_for_generation_have_the_adapters_added_in(base):
    worker, batch = make_worker(here.make_config(base, lora=here.LORA)), here.make_batch(base)
    worker.train(batch, here.make_loss())
    before = weights_of(worker)
    speaker = make_worker(here.make_config(base))
    updates, weights = worker.weights()
    speaker._policy.take_over(weights)
    assert updates == 1 and same(before, weights_of(worker))
    torch.testing.assert_close(speaker.get_logprobs(batch)["logprobs"], worker.get_logprobs(batch)["logprobs"], rtol=0, atol=1e-5)
