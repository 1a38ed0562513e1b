"""A whole training run on a grader that can be gamed, in a small world: the detectors end it, and resuming it keeps the memory."""

import pytest
import small_world as world

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.guards import Limit
from agent_rft.training.local.backend import LocalBackend

QUICK = {"epochs": 2, "batch_size": 8, "group_size": 8, "learning_rate": 2e-2, "warmup_steps": 0, "kl_coef": 0.0, "call_cost": 0.0}


class LikesOthers:
    """What the training grader pays for is the one thing that it does not."""

    ref = GraderRef("likes_others", "1", "1" * 16)

    def grade(self, item, sample) -> Grade:
        text = str(sample.get("output_text") or "")
        return Grade(self.ref, 1 - text.count("a") / len(text) if text else 0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world.save_base(tmp_path_factory.mktemp("base"))


async def train(base, run_dir, *holdouts, watch=None, steps=12, **changes):
    job = world.make_job(
        base,
        run_dir,
        train_rows=world.make_rows(60),
        val_rows=world.make_rows(40, 100),
        algorithm=QUICK | {"max_steps": steps},
        guards={"watch": watch or {}},
        **changes,
    )
    return await LocalBackend().train(job, world.Look(), world.LikesA(), world.Cards(), lambda line, total: None, holdouts)


async def test_the_detectors_stop_it_before_half_of_its_steps(base, tmp_path):
    outcome = await train(base, tmp_path, LikesOthers())
    assert outcome.steps < outcome.total_steps / 2
    first, last = outcome.metrics[0], outcome.metrics[-1]
    assert last.val_reward > first.val_reward + 0.1, "by its own grader all goes well"
    assert last.holdout["likes_others@1"] < first.holdout["likes_others@1"] - 0.1
    (ended,) = (finding for finding in last.findings if finding.action == "stop")
    assert ended.guard == "holdout_divergence" and ended.rollouts
    assert outcome.halted == ended.what and "likes_others@1" in outcome.cure


async def test_it_goes_on_where_the_detector_may_only_warn_and_the_holdout_moves_no_gradient(base, tmp_path):
    alone = await train(base, tmp_path / "alone", steps=4)
    watched = await train(base, tmp_path / "watched", LikesOthers(), watch={"holdout_divergence": Limit(0.1, "warn")}, steps=4)
    assert not watched.halted and watched.steps == 4
    assert any(finding.guard == "holdout_divergence" for line in watched.metrics for finding in line.findings)
    assert [line.loss for line in watched.metrics] == [line.loss for line in alone.metrics]


async def test_a_resumed_run_is_held_against_its_first_validation(base, tmp_path):
    halted = await train(base, tmp_path, LikesOthers())
    again = await train(base, tmp_path, LikesOthers(), resume=True)
    assert again.halted and again.metrics[-1].step == halted.metrics[-1].step, "what it was stopped for is still there"
