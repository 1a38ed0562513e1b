"""What a batch adds to a step's line, worked out by hand; what infrastructure failed is counted, and is in no mean."""

import pytest

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import StepMetrics
from agent_rft.training.bookkeeping import count, credit, means

NUMERIC = GraderRef("numeric", "1", "0" * 16)
FAILED = None


def rollout(reward: float | None, calls: int = 0, tokens: int = 10) -> GradedRollout:
    turn = Turn("", calls=tuple(ToolCall(f"c{i}", "search", {}) for i in range(calls)), context_tokens=tokens - 4, sampled_tokens=4)
    ending = Ending.INFRA_FAILED if reward is FAILED else Ending.ANSWERED
    state = Rollout("r", (), (), Limits(), turns=[turn], ending=ending)
    return GradedRollout(Row("row", "?", 1), 0, state, None if reward is FAILED else Grade(NUMERIC, reward))


BATCH = [rollout(1.0, calls=2), rollout(0.0, calls=1), rollout(FAILED, calls=9), *[rollout(0.5) for _ in range(3)]]
"""Two groups of three."""


def test_advantages_are_each_groups_own_after_calls_are_charged():
    """At 0.1 a call the first group is worth 0.8 and 0, its failure nothing: mean 0.4, deviation 0.56569 (0.32 over n - 1 = 1, its
    root), so 0.4 / (0.56569 + 0.0001) = 0.70698. The second all scored the same."""
    advantages = credit(StepMetrics(step=0), BATCH, 3, 0.1)
    assert advantages == pytest.approx([0.70698, -0.70698, None, 0.0, 0.0, 0.0], abs=1e-5)


def test_without_its_failure_the_batch_is_worth_the_same():
    left = [BATCH[0], BATCH[1]]
    assert credit(StepMetrics(step=0), left, 2, 0.1) == credit(StepMetrics(step=0), BATCH, 3, 0.1)[:2]


def test_a_line_shows_grades_as_given_and_calls_as_made():
    """Grades before calls are charged: (1 + 0 + 3 x 0.5) / 5; calls of the five that were graded: (2 + 1) / 5, the failed one's nine
    left out; one of two groups is flat."""
    line = StepMetrics(step=0)
    credit(line, BATCH, 3, 0.1)
    assert (line.train_reward, line.tool_calls, line.flat_groups) == (pytest.approx(0.5), pytest.approx(0.6), 0.5)


def test_a_group_of_failures_alone_counts_as_flat():
    line = StepMetrics(step=0)
    assert credit(line, [rollout(FAILED), rollout(FAILED), rollout(1.0), rollout(0.0)], 2, 0.0)[:2] == [None, None]
    assert line.flat_groups == 0.5


def test_means_are_over_what_has_a_grade():
    assert means([rollout(1.0, calls=3), rollout(FAILED, calls=9), rollout(0.0, calls=0)]) == (0.5, 1.5)
    assert means([rollout(FAILED)]) == (None, None)
    assert means([]) == (None, None)


def test_what_was_rolled_out_is_counted_failures_included_and_adds_up():
    line = StepMetrics(step=0)
    count(line, BATCH, 2.0)
    count(line, [rollout(1.0, tokens=7)], 0.5)
    assert (line.rollouts, line.tokens, line.infra_failures, line.rollout_seconds) == (7, 6 * 10 + 7, 1, 2.5)
