"""Each guard, provoked: it names its figure and its cure, and stays quiet just below its limit."""

import math

import pytest

from agent_rft.contracts.errors import Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.training.guards import (
    Diverged,
    InfraGuard,
    Tally,
    check_finite,
    check_kl,
    check_some_left,
    group_size_warning,
    tally_of,
)

NUMERIC = GraderRef("numeric", "1", "0" * 16)


def rollout(*calls: str, failed: str = "") -> GradedRollout:
    """One turn that made these calls; where a part failed, that was its end."""
    turn = Turn("", calls=tuple(ToolCall(f"c{i}", name, {}) for i, name in enumerate(calls)))
    ending = Ending.INFRA_FAILED if failed else Ending.ANSWERED
    state = Rollout("r", (), (), Limits(), turns=[turn], ending=ending, failed_part=failed, reason=f"{failed}: 503")
    return GradedRollout(Row("row", "?", 1), 0, state, None if failed else Grade(NUMERIC, 1.0))


def test_a_tally_counts_calls_and_failures_by_part():
    tally = tally_of([rollout("search", "read"), rollout("search", failed="tool:search"), rollout(failed="grader:numeric")])
    assert tally.calls == {"tool:search": 2, "tool:read": 1, "model": 3, "grader:numeric": 2}
    assert tally.failed == {"tool:search": 1, "grader:numeric": 1}


def infra_guard(max_rate=0.01, min_calls=100, steps=()) -> InfraGuard:
    return InfraGuard(max_rate, min_calls, steps)


def test_above_the_rate_it_halts_and_names_the_tool_its_rate_and_the_cure():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 60, "tool:read": 140}, {"tool:search": 3}))
    assert guard.tool_failure_rate == pytest.approx(0.015)
    with pytest.raises(Halted, match=r"tool:search failed 3 of its last 60 calls \(5.0%\).*1.5% of all tool calls") as caught:
        guard.check()
    assert "mend tool:search" in caught.value.cure and "guards.max_infra_rate" in caught.value.cure


def test_at_the_rate_it_goes_on():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 200}, {"tool:search": 2}))
    guard.check()
    assert guard.tool_failure_rate == pytest.approx(0.01)


def test_one_early_failure_is_not_judged():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 99}, {"tool:search": 50}))
    guard.check()
    guard.note(Tally({"tool:search": 1}, {}))
    with pytest.raises(Halted):
        guard.check()


def test_the_window_is_the_latest_steps_that_hold_enough_calls():
    """Two steps of 60 calls hold 100; the failures of the step before them are over."""
    guard = infra_guard()
    for failures in (30, 0, 0):
        guard.note(Tally({"tool:search": 60}, {"tool:search": failures}))
    assert guard.tool_failure_rate == 0.0
    guard.check()
    assert len(guard.steps) == 2


def test_a_window_goes_on_where_a_checkpoint_left_it():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 60}, {"tool:search": 1}))
    resumed = infra_guard(steps=guard.steps)
    for both in (guard, resumed):
        both.note(Tally({"tool:search": 60}, {"tool:search": 1}))
    assert guard.tool_failure_rate == resumed.tool_failure_rate == pytest.approx(2 / 120)


def test_many_good_tools_do_not_hide_a_broken_grader():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 10_000, "grader:numeric": 100}, {"grader:numeric": 2}))
    with pytest.raises(Halted, match="grader:numeric failed 2 of its last 100"):
        guard.check()


def test_a_step_of_which_nothing_is_left_halts_however_small():
    with pytest.raises(Halted, match=r"tool:search \(2 times\).*503") as caught:
        check_some_left([rollout("search", failed="tool:search")] * 2)
    assert caught.value.cure == "mend tool:search, then resume"
    check_some_left([rollout("search", failed="tool:search"), rollout()])


def test_kl():
    check_kl(0.5, 0.5)
    with pytest.raises(Halted, match="KL of 0.512"):
        check_kl(0.512, 0.5)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_what_is_not_a_number_is_not_kept(loss, norm):
    check_finite(1.0, 1.0)
    with pytest.raises(Diverged, match="not a number"):
        check_finite(loss, norm)


def test_small_groups_are_warned_about():
    assert group_size_warning(4) is None
    assert "group_size is 3" in str(group_size_warning(3))
