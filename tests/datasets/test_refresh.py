"""A refreshed curriculum: the band that is solved sometimes."""

from __future__ import annotations

import pytest

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.rows import Row
from agent_rft.datasets.refresh import refresh
from agent_rft.evaluation.prior import RowPrior

ROWS = [Row(name, f"prompt {name}", "1") for name in ("won", "mixed", "lost", "spoilt", "unseen")]


def measured(row_id: str, bucket: str) -> RowPrior:
    return RowPrior(
        row_id=row_id, bucket=bucket, tries=4, successes=2, infra_failures=0, success_rate=0.5, mean_reward=0.5, reward_variance=0.25
    )


def test_sometimes_stays_always_retires_never_is_looked_at_and_nothing_is_lost():
    buckets = {"won": "always", "mixed": "sometimes", "lost": "never", "spoilt": "unmeasured"}
    fresh = refresh(ROWS, [measured(*one) for one in buckets.items()])
    assert [row.id for row in fresh.kept] == ["mixed", "spoilt", "unseen"]  # what was not measured has nothing against it
    assert [row.id for row in fresh.retired] == ["won"]
    assert [row.id for row in fresh.review] == ["lost"]
    assert fresh.unmeasured == 2


def test_a_result_of_other_rows_is_refused_with_each_of_them():
    with pytest.raises(FaultsFound) as caught:
        refresh(ROWS, [measured("mixd", "always"), measured("won", "always"), measured("gone", "never")])
    assert [fault.where for fault in caught.value.faults] == ["mixd", "gone"]
    assert "did you mean 'mixed'?" in str(caught.value)


def test_an_empty_curriculum_is_refused():
    with pytest.raises(UserError, match="no row would be left"):
        refresh(ROWS[:2], [measured("won", "always"), measured("mixed", "never")])
