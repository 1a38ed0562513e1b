"""What infrastructure fails, told from chance: by tool, grader and model server."""

import random

import pytest

from agent_rft.contracts.errors import Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.guards import Limit
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.guards.infra import InfraGuard, Tally, chance_of_failures, nothing_left, tally_of

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
    assert tally.reasons == {"tool:search": "tool:search: 503", "grader:numeric": "grader:numeric: 503"}


def infra_guard(max_rate=0.01, window_calls=100, steps=()) -> InfraGuard:
    return InfraGuard(max_rate, window_calls, steps)


def halts(guard: InfraGuard) -> bool:
    try:
        guard.check({})
    except Halted:
        return True
    return False


def test_the_chance_of_failures_is_the_binomials_tail():
    assert chance_of_failures(1, 3, 0.01) == pytest.approx(1 - 0.99**3)
    assert chance_of_failures(2, 2, 0.5) == pytest.approx(0.25)
    assert chance_of_failures(2, 3, 0.5) == pytest.approx(4 / 8)
    assert chance_of_failures(2, 200, 0.01) == 1.0, "no more than was to be expected"
    assert chance_of_failures(1, 1000, 0.0) == 0.0


def test_a_rate_below_the_limit_does_not_halt_a_long_run_and_one_well_above_halts_within_three_steps():
    draw = random.Random(0)

    def first_halt(rate: float, steps: int) -> int | None:
        guard = infra_guard(window_calls=1000)
        for step in range(steps):
            guard.note(Tally({"tool:search": 256}, {"tool:search": sum(draw.random() < rate for _ in range(256))}))
            if halts(guard):
                return step
        return None

    assert [first_halt(0.005, 77) for _ in range(20)] == [None] * 20
    assert all((first_halt(0.05, 10) or 0) < 3 for _ in range(20))


def test_above_the_rate_it_halts_and_names_the_tool_its_rate_and_the_cure():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 60, "tool:read": 140}, {"tool:search": 12}))
    assert guard.failure_rate("tool") == pytest.approx(0.06)
    with pytest.raises(Halted, match=r"tool:search failed 12 of its last 60 calls \(20.0%\).*6.0% of all tool calls") as caught:
        guard.check({})
    assert "mend tool:search" in caught.value.cure and "guards.max_infra_rate" in caught.value.cure


def test_what_the_configuration_lets_pass_ends_no_evaluation_either():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 200}, {"tool:search": 12}))
    for lenient in (Limit(0.1, "stop"), Limit(0.01, "warn"), Limit(0.01, "off")):
        guard.check({"infra": lenient})
    with pytest.raises(Halted, match=r"1\.0% is allowed"):
        guard.check({"infra": Limit(0.01, "stop")})


def test_at_the_rate_it_goes_on():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 200}, {"tool:search": 2}))
    guard.check({})
    assert guard.failure_rate("tool") == pytest.approx(0.01)


def test_one_early_failure_may_be_chance_but_a_dead_tool_is_not():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 3}, {"tool:search": 1}))
    guard.check({})
    guard.note(Tally({"tool:search": 4}, {"tool:search": 4}))
    with pytest.raises(Halted):
        guard.check({})


def test_the_window_is_the_latest_steps_that_hold_enough_calls():
    """Two steps of 60 calls hold 100; the failures of the step before them are over."""
    guard = infra_guard()
    for failures in (30, 0, 0):
        guard.note(Tally({"tool:search": 60}, {"tool:search": failures}))
    assert guard.failure_rate("tool") == 0.0
    guard.check({})
    assert len(guard.steps) == 2


def test_a_window_goes_on_where_a_checkpoint_left_it():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 60}, {"tool:search": 1}))
    resumed = infra_guard(steps=guard.steps)
    for both in (guard, resumed):
        both.note(Tally({"tool:search": 60}, {"tool:search": 1}))
    assert guard.failure_rate("tool") == resumed.failure_rate("tool") == pytest.approx(2 / 120)


def test_many_good_tools_do_not_hide_a_broken_grader():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 10_000, "grader:numeric": 100}, {"grader:numeric": 9}))
    with pytest.raises(Halted, match="grader:numeric failed 9 of its last 100"):
        guard.check({})


def test_a_grader_that_halts_the_run_is_named_with_its_rate_and_what_it_said_last():
    guard = infra_guard()
    guard.note(Tally({"tool:search": 500, "grader:quality": 16}, {"grader:quality": 4}, {"grader:quality": "the judge refuses"}))
    guard.note(Tally({"tool:search": 500, "grader:quality": 16}, {"grader:quality": 4}, {"grader:quality": "the judge is gone"}))
    assert (guard.failure_rate("tool"), guard.failure_rate("grader")) == (0.0, 8 / 32)
    with pytest.raises(Halted, match=r"grader:quality failed 8 of its last 32 calls \(25.0%\).*the last one said: the judge is gone\n"):
        guard.check({})


def test_a_reason_without_end_is_cut_short():
    one = rollout(failed="grader:quality")
    one.rollout.reason = "x" * 100_000
    assert len(tally_of([one]).reasons["grader:quality"]) == 400


def test_a_step_of_which_nothing_is_left_is_named_however_small():
    found = nothing_left([rollout("search", failed="tool:search")] * 2)
    said = "every rollout of the step failed from infrastructure: tool:search (2 times); the last one said: tool:search: 503"
    assert (found.what, found.cure, found.figure) == (said, "mend tool:search", 1.0)
    assert nothing_left([rollout("search", failed="tool:search"), rollout()]) is None
    assert nothing_left([]) is None


def test_each_kind_of_part_has_a_guard_of_its_own_and_a_limit_of_its_own():
    """12 of 60 calls, 12 of 60 gradings: beyond 1%, and within the 30% that judges are allowed here."""
    guard = infra_guard()
    guard.note(Tally({"tool:search": 60, "grader:quality": 60}, {"tool:search": 12, "grader:quality": 12}))
    assert [name for name, _ in guard.suspicions({})] == ["infra", "judge_failures"]
    assert [name for name, _ in guard.suspicions({"judge_failures": 0.3})] == ["infra"]
    [(_, found)] = guard.suspicions({"judge_failures": 0.3})
    assert found.figure == 0.2


def test_a_flaky_tool_is_found_behind_many_good_calls_to_another():
    """5 of 25 reads beside 975 searches: 0.5% of all calls, which is allowed. Five failures of 25 at 1% each: C(25,5) 0.01^5, some 5e-6."""
    guard = infra_guard(window_calls=1000)
    guard.note(Tally({"tool:search": 975, "tool:read": 25}, {"tool:read": 5}))
    assert list(guard.suspicions({})) == []
    [found] = guard.suspicious_tools(0.01)
    assert found.figure == 0.2
    assert found.what == "tool:read failed 5 of its last 25 calls (20.0%) after retries; 1.0% is allowed"
    assert list(guard.suspicious_tools(0.2)) == []
