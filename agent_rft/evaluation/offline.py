"""The figures of an agent's offline reports, from rollouts over held-out rows. What infrastructure spoilt is in none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.evaluation.tries import mean, tries_by_row

MOST_ROWS = 1000
"""Whose means a report holds, so that another agent can be held against it row by row: the first of their ids, the same for both."""


def refuse_spoilt(what: str, graded: Sequence[GradedRollout], most: float) -> None:
    """Raises InfraError where more than this share was spoilt: what is left would be no fair sample."""
    spoilt = [one.rollout for one in graded if one.infra_failed]
    if graded and len(spoilt) <= most * len(graded) and len(spoilt) < len(graded):
        return
    parts = ", ".join(f"{part} {count}" for part, count in Counter(rollout.failed_part for rollout in spoilt).most_common())
    first = f"; the first: {spoilt[0].reason}" if spoilt else ""
    why = f"{len(spoilt)} of {len(graded)} rollouts failed ({parts}), {most:.1%} are borne (guards.max_infra_rate)"
    raise InfraError(what, f"{why}{first}; no report is made")


def evaluation_figures(graded: Sequence[GradedRollout]) -> dict[str, Any]:
    """`reward` is the mean over rows, as a training run's own evaluation has it."""
    means = {row: tries.mean_reward for row, tries in tries_by_row(graded).items() if tries.scored}
    return {
        "reward": mean(list(means.values())),
        "rows": {row: means[row] for row in sorted(means)[:MOST_ROWS]},
        "n": sum(not one.infra_failed for one in graded),
        "infra_failed": sum(one.infra_failed for one in graded),
    }


def holdout_figures(grades: Mapping[str, Sequence[Grade | None]], most: float) -> dict[str, Any]:
    """By grader, the grades of the same rollouts; None where there was nothing to grade. `reward` is the mean over graders. Raises
    InfraError where a grader gave no score to more than the share `most`."""
    by_grader: dict[str, float] = {}
    spoilt = 0
    for name, given in grades.items():
        asked = [grade for grade in given if grade is not None]
        rewards = [grade.reward for grade in asked if grade.reward is not None]
        failed = len(asked) - len(rewards)
        if not rewards or failed > most * len(asked):
            why = next((grade.errors for grade in asked if grade.reward is None), {})
            said = f"gave no score to {failed} of {len(asked)} rollouts, {most:.1%} are borne: {why}; no report is made"
            raise InfraError(f"grader:{name}", said)
        by_grader[name], spoilt = mean(rewards), spoilt + failed
    return {"reward": mean(list(by_grader.values())), "by_grader": by_grader, "n": max(map(len, grades.values())), "infra_failed": spoilt}
