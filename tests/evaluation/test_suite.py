"""The same rows, the same seeds, whatever the order; and the sums over what came back."""

import pytest

from agent_rft.contracts.events import InfraFailed, ModelSpoke
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.rollouts import Limits, ToolResult
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.suite import evaluate, summarise

ROWS = [Row(id=name, prompt=name, reference_answer=name, tools=(ToolSpec("search"),)) for name in ("a", "b", "c")]


class OneCallThenTheAnswer:
    """A sampler that remembers the seeds it was asked with; rows in `down` meet a dead model server."""

    batched, checkpoint = False, "scripted"

    def __init__(self, down=()):
        self.seeds, self.down = {}, down

    async def sample(self, asks):
        return [self._reply(ask) for ask in asks]

    def _reply(self, ask):
        prompt = ask.conversation[0].content
        if prompt in self.down:
            return InfraFailed("model", "gone")
        if ask.turn == 0:
            self.seeds.setdefault(prompt, []).append(ask.seed)
            return ModelSpoke('<tool_call>{"name": "search", "arguments": {}}</tool_call>')
        return ModelSpoke("a")


class Nothing:
    async def call(self, rollout_id, call):
        return ToolResult(call.call_id, "nothing found")


class SameText:
    ref = GraderRef("same-text", "1", "h")

    def grade(self, item, sample):
        return Grade(self.ref, 1.0 if sample["output_text"] == item["reference_answer"] else 0.0)


async def ask(rows, sampler, phase="prior", seed=42, tries=2, **rest):
    return await evaluate(rows, tries, sampler, Nothing(), SameText(), Limits(), seed, phase, **rest)


async def test_every_row_gets_its_tries_in_order():
    graded = await ask(ROWS, OneCallThenTheAnswer())
    assert [(one.row.id, one.sample_index, one.reward) for one in graded] == [
        ("a", 0, 1.0), ("a", 1, 1.0), ("b", 0, 0.0), ("b", 1, 0.0), ("c", 0, 0.0), ("c", 1, 0.0),
    ]  # fmt: skip


async def test_seeds_hang_on_seed_phase_row_and_number_alone():
    whole, backwards, alone = OneCallThenTheAnswer(), OneCallThenTheAnswer(), OneCallThenTheAnswer()
    await ask(ROWS, whole)
    await ask(ROWS[::-1], backwards)
    await ask(ROWS[1:2], alone)
    assert whole.seeds == backwards.seeds
    assert alone.seeds["b"] == whole.seeds["b"]
    assert len({seed for seeds in whole.seeds.values() for seed in seeds}) == 6


@pytest.mark.parametrize("other", [{"phase": "eval"}, {"seed": 43}])
async def test_another_phase_or_seed_draws_other_luck(other):
    one, two = OneCallThenTheAnswer(), OneCallThenTheAnswer()
    await ask(ROWS, one)
    await ask(ROWS, two, **other)
    assert not {s for seeds in one.seeds.values() for s in seeds} & {s for seeds in two.seeds.values() for s in seeds}


async def test_each_finished_try_is_told_at_once():
    seen = []
    graded = await ask(ROWS, OneCallThenTheAnswer(), on_done=seen.append)
    assert sorted(one.rollout.rollout_id for one in seen) == sorted(one.rollout.rollout_id for one in graded)


async def test_the_summary_leaves_failures_out_of_means_and_counts_them():
    total = summarise(await ask(ROWS, OneCallThenTheAnswer(down=("c",))))
    # a scores 1 twice, b 0 twice, c never: 2 / 4; one call each
    assert (total.rollouts, total.scored, total.mean_reward, total.mean_tool_calls, total.infra_failures) == (6, 4, 0.5, 1.0, 2)
    assert total.endings == {"answered": 4, "out_of_budget": 0, "malformed": 0, "infra_failed": 2}
    assert total.failed_parts == {"model": 2}


def test_a_grader_without_a_score_is_an_infrastructure_failure_too(tried):
    unscored = tried("a", [1.0])
    unscored[0].grade = Grade(SameText.ref, None)
    assert summarise(unscored).infra_failures == 1


def test_with_no_score_there_is_no_mean(tried):
    total = summarise(tried("a", [None, None]))
    assert (total.mean_reward, total.mean_tool_calls, total.infra_failures) == (None, None, 2)
