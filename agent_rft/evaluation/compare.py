"""Base against tuned, row by row: the mean hides which rows got worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.evaluation.statistics import NO_MOVE, Interval, bootstrap_interval, leaning, mcnemar, mean_interval, wilcoxon
from agent_rft.evaluation.tries import Tries, mean, tries_by_row

SOLVED_AT = 0.8
"""A row that did not move counts as solved from this mean reward on, else as unsolved."""
ROUNDING = NO_MOVE

MOST_LUCK = 0.05
"""A change counts where luck alone would show one like it less often than this, among all that are looked at."""

Verdict = Literal["better", "perhaps better", "no clear change", "perhaps worse", "worse"]


class RowDiff(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the row's tries on each side."""

    row_id: str
    metadata: dict[str, Any]
    base_reward: float
    tuned_reward: float
    base_calls: float
    tuned_calls: float
    d_reward: float
    d_tools: float


class Quadrants(msgspec.Struct, frozen=True, kw_only=True):
    """Rows by reward and tool calls, both moved; rows that kept either lie on an axis."""

    better_fewer: int
    better_more: int
    worse_fewer: int
    worse_more: int
    """The worst: less reward for more calls."""
    on_axis: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    compared: int
    excluded: tuple[str, ...]
    """Rows without a scored try on one side at least."""
    base_reward: float
    tuned_reward: float
    base_calls: float
    tuned_calls: float
    mean_d_reward: float
    d_reward_error: float
    """Standard error of that mean over the rows."""
    d_reward: Interval
    """That mean again, and where the true one lies."""
    p: float
    """How likely so lopsided a change is by luck alone: the signed-rank test over the rows."""
    mean_d_tools: float
    d_tools: Interval | None
    """None where a single row was compared: it tells no spread."""
    improved: int
    regressed: int
    unchanged_solved: int
    unchanged_unsolved: int
    unsolvable: int
    """Of these: no try on either side earned anything. Too hard, or wrong: only a person can tell."""
    newly_solved: int
    no_longer_solved: int
    p_solved: float
    """How likely so uneven a split of the rows that crossed `solved_at` is by luck alone: McNemar's test."""
    quadrants: Quadrants
    rows: tuple[RowDiff, ...]
    """Worst first."""

    @property
    def unchanged(self) -> int:
        return self.unchanged_solved + self.unchanged_unsolved

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.rows, self.p)

    @property
    def unsolvable_rows(self) -> tuple[str, ...]:
        return tuple(row.row_id for row in self.rows if never_solved(row))


def verdict_of(rows: Sequence[RowDiff], p: float) -> Verdict:
    """For sure where both say so, and the same: the interval of the mean leaves zero out, and the ranks are more lopsided than luck.
    Perhaps where one of them does. `p`: of the ranks, as it counts among all that are looked at."""
    change = change_in_reward(rows)
    by_mean = sign(change.estimate) if change.clear else 0
    by_ranks = leaning([row.d_reward for row in rows]) if p < MOST_LUCK else 0
    if by_mean + by_ranks == 0:
        return "no clear change"
    if by_mean == by_ranks:
        return "better" if by_mean > 0 else "worse"
    return "perhaps better" if by_mean + by_ranks > 0 else "perhaps worse"


def never_solved(row: RowDiff) -> bool:
    """No try earned anything, before or after."""
    return row.base_reward <= ROUNDING and row.tuned_reward <= ROUNDING


