"""The engine's promises: what infrastructure failed touches nothing, cutting a step changes nothing, the reference stays
where it is, and faults in the model's files are said so that they can be mended."""

import json
import resource
import shutil

import pytest
import small_world as world
import torch

from agent_rft.contracts.errors import Diverged, UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.training import Lora
from agent_rft.training.advantages import group_advantages
from agent_rft.training.local.batches import Trajectory, trajectories
from agent_rft.training.local.checkpoints import Checkpoints
from agent_rft.training.local.engine import LocalEngine
from agent_rft.training.local.models import load_policy
from agent_rft.training.local.ports import Position
from agent_rft.training.local.scoring import Scorer

LORA = Lora(4, 8, ("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world.save_base(tmp_path_factory.mktemp("base"))


def make_engine(base, tmp_path, resume=False, lora=None, **algorithm) -> LocalEngine:
    job = world.make_job(base, tmp_path, algorithm=algorithm, model={"lora": lora})
    return LocalEngine(job.model, job.algorithm, Checkpoints(tmp_path, 3), "run", 0, resume)


def rollout(seed: int, reward: float | None) -> GradedRollout:
    """Two turns of random tokens; without a reward it failed from infrastructure after having spoken."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(least: int) -> list[int]:
        return torch.randint(4, 16, (least + seed % 5,), generator=generator).tolist()

    turns = []
    for _ in range(2):
        said = tokens(3)
        turns.append(Turn("", tokens(4), said, (-1 - torch.rand(len(said), generator=generator)).tolist()))
    ending = Ending.INFRA_FAILED if reward is None else Ending.ANSWERED
    state = Rollout(str(seed), (), (), Limits(), turns=turns, ending=ending, failed_part="tool:look" if reward is None else "")
    return GradedRollout(world.make_rows(1)[0], 0, state, None if reward is None else Grade(world.LikesA.ref, reward))


def gradient_of(engine: LocalEngine, rewards_and_rollouts) -> list[torch.Tensor]:
    """What a step would add to the weights, from rewards to gradient."""
    rewards = [reward for reward, _ in rewards_and_rollouts]
    engine.accumulate(trajectories([r for _, r in rewards_and_rollouts], group_advantages(rewards)))
    gradients = [weight.grad.clone() for weight in engine.trained if weight.grad is not None]
    for weight in engine.trained:
        weight.grad = None
    return gradients


REWARDS = (1.0, None, 0.0, 0.5, None, 0.0)


def test_rollouts_that_infrastructure_failed_are_neutral_to_the_gradient(base, tmp_path):
    """The gradient of a batch in which two of six failed is, to the last bit, that of the batch without them."""
    engine = make_engine(base, tmp_path)
    batch = [(reward, rollout(seed, reward)) for seed, reward in enumerate(REWARDS)]
    with_failures = gradient_of(engine, batch)
    without = gradient_of(engine, [pair for pair in batch if pair[0] is not None])
    assert any(gradient.abs().max() > 0 for gradient in without)
    assert all(torch.equal(one, other) for one, other in zip(with_failures, without, strict=True))


def test_counting_a_failure_as_a_wrong_answer_would_not_be(base, tmp_path):
    """The mistake that the test above guards against, made on purpose: same rollouts, failures scored 0."""
    engine = make_engine(base, tmp_path)
    batch = [(reward, rollout(seed, reward)) for seed, reward in enumerate(REWARDS)]
    scored = [(reward or 0.0, rollout(seed, reward or 0.0)) for seed, reward in enumerate(REWARDS)]
    right, wrong = gradient_of(engine, batch), gradient_of(engine, scored)
    assert max((one - other).abs().max() for one, other in zip(right, wrong, strict=True)) > 1e-3


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_step_is_the_same_however_it_is_cut(base, tmp_path, lora):
    batch = [(reward, rollout(seed, reward)) for seed, reward in enumerate((1.0, 0.0, 0.5, 0.0, 1.0))]
    whole, cut = (gradient_of(make_engine(base, tmp_path, lora=lora, micro_batch_tokens=size), batch) for size in (10_000, 20))
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_context_tokens_are_not_trained_on(base, tmp_path):
    """What stood before the last sampled token matters; what the model read is never a target: its weight in the loss is 0."""
    engine = make_engine(base, tmp_path)
    read_only = Trajectory([5, 6, 7, 8], [False, False, False, True], [0, 0, 0, -1.0], 1.0)
    done = engine.accumulate([read_only])
    logits = engine.policy.model(torch.tensor([[5, 6, 7]])).logits[0, -1]
    logprob = torch.log_softmax(logits, -1)[8].item()
    assert done.loss == pytest.approx(-min(2.718281828 ** (logprob + 1.0), 1.2), rel=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_kl_is_to_the_base_and_grows_from_nothing(base, tmp_path, lora):
    engine = make_engine(base, tmp_path, lora=lora)
    batch = trajectories([rollout(seed, 1.0) for seed in range(4)], [1.0, -1.0, 1.0, -1.0])
    first = engine.update(batch, 0.05)
    second = engine.update(batch, 0.05)
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert second.kl > 1e-3
    assert first.grad_norm > 0


def test_lora_keeps_no_second_copy_and_trains_adapters_alone(base, tmp_path):
    engine = make_engine(base, tmp_path, lora=LORA)
    trained = sum(weight.numel() for weight in engine.trained)
    assert trained == 2 * 4 * (32 + 32 + 32 + 16)  # layers x rank x (q in + q out + v in + v out), 2 of 4 heads of 8 for v
    assert engine._frozen is None


def test_an_update_that_is_not_a_number_changes_nothing(base, tmp_path):
    engine = make_engine(base, tmp_path)
    before = [weight.detach().clone() for weight in engine.trained]
    with pytest.raises(Diverged):
        engine.update([Trajectory([5, 6], [False, True], [0.0, float("-inf")], -1.0)], 0.1)
    assert all(torch.equal(old, new) for old, new in zip(before, engine.trained, strict=True))


def test_a_step_with_nothing_to_learn_from_moves_nothing(base, tmp_path):
    engine = make_engine(base, tmp_path)
    before = [weight.detach().clone() for weight in engine.trained]
    assert engine.update([], 0.1).loss == 0.0
    assert all(torch.equal(old, new) for old, new in zip(before, engine.trained, strict=True))


def test_recomputing_activations_changes_no_gradient(base, tmp_path):
    """What a GPU run does to save memory, tried on the CPU."""
    batch = [(reward, rollout(seed, reward)) for seed, reward in enumerate((1.0, 0.0, 0.5))]
    plain = gradient_of(make_engine(base, tmp_path), batch)
    saving = make_engine(base, tmp_path)
    saving.recompute_activations()
    for one, other in zip(plain, gradient_of(saving, batch), strict=True):
        torch.testing.assert_close(one, other)


def test_a_disk_that_fills_while_saving_is_said_and_leaves_the_checkpoint_before(base, tmp_path):
    """The system's own limit on a file's size stands for the full disk: the library that writes weights fails in its own way."""
    engine = make_engine(base, tmp_path)
    kept = engine.save(Position(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="could not be written") as caught:
            engine.save(Position(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "step-000001, is whole" in caught.value.cure and f"then `make resume RUN={tmp_path.parent}`;" in caught.value.cure
    assert engine.newest_checkpoint == kept


def test_the_head_runs_by_itself_only_where_it_is_the_whole_rest_of_the_model():
    assert Scorer(world.make_model()).split
    scaled = world.make_model("granite", logits_scaling=3.0)
    assert not Scorer(scaled).split
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(Scorer(scaled).logits(ids, (0, [1])), scaled(ids).logits[0, [1]])


# --- faults in what the user named ---------------------------------------------------------------------------------


def load(path, **model):
    return load_policy(world.make_job(str(path), "unused", model=model).model, checkpoint=None, trainable=True)


@pytest.fixture
def copy_of(base, tmp_path):
    return shutil.copytree(base, tmp_path / "model")


def test_weights_cut_short_are_named(copy_of):
    weights = copy_of / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is cut short"):
        load(copy_of)


def test_a_broken_config(copy_of):
    (copy_of / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    with pytest.raises(UserError, match="could not be loaded"):
        load(copy_of)


def test_lora_on_layers_that_are_not_there(base):
    with pytest.raises(UserError, match="LoRA does not fit") as caught:
        load(base, lora=Lora(4, 8, ("nothing_like_it",)))
    assert "target_modules" in caught.value.cure


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ({"dtype": "bfloat16"}, "bfloat16 needs a CUDA GPU"),
        ({"dtype": "float7"}, "dtype=float7"),
        ({"device": "abacus"}, "device=abacus is no device"),
    ],
)
def test_what_the_machine_cannot_do(base, model, what):
    with pytest.raises(UserError, match=what):
        load(base, **model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is one")
def test_no_gpu(base):
    with pytest.raises(UserError, match="no CUDA GPU"):
        load(base, device="cuda")
