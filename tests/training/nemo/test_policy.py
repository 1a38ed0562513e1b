"""The guarded policy in NeMo RL's own Policy and worker groups, on Ray: what is refused touches nothing, what is allowed is
told, generation speaks with the policy's newest weights, and a reference elsewhere says what the built-in one says."""

import math
import sys
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "local")]
import policy_world as here
import small_world as world

from agent_rft.contracts.errors import Diverged
from agent_rft.training.guards import check_finite

NUMBERS = count()
pytestmark = [pytest.mark.nemo, pytest.mark.usefixtures("ray_here")]


class Notes:
    """A watch that writes down what it is told."""

    def __init__(self, refuses=lambda kl, finite: False) -> None:
        self.refuses, self.asked, self.told = refuses, [], []

    def refuse_update(self, kl, finite) -> bool:
        self.asked.append((kl, finite))
        return self.refuses(kl, finite)

    def updated(self, **numbers) -> None:
        self.told.append(numbers)
        check_finite(numbers["loss"], numbers["grad_norm"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world.save_base(tmp_path_factory.mktemp("base"))


def made(config, *, init_reference_model=True, **ours):
    """As NeMo RL's setup() makes it: with these arguments by name."""
    from agent_rft.training.nemo.launch import CPU_WORKER
    from agent_rft.training.nemo.policy import GuardedPolicy

    factory = partial(GuardedPolicy, worker=CPU_WORKER, name_prefix=f"policy-{next(NUMBERS)}", **ours)
    torch.manual_seed(5)
    return factory(
        cluster=None,
        config=config,
        tokenizer=None,
        processor=None,
        weights_path=None,
        optimizer_path=None,
        init_optimizer=True,
        init_reference_model=init_reference_model,
    )


@pytest.fixture
def make_policy():
    policies = []

    def make(*args, **kwargs):
        policies.append(made(*args, **kwargs))
        return policies[-1]

    yield make
    for policy in policies:
        policy.shutdown()


@pytest.fixture(scope="module")
def policy(ray_here, base):
    """One for several tests: each gives it a watch of its own."""
    policy = made(here.make_config(base), watch=Notes())
    yield policy
    policy.shutdown()


def weights_of(policy) -> dict:
    import ray

    return ray.get(policy.worker_group.workers[0].weights.remote())[1]


def unchanged(before: dict, policy) -> bool:
    return all(torch.equal(before[name], weight) for name, weight in weights_of(policy).items())


def digested(results) -> dict:
    """What NeMo RL's training loop makes of an update's answer, its own report included."""
    from nemo_rl.algorithms.utils import print_performance_metrics

    metrics = {"loss": results["loss"].numpy(), "grad_norm": results["grad_norm"].numpy()} | results["all_mb_metrics"]
    mean = ("lr", "global_valid_seqs", "global_valid_toks")
    summed = {name: np.mean(value).item() if name in mean else np.sum(value).item() for name, value in metrics.items()}
    timing = {"policy_training": 1.0, "total_step_time": 2.0, "generation": 1.0, "policy_and_reference_logprobs": 1.0}
    master = SimpleNamespace(
        cluster={"num_nodes": 1, "gpus_per_node": 1},
        policy={"generation": {"colocated": {"enabled": True}}},
        grpo={"num_prompts_per_step": 2, "num_generations_per_prompt": 4},
    )
    print_performance_metrics(results, dict(summed), timing, master)
    return summed


READ_BY_NEMO_RL = {"loss", "grad_norm", "lr", "global_valid_seqs", "global_valid_toks", "gen_kl_error", "token_mult_prob_error"}


def test_an_allowed_update_is_made_and_told(policy, base):
    policy._watch = watch = Notes()
    batch, before = here.make_batch(base, failed=(3,)), weights_of(policy)
    summed = digested(policy.train(batch, here.make_loss(0.1)))
    assert not unchanged(before, policy) and summed.keys() >= READ_BY_NEMO_RL
    ((kl, finite),) = watch.asked
    gap = (batch["reference_policy_logprobs"] - batch["prev_logprobs"])[:, 1:].double()
    counts = (batch["token_mask"] * batch["sample_mask"][:, None])[:, 1:] > 0
    assert kl == pytest.approx(float((gap.exp() - gap - 1)[counts].mean()), rel=1e-5) and finite
    (told,) = watch.told
    assert (
        told["loss"] == pytest.approx(summed["loss"]) and told["grad_norm"] == pytest.approx(summed["grad_norm"]) and told["grad_norm"] > 0
    )
    assert told["learning_rate"] == 5e-4 and 0 < told["clip_fraction"] < 1 and 0 < told["entropy"] < math.log(17) and told["seconds"] > 0
    assert summed["global_valid_toks"] == counts.sum()


def test_a_refused_update_leaves_the_weights_to_the_last_bit_and_nemo_rl_goes_on(policy, base):
    policy._watch = watch = Notes(refuses=lambda kl, finite: kl > 1e-3)
    before = weights_of(policy)
    summed = digested(policy.train(here.make_batch(base), here.make_loss(0.1)))
    assert unchanged(before, policy) and watch.asked and not watch.told
    assert summed.keys() >= READ_BY_NEMO_RL and summed["grad_norm"] == 0


def test_a_batch_of_which_nothing_counts_goes_through_untrained(policy, base):
    policy._watch = watch = Notes()
    before = weights_of(policy)
    batch = here.make_batch(base, failed=tuple(range(8)))
    told = policy.get_logprobs(batch)["logprobs"], policy.get_reference_policy_logprobs(batch)["reference_logprobs"]
    summed = digested(policy.train(batch, here.make_loss(0.1)))
    assert unchanged(before, policy) and watch.asked == [(None, True)] and not watch.told
    assert summed.keys() >= READ_BY_NEMO_RL and summed["global_valid_toks"] == 0 and not any(part.any() for part in told)


@pytest.mark.parametrize("broken", ["advantages", "prev_logprobs", "reference_policy_logprobs"])
def test_what_is_no_number_is_seen_before_the_update_where_it_counts_and_only_there(policy, base, broken):
    policy._watch = watch = Notes(refuses=lambda kl, finite: True)
    for row in (0, 3):  # row 3 failed and does not count
        batch = here.make_batch(base, failed=(3,))
        batch["advantages"] = batch["advantages"].clone()
        batch[broken][row, 6] = float("nan")
        policy.train(batch, here.make_loss(0.1))
    assert [finite for _, finite in watch.asked] == [False, True]


def test_an_update_that_was_no_number_ends_the_run_with_its_weights_as_they_were(policy, base):
    policy._watch, before = Notes(), weights_of(policy)
    batch = here.make_batch(base)
    batch["generation_logprobs"][0, 6] = float("nan")
    loss = here.make_loss(0.1, use_importance_sampling_correction=True)
    batch["advantages"] = batch["advantages"] * 3e38  # finite, and too large for a sum
    with pytest.raises(Diverged, match="not a number"):
        policy.train(batch, loss)
    assert unchanged(before, policy)


def test_without_a_penalty_there_is_no_reference_and_no_kl(base, make_policy):
    watch = Notes()
    policy = make_policy(here.make_config(base), watch=watch, init_reference_model=False)
    batch = here.make_batch(base)
    batch["reference_policy_logprobs"] = torch.zeros_like(batch["prev_logprobs"])  # NeMo RL's placeholder
    policy.train(batch, here.make_loss(0.0))
    assert watch.asked == [(None, True)] and len(watch.told) == 1


def test_a_dedicated_worker_says_what_the_builtin_reference_says_and_losses_are_identical(base, make_policy):
    from agent_rft.training.nemo.launch import CPU_WORKER
    from agent_rft.training.nemo.reference import WorkerGroupReference

    config = here.make_config(base)
    reference = WorkerGroupReference(config, None, worker=CPU_WORKER, resource=None)
    builtin, dedicated = make_policy(config, watch=Notes()), make_policy(config, watch=Notes(), reference=reference)
    losses = []
    for policy in (builtin, dedicated):
        losses.append([])
        for seed in range(3):
            batch = here.make_batch(base, seed=seed)
            batch["reference_policy_logprobs"] = policy.get_reference_policy_logprobs(batch)["reference_logprobs"]
            losses[-1].append(float(policy.train(batch, here.make_loss(0.1))["loss"]))
    assert losses[0] == losses[1] and len(set(losses[0])) == 3
    assert all(math.isfinite(loss) for loss in losses[0])


def test_adapters_off_and_a_dedicated_worker_agree_under_lora(base, make_policy):
    from agent_rft.training.nemo.launch import CPU_WORKER
    from agent_rft.training.nemo.reference import WorkerGroupReference

    config = here.make_config(base, lora=here.LORA)
    reference = WorkerGroupReference(config, None, worker=CPU_WORKER, resource=None)
    policy, batch = make_policy(config, watch=Notes(), adapter_off=True), here.make_batch(base)
    for _ in range(2):
        policy.train(batch, here.make_loss(0.1))
    off = policy.get_reference_policy_logprobs(batch)["reference_logprobs"]
    assert torch.equal(off, reference.logprobs(batch, 3))
    assert not torch.allclose(off, policy.get_logprobs(batch)["logprobs"], atol=1e-3)
    reference.shutdown()


def test_generation_speaks_with_the_newest_weights_after_nemo_rls_own_refit(base, policy):
    from nemo_rl.algorithms.grpo import refit_policy_generation
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    from agent_rft.training.nemo.cpu_generation import CpuGeneration

    policy._watch = Notes()
    generation = CpuGeneration(cluster=None, config=policy.cfg["generation"])
    generation.prepare_refit_info(policy.prepare_refit_info())
    asked = BatchedDataDict(input_ids=torch.randint(3, 17, (6, 9)), input_lengths=torch.tensor([9] * 6))
    for moved in (False, True):
        if moved:
            policy.train(here.make_batch(base), here.make_loss(0.1))
        refit_policy_generation(policy, generation, True)
        out = generation.generate(asked)
        whole = BatchedDataDict(input_ids=out["output_ids"], input_lengths=out["unpadded_sequence_lengths"])
        told = policy.get_logprobs(whole)["logprobs"]
        for row, end in enumerate(out["unpadded_sequence_lengths"].tolist()):
            torch.testing.assert_close(out["logprobs"][row, 9:end], told[row, 9:end], rtol=0, atol=1e-5)
    generation.shutdown()


def test_a_checkpoint_speaks_alone(base, tmp_path, policy):
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    from agent_rft.training.nemo.cpu_generation import CpuGeneration

    policy.save_checkpoint(str(tmp_path / "weights"), str(tmp_path / "optimizer"), str(tmp_path / "tokenizer"))
    generation = CpuGeneration(None, policy.cfg["generation"] | {"model_name": str(tmp_path / "weights")})
    out = generation.generate(BatchedDataDict(input_ids=torch.tensor([[3, 4, 5]]), input_lengths=torch.tensor([3])), greedy=True)
    whole = BatchedDataDict(input_ids=out["output_ids"], input_lengths=out["unpadded_sequence_lengths"])
    torch.testing.assert_close(out["logprobs"][0, 3:], policy.get_logprobs(whole)["logprobs"][0, 3:], rtol=0, atol=1e-5)
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file() and (tmp_path / "weights" / "tokenizer.json").is_file()
    generation.shutdown()
