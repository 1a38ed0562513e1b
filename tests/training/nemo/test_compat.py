"""Each patch of NeMo RL is still needed, and refuses a NeMo RL that looks otherwise. A test that fails here says which patch
can go."""

import inspect
import math

import pytest
import torch

pytestmark = pytest.mark.nemo


@pytest.fixture
def grpo(nemo_rl):
    from nemo_rl.algorithms import grpo

    return grpo


def patches_of(watch=None, rollouts=None, generation=None):
    from agent_rft.training.nemo.compat_v0_7_0 import patches

    class Rollouts:
        def around(self, function):
            return function

    return patches(watch, rollouts or Rollouts(), generation)


def test_everything_is_put_in_place_and_taken_back(grpo):
    from nemo_rl.experience import rollouts

    from agent_rft.training.nemo.compat_v0_7_0 import patched

    before = (grpo.validate, grpo.TimeoutChecker, grpo.GRPOAdvantageEstimator, grpo.VllmGeneration, rollouts.get_keys_from_message_log)
    with patched(patches_of(generation=dict)):
        during = (grpo.validate, grpo.TimeoutChecker, grpo.GRPOAdvantageEstimator, grpo.VllmGeneration, rollouts.get_keys_from_message_log)
    after = (grpo.validate, grpo.TimeoutChecker, grpo.GRPOAdvantageEstimator, grpo.VllmGeneration, rollouts.get_keys_from_message_log)
    assert before == after and not any(a is b for a, b in zip(before, during, strict=True))


@pytest.mark.parametrize("change", ["renamed", "other parameters"])
def test_a_nemo_rl_that_looks_otherwise_is_one_clear_error_and_nothing_is_replaced(grpo, monkeypatch, change):
    from agent_rft.contracts.errors import UserError
    from agent_rft.training.nemo.compat_v0_7_0 import patched

    if change == "renamed":
        monkeypatch.delattr(grpo, "validate")
    else:
        monkeypatch.setattr(grpo, "validate", lambda policy, data: None)
    checker = grpo.TimeoutChecker
    with pytest.raises(
        UserError, match=r"not the 0\.7\.0 that is expected: nemo_rl\.algorithms\.grpo:validate (is gone|takes policy, data)"
    ):
        with patched(patches_of()):
            pass
    assert grpo.TimeoutChecker is checker


# --- is it still needed? ----------------------------------------------------------------------------------------------


def test_a_failed_rollout_still_drags_its_groups_baseline(grpo):
    """Rewards 1, 1, 0 and a failed one's 0: the valid ones' mean is 2/3, NeMo RL's 2/4, though the last has no weight."""
    estimator = grpo.GRPOAdvantageEstimator({"use_leave_one_out_baseline": False, "normalize_rewards": False}, None)
    batch = {"loss_multiplier": torch.tensor([1.0, 1.0, 1.0, 0.0])}
    rewards, prompts = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4, 1, dtype=torch.long)
    advantages = estimator.compute_advantage(prompts, rewards, torch.ones(4, 1), repeated_batch=batch)
    assert advantages[0, 0].item() == pytest.approx(1 - 2 / 4)


def test_the_environment_is_still_sent_words_only(nemo_rl):
    from nemo_rl.experience import rollouts

    assert 'get_keys_from_message_log(batch["message_log"][i], ["role", "content"])' in inspect.getsource(rollouts.calculate_rewards)


def test_a_loop_can_still_be_stopped_by_time_alone(grpo):
    assert not {"callbacks", "should_stop", "stop", "hooks"} & set(inspect.signature(grpo.grpo_train).parameters)
    assert grpo.TimeoutChecker(timeout=None).check_save() is False


def test_setup_still_takes_no_factory_for_the_generation(grpo):
    assert [name for name in inspect.signature(grpo.setup).parameters if "factory" in name] == ["policy_factory"]


def test_a_sample_still_has_no_id_and_a_failed_one_cannot_say_so(nemo_rl):
    """Copies of a prompt are equal, and whatever an environment answers, every sample keeps its weight."""
    from nemo_rl.data.collate_fn import rl_collate_fn
    from nemo_rl.environments.interfaces import EnvironmentReturn
    from nemo_rl.experience import rollouts

    datum = {"message_log": [], "length": 1, "extra_env_info": {"row": 1}, "loss_multiplier": 1.0, "idx": 0, "task_name": "t"}
    repeated = rl_collate_fn([datum]).repeat_interleave(2)
    assert repeated["extra_env_info"][0] == repeated["extra_env_info"][1]
    assert not {"valid", "failed", "loss_multiplier", "mask"} & set(EnvironmentReturn._fields)
    assert "loss_multiplier" not in inspect.getsource(rollouts.run_multi_turn_rollout)


def test_a_log_of_memory_still_ends_the_run_where_ray_does_not_answer_it(grpo, monkeypatch):
    from nemo_rl.utils import memory_tracker

    def nobody(**asked):
        raise RuntimeError("Failed to connect to GCS")

    monkeypatch.setattr(memory_tracker, "memory_summary", nobody)
    tracker = grpo.MemoryTracker()
    tracker.snapshot_start_of_stage("Generation", [])
    with pytest.raises(RuntimeError, match="GCS"):
        tracker.snapshot_start_of_stage("Policy train", [])


def test_validation_still_counts_failures_as_zeros(grpo, monkeypatch):
    """Two rewards, 1 and a failed rollout's 0: NeMo RL's accuracy is 1/2; ours is 1."""
    from types import SimpleNamespace

    from agent_rft.training.nemo.compat_v0_7_0 import patched

    config = SimpleNamespace(
        grpo={"max_val_samples": 2, "val_batch_size": 2, "max_rollout_turns": 1, "val_period": 1},
        policy={"max_total_sequence_length": 8, "generation": {"backend": "none"}},
        logger={"num_val_samples_to_print": 0},
        env={},
    )
    batch = {"total_reward": torch.tensor([1.0, 0.0]), "message_log": [[], []]}
    for name in ("_should_use_nemo_gym", "_should_use_async_rollouts"):
        monkeypatch.setattr(grpo, name, lambda config: False)
    rolled_out = inspect.signature(grpo.run_multi_turn_rollout)

    def run_multi_turn_rollout(*args, **kwargs):
        return batch, {"mean_gen_tokens_per_sample": 1.0}

    run_multi_turn_rollout.__signature__ = rolled_out
    monkeypatch.setattr(grpo, "run_multi_turn_rollout", run_multi_turn_rollout)

    def accuracy():
        return grpo.validate(None, [batch], None, {}, step=1, master_config=config)[0]["accuracy"]

    assert accuracy() == 0.5
    with patched(patches_of(watch=SimpleNamespace(validated=lambda: 1.0))):
        assert accuracy() == 1.0
    with patched(patches_of(watch=SimpleNamespace(validated=lambda: None))):
        assert math.isnan(accuracy())
