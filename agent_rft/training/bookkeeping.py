"""What a batch of rollouts adds to a step's line of metrics, and what each was worth: the same on every engine."""

from __future__ import annotations

from collections.abc import Sequence

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.training import StepMetrics
from agent_rft.training.advantages import group_advantages, is_flat, shaped


def count(line: StepMetrics, done: Sequence[GradedRollout], seconds: float) -> None:
    line.rollout_seconds += seconds
    line.rollouts += len(done)
    line.tokens += sum(graded.rollout.total_tokens for graded in done)
    line.infra_failures += sum(graded.infra_failed for graded in done)


def credit(line: StepMetrics, done: Sequence[GradedRollout], group: int, call_cost: float) -> list[float | None]:
    """The advantages of a training batch, groups of `group` rollouts one after another; None where infrastructure failed."""
    rewards = [None if g.infra_failed or g.reward is None else shaped(g.reward, g.rollout.tool_calls, call_cost) for g in done]
    groups = [rewards[i : i + group] for i in range(0, len(rewards), group)]
    line.train_reward, line.tool_calls = means(done)
    line.flat_groups = sum(map(is_flat, groups)) / len(groups)
    return [advantage for rewards in groups for advantage in group_advantages(rewards)]


def means(done: Sequence[GradedRollout]) -> tuple[float | None, float | None]:
    """Mean reward and mean number of tool calls of those that have a grade."""
    graded = [(g.reward, g.rollout.tool_calls) for g in done if not g.infra_failed and g.reward is not None]
    if not graded:
        return None, None
    return sum(reward for reward, _ in graded) / len(graded), sum(calls for _, calls in graded) / len(graded)
