"""From a graded rollout to its job card, and from the card to the row that was tried."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Cost, JobCard, Kind, Versions
from agent_rft.contracts.rollouts import Rollout
from agent_rft.contracts.rows import Expected, Row

OURS = ("id", "prompt", "reference_answer", "metadata")
"""What a card and a row made from it say themselves, whatever a file's own keys of these names said."""


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
        item=_own_keys(row, rollout),
        grade=graded.grade,
        advantage=advantage,
        cost=cost_of(rollout),
        versions=versions,
    )


def _own_keys(row: Row, rollout: Rollout) -> dict[str, Any]:
    """Nothing twice: a prompt may be long, and stands in the rollout's opening."""
    told = Row(row.id, asked_in(rollout), row.reference_answer, metadata=row.metadata).item()
    return {key: value for key, value in row.item().items() if key not in told or value != told[key]}


def asked_in(rollout: Rollout) -> str:
    """The last thing that a user said before the agent did; empty where nobody asked."""
    return next((message.content for message in reversed(rollout.opening) if message.role == "user"), "")


def row_tried(card: JobCard) -> Row:
    """The row as its card tells it: to a grader the very same, where the card keeps the row's own keys."""
    own, opening = dict(card.item or {}), card.rollout.opening
    expected = _expected(own.get("expected"))
    if expected is not None:
        del own["expected"]
    return Row(
        id=card.row_id,
        prompt=asked_in(card.rollout),
        reference_answer=card.reference_answer,
        expected=expected or Expected(),
        tools=card.rollout.tools,
        metadata=card.metadata,
        messages=opening,
        extra=own,
    )


def own_keys(card: JobCard) -> dict[str, Any]:
    """The keys of the row's file that are none of ours. Where there is no reference answer, graders find it in these."""
    return {key: held for key, held in row_tried(card).extra.items() if key not in OURS}


def _expected(value: object) -> Expected | None:
    """None where there is none, or where a file has something else under that name, which is then a key of its own."""
    if not isinstance(value, dict) or not set(cast(dict[str, Any], value)) <= set(Expected.__struct_fields__):
        return None
    try:
        return msgspec.convert(value, Expected)
    except msgspec.ValidationError:
        return None


def cost_of(rollout: Rollout) -> Cost:
    return Cost(
        context_tokens=sum(turn.context_tokens for turn in rollout.turns),
        sampled_tokens=rollout.sampled_tokens,
        tool_calls=rollout.tool_calls,
        seconds=rollout.seconds,
        tool_seconds=sum(result.seconds for turn in rollout.turns for result in turn.results.values()),
    )