def compare(base: Iterable[GradedRollout], tuned: Iterable[GradedRollout], solved_at: float = SOLVED_AT) -> Comparison:
    before, after = tries_by_row(base), tries_by_row(tuned)
    met = list(dict.fromkeys([*before, *after]))
    both = [row_id for row_id in met if _scored(before.get(row_id)) and _scored(after.get(row_id))]
    if not both:
        raise InfraError("evaluation", f"no row has a scored try for both base and tuned, of {len(met)} rows")
    rows = [_diff(row_id, before[row_id], after[row_id]) for row_id in both]
    compared = set(both)
    rows.sort(key=lambda row: (row.d_reward, -row.d_tools, row.row_id))
    unchanged = [row for row in rows if not sign(row.d_reward)]
    solved = sum(row.base_reward >= solved_at - ROUNDING for row in unchanged)
    won, lost = _crossings(rows, solved_at)
    return Comparison(
        compared=len(rows),
        excluded=tuple(row_id for row_id in met if row_id not in compared),
        base_reward=mean([row.base_reward for row in rows]),
        tuned_reward=mean([row.tuned_reward for row in rows]),
        base_calls=mean([row.base_calls for row in rows]),
        tuned_calls=mean([row.tuned_calls for row in rows]),
        mean_d_reward=mean([row.d_reward for row in rows]),
        d_reward_error=_standard_error([row.d_reward for row in rows]),
        d_reward=change_in_reward(rows),
        p=wilcoxon([row.d_reward for row in rows]),
        mean_d_tools=mean([row.d_tools for row in rows]),
        d_tools=bootstrap_interval([row.d_tools for row in rows]),
        improved=sum(sign(row.d_reward) > 0 for row in rows),
        regressed=sum(sign(row.d_reward) < 0 for row in rows),
        unchanged_solved=solved,
        unchanged_unsolved=len(unchanged) - solved,
        unsolvable=sum(map(never_solved, rows)),
        newly_solved=won,
        no_longer_solved=lost,
        p_solved=mcnemar(won, lost),
        quadrants=_quadrants(rows),
        rows=tuple(rows),
    )


def change_in_reward(rows: Sequence[RowDiff]) -> Interval:
    return mean_interval([row.d_reward for row in rows], least=-1.0)


def _crossings(rows: Iterable[RowDiff], solved_at: float) -> tuple[int, int]:
    """Rows that came to count as solved, and rows that ceased to."""
    sides = [(row.base_reward >= solved_at - ROUNDING, row.tuned_reward >= solved_at - ROUNDING) for row in rows]
    return sides.count((False, True)), sides.count((True, False))


def sign(difference: float) -> int:
    """1, -1, or 0 where nothing moved but the rounding."""
    if abs(difference) <= ROUNDING:
        return 0
    return 1 if difference > 0 else -1


def _standard_error(differences: Sequence[float]) -> float:
    """Nothing is known of the spread of a single row, so its error is taken to be as large as rewards allow."""
    count, average = len(differences), mean(differences)
    if count < 2:
        return 1.0
    return math.sqrt(sum((one - average) ** 2 for one in differences) / (count - 1) / count)


def _scored(tries: Tries | None) -> bool:
    return tries is not None and bool(tries.scored)


def _diff(row_id: str, base: Tries, tuned: Tries) -> RowDiff:
    return RowDiff(
        row_id=row_id,
        metadata=base.scored[0].row.metadata,
        base_reward=base.mean_reward,
        tuned_reward=tuned.mean_reward,
        base_calls=base.mean_calls,
        tuned_calls=tuned.mean_calls,
        d_reward=tuned.mean_reward - base.mean_reward,
        d_tools=tuned.mean_calls - base.mean_calls,
    )


def _quadrants(rows: Iterable[RowDiff]) -> Quadrants:
    moves = [(sign(row.d_reward), sign(row.d_tools)) for row in rows]
    return Quadrants(
        better_fewer=moves.count((1, -1)),
        better_more=moves.count((1, 1)),
        worse_fewer=moves.count((-1, -1)),
        worse_more=moves.count((-1, 1)),
        on_axis=sum(0 in move for move in moves),
    )


def verdict_told(comparison: Comparison | None) -> str:
    """In a line. None: there was nothing to compare."""
    if comparison is None:
        return "no row has a score on both sides"
    change = f"mean Δreward {comparison.d_reward.told('+.3f')}"
    moved = f"improved {comparison.improved}, regressed {comparison.regressed} of {comparison.compared}"
    return f"{comparison.verdict}; {change}, {moved}"
