"""A whole training run in a small world: what it leaves, what halts it, what it never does."""

import json
import shutil

import pytest
import small_world as world

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.guards import Limit
from agent_rft.contracts.rollouts import Ending
from agent_rft.contracts.training import Lora
from agent_rft.training.local.backend import LocalBackend
from agent_rft.training.local.checkpoints import Checkpoints

UNLIKE = {"seconds": 0, "rollout_seconds": 0, "train_seconds": 0, "audit": []}
"""What two runs of the same seed may differ in: times, and ids of rollouts."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return world.save_base(tmp_path_factory.mktemp("base"))


async def train(base, run_dir, *, tools=None, cards=None, on_step=lambda line, total: None, **changes):
    return await LocalBackend().train(
        world.make_job(base, run_dir, **changes), tools or world.Look(), world.LikesA(), cards or world.Cards(), on_step
    )


def lines_of(run_dir) -> list[dict]:
    lines = [json.loads(line) | UNLIKE for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line | {"findings": [finding | {"rollouts": []} for finding in line["findings"]]} for line in lines]


async def test_a_run_validates_base_and_last_policy_and_learns_in_between(base, tmp_path):
    seen = []
    outcome = await train(base, tmp_path, on_step=lambda line, total: seen.append((line, total)))
    assert (outcome.steps, outcome.total_steps, outcome.halted) == (3, 3, "")  # 9 rows, 3 a batch
    assert [line.step for line in outcome.metrics] == [0, 1, 2, 3]
    assert [line.val_reward is not None for line in outcome.metrics] == [True, False, True, True]  # every 2 steps, and the last
    assert [line.loss is not None for line in outcome.metrics] == [True, True, True, False]
    assert [line.learning_rate for line in outcome.metrics] == [0.005, 0.01, 0.01, None]  # warm-up of 2 steps to 0.01
    assert seen == [(line, 3) for line in outcome.metrics]
    assert len(lines_of(tmp_path)) == 4


@pytest.mark.parametrize("lora", [None, Lora(4, 8, ("q_proj", "v_proj"))])
async def test_the_last_checkpoint_loads_as_a_sampler(base, tmp_path, lora):
    outcome = await train(base, tmp_path, model={"lora": lora})
    assert outcome.checkpoint.endswith("step-000003")
    sampler = LocalBackend().sampler(world.make_job(base, tmp_path, model={"lora": lora}).model, outcome.checkpoint, 1.0)
    assert sampler.checkpoint == f"{tmp_path.name}/step-3", "the name that training's own cards have"


async def test_every_rollout_becomes_a_card(base, tmp_path):
    cards = world.Cards()
    outcome = await train(base, tmp_path, cards=cards)
    assert len(cards.cards) == sum(line.rollouts for line in outcome.metrics) == 3 * (3 * 4) + 3 * (4 * 2)
    trained = [card for card in cards.cards if card.kind == "train"]
    assert len(trained) == 36 and all(card.advantage is not None for card in trained)
    assert all(card.advantage is None for card in cards.cards if card.kind == "eval")
    assert {card.versions.checkpoint for card in trained} == {"run/step-0", "run/step-1", "run/step-2"}


async def test_the_same_seed_gives_the_same_run_and_another_seed_another(base, tmp_path):
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        await train(base, tmp_path / name, seed=seed)
    one, two, other = (lines_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two != other


async def test_how_many_rollouts_are_in_flight_changes_only_the_pace(base, tmp_path):
    await train(base, tmp_path / "wide", rollouts_in_flight=64, algorithm={"epochs": 1, "max_steps": 1})
    await train(base, tmp_path / "narrow", rollouts_in_flight=5, algorithm={"epochs": 1, "max_steps": 1})
    wide, narrow = lines_of(tmp_path / "wide")[0], lines_of(tmp_path / "narrow")[0]
    assert (wide["train_reward"], wide["tokens"]) == (narrow["train_reward"], narrow["tokens"])


async def test_more_compute_is_a_larger_group(base, tmp_path):
    outcome = await train(base, tmp_path, algorithm={"compute_multiplier": 2, "max_steps": 1})
    assert outcome.metrics[0].rollouts == 3 * (4 * 2) + 4 * 2


async def test_a_tool_that_fails_too_often_halts_the_run_and_a_checkpoint_is_kept(base, tmp_path):
    outcome = await train(base, tmp_path, tools=world.Look(lambda number: number % 2 == 0), guards={"infra_window_calls": 10})
    assert "tool:look failed" in outcome.halted and "1.0% is allowed" in outcome.halted
    assert "mend tool:look" in outcome.cure
    assert outcome.steps < 3
    assert Checkpoints(tmp_path / "checkpoints", 1).checked(Checkpoints(tmp_path / "checkpoints", 1).newest())
    assert lines_of(tmp_path)[-1]["infra_failure_rate"] > 0.01


async def test_a_halted_run_goes_on_once_the_tool_is_mended(base, tmp_path):
    halted = await train(base, tmp_path, tools=world.Look(lambda number: number % 2 == 0), guards={"infra_window_calls": 10})
    mended = await train(base, tmp_path, resume=True, guards={"infra_window_calls": 10})
    assert halted.halted and not mended.halted
    assert [line.step for line in mended.metrics] == [0, 1, 2, 3]
    [undone] = [line for line in lines_of(tmp_path) if line["undone"]]
    assert undone["step"] == halted.metrics[-1].step
    assert [one["what"] for one in undone["findings"] if one["action"] == "stop"] == [halted.halted]


async def test_whoever_begins_the_run_says_what_a_secret_is(base, tmp_path):
    outcome = await train(base, tmp_path, algorithm={"max_steps": 1}, leaks_in=lambda rollout: ("KEY",))
    first = outcome.metrics[0].figures
    assert (first["leaked"], first["unsafe"], first["val_leaked"]) == (1.0, 1.0, 1.0)


async def test_below_the_limit_failures_are_shown_and_training_goes_on(base, tmp_path):
    cards = world.Cards()
    tools = world.Look(lambda number: number == 5)
    outcome = await train(base, tmp_path, tools=tools, cards=cards, guards={"max_infra_rate": 0.5, "infra_window_calls": 5})
    assert not outcome.halted
    assert sum(line.infra_failures for line in outcome.metrics) == 1
    assert max(line.infra_failure_rate for line in outcome.metrics) > 0
    (failed,) = (card for card in cards.cards if card.rollout.ending is Ending.INFRA_FAILED)
    assert failed.grade is None and failed.advantage is None


async def test_a_grader_that_is_down_halts_at_once(base, tmp_path):
    class Down(world.LikesA):
        def grade(self, item, sample):
            raise ConnectionError("no grader there")

    outcome = await LocalBackend().train(world.make_job(base, tmp_path), world.Look(), Down(), world.Cards(), lambda line, total: None)
    assert "every rollout of the step failed" in outcome.halted and "no grader there" in outcome.halted


async def test_drifting_from_the_reference_halts(base, tmp_path):
    outcome = await train(base, tmp_path, guards={"max_kl": 1e-3})
    assert "KL of" in outcome.halted
    assert outcome.metrics[-1].kl_to_ref > 1e-3
    assert max(Checkpoints(tmp_path / "checkpoints", 9).steps(), default=0) < outcome.steps, "the drifted weights are not kept"


async def test_a_drift_that_may_be_kept_ends_with_a_checkpoint_and_one_that_is_only_told_of_goes_on(base, tmp_path):
    stopped = await train(base, tmp_path / "stop", guards={"watch": {"kl": Limit(1e-3, "stop")}})
    assert "KL of" in stopped.halted and stopped.steps < 3
    assert Checkpoints(tmp_path / "stop" / "checkpoints", 9).steps()[-1] == stopped.steps
    told = await train(base, tmp_path / "warn", guards={"watch": {"kl": Limit(1e-3, "warn")}})
    assert (told.halted, told.steps) == ("", 3)
    assert [finding.guard for line in told.metrics for finding in line.findings].count("kl") == 1


async def test_holdouts_grade_validations_and_change_nothing_that_is_learnt(base, tmp_path):
    class LikesB(world.LikesA):
        ref = GraderRef("likes_b", "3", "1" * 16)
        seen = 0

        def grade(self, item, sample) -> Grade:
            LikesB.seen += 1
            return Grade(self.ref, 0.25)

    for name, holdouts in (("with", [LikesB()]), ("without", [])):
        job, on_step = world.make_job(base, tmp_path / name), lambda line, total: None
        await LocalBackend().train(job, world.Look(), world.LikesA(), world.Cards(), on_step, holdouts)
    by, without = lines_of(tmp_path / "with"), lines_of(tmp_path / "without")
    assert [list(line["holdout"]) for line in by] == [["likes_b@3"], [], ["likes_b@3"], ["likes_b@3"]]
    assert max(line["holdout"].get("likes_b@3", 0.0) for line in by) > 0
    assert LikesB.seen == 3 * 4 * 2, "validations alone: four rows, two tries each"
    learnt = ("val_reward", "train_reward", "loss", "kl_to_ref", "figures")
    assert [[line[name] for name in learnt] for line in by] == [[line[name] for name in learnt] for line in without]


async def test_weights_that_blew_up_are_not_kept(base, tmp_path):
    outcome = await train(base, tmp_path, algorithm={"learning_rate": 1e30, "warmup_steps": 0})
    assert "not numbers" in outcome.halted
    assert [finding.guard for finding in outcome.metrics[-1].findings] == ["finite"]
    newest = Checkpoints(tmp_path / "checkpoints", 1).newest()
    assert outcome.steps == 1 and newest is not None and newest.name == "step-000001"


async def test_cards_are_durable_before_the_checkpoint_that_follows_them(base, tmp_path):
    class Stuck(world.Cards):
        def flush(self, timeout: float = 60.0) -> None:
            raise InfraError("store", "disk gone")

    with pytest.raises(InfraError):
        await train(base, tmp_path, cards=Stuck())
    assert not (tmp_path / "checkpoints").exists()


async def test_a_new_run_does_not_mix_with_an_old_ones_checkpoints(base, tmp_path):
    await train(base, tmp_path)
    with pytest.raises(UserError, match="earlier run"):
        await train(base, tmp_path)


async def test_resuming_from_a_checkpoint_cut_short_names_the_file(base, tmp_path):
    outcome = await train(base, tmp_path)
    (weights,) = (tmp_path / "checkpoints" / "step-000003").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"step-000003/model.safetensors") as caught:
        await train(base, tmp_path, resume=True)
    assert "step-000002, is whole" in caught.value.cure
    with pytest.raises(UserError, match=r"model.safetensors"):
        LocalBackend().sampler(world.make_job(base, tmp_path).model, outcome.checkpoint, 1.0)


@pytest.mark.parametrize("lora", [None, Lora(4, 8, ("q_proj", "v_proj"))])
async def test_every_checkpoint_leads_to_the_same_end(base, tmp_path, lora):
    """Take the later checkpoints away, as if they had never been reached, and go on from an earlier one."""
    whole = tmp_path / "whole"
    await train(base, whole, keep_checkpoints=9, model={"lora": lora})
    for step in (1, 2):
        part = shutil.copytree(whole, tmp_path / f"from-{step}")
        for later in range(step + 1, 4):
            shutil.rmtree(part / "checkpoints" / f"step-{later:06d}")
        await train(base, part, resume=True, keep_checkpoints=9, model={"lora": lora})
        assert lines_of(part) == lines_of(whole)
        (weights,) = (part / "checkpoints" / "step-000003").glob("*.safetensors")
        assert world.digest(weights) == world.digest(whole / "checkpoints" / "step-000003" / weights.name)


async def test_a_resumed_run_remembers_the_failures_before_it(base, tmp_path):
    """The third call fails, in step 0; the guard's window still holds it in the last line, resumed or not."""
    guards = {"max_infra_rate": 0.5, "infra_window_calls": 10_000}
    await train(base, tmp_path, tools=world.Look(lambda number: number == 3), guards=guards)
    before = lines_of(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-000003")
    await train(base, tmp_path, resume=True, guards=guards)
    assert lines_of(tmp_path) == before
    assert before[-1]["infra_failure_rate"] > 0


async def test_resuming_a_finished_run_changes_nothing(base, tmp_path):
    await train(base, tmp_path)
    before = lines_of(tmp_path)
    outcome = await train(base, tmp_path, resume=True)
    assert lines_of(tmp_path) == before and outcome.steps == 3
