"""From a graded rollout to its job card."""

from __future__ import annotations

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Cost, JobCard, Kind, Versions
from agent_rft.contracts.rollouts import Rollout


def card_of(
    graded: GradedRollout,
    *,
    kind: Kind,
    run_id: str,
    versions: Versions,
    tenant: str,
    step: int | None = None,
    advantage: float | None = None,
) -> JobCard:
    row, rollout = graded.row, graded.rollout
    return JobCard(
        rollout_id=rollout.rollout_id,
        kind=kind,
        tenant=tenant,
        run_id=run_id,
        step=step,
        row_id=row.id,
        sample_index=graded.sample_index,
        started_at=rollout.started_at,
        rollout=rollout,
        reference_answer=row.reference_answer,
        metadata=row.metadata,
        grade=graded.grade,
        advantage=advantage,
        cost=cost_of(rollout),
        versions=versions,
    )


def cost_of(rollout: Rollout) -> Cost:
    return Cost(
        context_tokens=sum(turn.context_tokens for turn in rollout.turns),
        sampled_tokens=rollout.sampled_tokens,
        tool_calls=rollout.tool_calls,
        seconds=rollout.seconds,
        tool_seconds=sum(result.seconds for turn in rollout.turns for result in turn.results.values()),
    )
