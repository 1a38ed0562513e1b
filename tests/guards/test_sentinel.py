"""The sentinel, told of batches and updates as an engine tells it: what stands in the line, and when the run ends."""

from pathlib import Path

import msgspec
import pytest
from graded_tries import NUMERIC, attempt, call, failed

from agent_rft.contracts.errors import Diverged, Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.guards import Finding, Limit
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import GuardLimits, StepMetrics
from agent_rft.datasets.rows_io import read_rows
from agent_rft.guards.figures import step_figures
from agent_rft.guards.limits import GUARDS, limit_of, watched
from agent_rft.guards.sentinel import Memory, Sentinel
from serving.gateway.ending import leaks_in

ROOT = Path(__file__).resolve().parents[2]
CALLS = tuple(call(number) for number in range(4))
BUSY = [attempt(f"busy-{number}", CALLS, row=f"row-{number}") for number in range(8)]
IDLE = [attempt(f"idle-{number}", row=f"row-{number}") for number in range(8)]


def limits(**changes) -> GuardLimits:
    return GuardLimits(**{"max_infra_rate": 0.01, "infra_window_calls": 1000, "max_kl": 0.5} | changes)


def sentinel(state: Memory | None = None, lines=(), **changes) -> Sentinel:
    return Sentinel(limits(**changes), state, lines=lines, total_steps=100, seed=7)


def steps(watch: Sentinel, batches, first: int = 0) -> list[StepMetrics]:
    """Trains on one batch a step, until it is told to end."""
    lines = []
    for step, done in enumerate(batches, first):
        line = StepMetrics(step=step, train_reward=0.5, flat_groups=0.0)
        lines.append(line)
        watch.rolled_out(line, done)
        if watch.halt:
            break
        line.kl_to_ref, line.entropy, line.loss = 0.01, 1.0, 0.1
        watch.updated(line)
    return lines


def spoke(lines, guard: str) -> list[int]:
    return [line.step for line in lines for finding in line.findings if finding.guard == guard]


# --- what is unsafe -----------------------------------------------------------------------------------------------------

KEY = "AKIA" + "Q7TBN2Z4LMP9XKD3"
"""Made up; of the form of a cloud's access keys."""


def test_a_policy_that_comes_to_give_secrets_away_is_stopped():
    """None of the first five steps' tries does; all eight of step 5 do: at 2% a try that is 0.02^8, no chance at all."""
    leaky = [attempt(f"leaky-{number}", CALLS, row=f"row-{number}", answer=f"log in with {KEY}") for number in range(8)]
    watch = Sentinel(limits(), total_steps=100, leaks_in=leaks_in)
    lines = steps(watch, [BUSY] * 5 + [leaky] * 3)
    [found] = [finding for finding in lines[-1].findings if finding.guard == "unsafe"]
    assert (found.step, found.action, found.figure, watch.halt.what) == (5, "stop", 1.0, found.what)
    assert found.what == ("100.0% of the 8 tries of the last 1 steps did what no agent may, 0.0% at first; 100.0% gave away a secret")
    assert found.rollouts == tuple(f"leaky-{number}" for number in range(5))
    assert KEY not in str(lines[-1].findings)


def test_what_a_try_was_told_it_may_say_again():
    told = Message("user", f"Is {KEY} still in use?")
    asked = [
        GradedRollout(one.row, 0, msgspec.structs.replace(one.rollout, opening=(told,), answer=f"{KEY} is"), one.grade) for one in BUSY
    ]
    lines = steps(Sentinel(limits(), total_steps=100, leaks_in=leaks_in), [BUSY] * 5 + [asked] * 5)
    assert spoke(lines, "unsafe") == [] and {line.figures["leaked"] for line in lines} == {0.0}


def test_no_right_answer_of_the_shipped_rows_is_taken_for_a_secret():
    files = [*(ROOT / "data/research").glob("*.jsonl"), *(ROOT / "examples").glob("*/rows.jsonl")]
    answers = [str(row.reference_answer) for file in files if "cases" not in file.name for row in read_rows(file)]
    tries = [attempt(f"a{number}", answer=f"The answer is {answer}.") for number, answer in enumerate(answers)]
    assert len(tries) >= 400 and step_figures(tries, leaks_in)["leaked"] == 0.0
    lines = steps(Sentinel(limits(), total_steps=100, leaks_in=leaks_in), [BUSY] * 5 + [tries] * 5)
    assert spoke(lines, "unsafe") == []


# --- what a line says -------------------------------------------------------------------------------------------------------


def test_a_guard_that_warns_stands_in_the_line_with_its_figure_and_the_run_goes_on():
    """Four calls a try at first and none later: the mean of five steps is none from step 9 on."""
    watch = sentinel()
    lines = steps(watch, [BUSY] * 5 + [IDLE] * 5)
    [found] = [finding for finding in lines[-1].findings if finding.guard == "early_stop"]
    assert (found.step, found.figure, found.limit, found.action) == (9, 1.0, 0.5, "warn")
    assert found.what == "100% of the tries answer without any call, 0% at first"
    assert found.rollouts == tuple(f"idle-{number}" for number in range(5))
    assert watch.halt is None


def test_calls_that_tools_refuse_are_told_with_the_tries_that_made_most_of_them():
    """Eight rows a step, two calls a try; from step 5 on both are refused in the last five rows and one in the others: 13 of 16 calls."""
    refused = [("c0",)] * 3 + [("c0", "c1")] * 5
    good = [attempt(f"good-{number}", (call(0),), (call(1),), row=f"row-{number}") for number in range(8)]
    bad = [attempt(f"bad-{n}", (call(0),), (call(1),), row=f"row-{n}", refused=ids) for n, ids in enumerate(refused)]
    lines = steps(sentinel(), [good] * 5 + [bad] * 5)
    [found] = [finding for finding in lines[-1].findings if finding.guard == "bad_calls"]
    assert (found.step, found.figure, found.limit, found.action) == (9, 13 / 16, 0.25, "warn")
    assert found.rollouts == tuple(f"bad-{number}" for number in range(3, 8))


def test_a_warning_is_not_said_again_at_once():
    lines = steps(sentinel(), [BUSY] * 5 + [IDLE] * 20)
    assert spoke(lines, "early_stop") == [9, 19], "and again ten steps later, while it lasts"


def test_a_warning_that_lasts_is_said_ever_more_seldom_and_a_resumed_run_knows_how_often_it_was():
    batches = [BUSY] * 5 + [IDLE] * 100
    whole = steps(sentinel(), batches)
    assert spoke(whole, "early_stop") == [9, 19, 39, 79], "after 10 steps, 20, 40: and so on"
    killed = steps(sentinel(), batches[:30])
    resumed = steps(sentinel(lines=killed), batches[30:], first=30)
    assert spoke(killed + resumed, "early_stop") == [9, 19, 39, 79]


def test_a_holdout_grader_that_gives_no_scores_is_told_of_and_ends_nothing():
    """None of 8: without it nobody would know that the run is watched by nobody."""
    watch, line = sentinel(), StepMetrics(step=0, val_reward=1.0)
    lost = Grade(GraderRef("judge", "1", "j"), None, errors={"model_grader_server_error": "gone"})
    watch.validated(line, BUSY, {"judge@1": [lost] * 8, "numeric@1": [one.grade for one in BUSY]})
    [found] = line.findings
    assert (found.guard, found.action, found.figure, watch.halt) == ("judge_failures", "warn", 1.0, None)
    assert found.what == "judge@1, which training never sees, gave no score to 8 of 8 tries; the last one said: gone"


def test_what_ends_a_run_is_heard_although_the_same_guard_has_warned_of_the_step():
    watch, line = sentinel(), StepMetrics(step=0, val_reward=1.0, train_reward=0.5, flat_groups=0.0)
    lost = Grade(GraderRef("judge", "1", "j"), None, errors={"model_grader_server_error": "gone"})
    watch.validated(line, BUSY, {"judge@1": [lost] * 8})
    watch.rolled_out(line, [*BUSY, *(failed(f"f{number}", "grader:numeric") for number in range(8))])
    assert [one.action for one in line.findings if one.guard == "judge_failures"] == ["warn", "stop"]
    assert watch.halt is not None


def test_stop_and_halt_end_the_run_by_configuration():
    for action, kind in (("stop", Halted), ("halt", Diverged)):
        watch = sentinel(watch={"early_stop": Limit(0.5, action)})
        lines = steps(watch, [BUSY] * 5 + [IDLE] * 20)
        assert type(watch.halt) is kind
        assert lines[-1].step == 9
        assert watch.halt.what.startswith("100% of the tries answer without any call")


def test_a_guard_that_is_off_says_nothing():
    assert spoke(steps(sentinel(watch={"early_stop": Limit(0.5, "off")}), [BUSY] * 5 + [IDLE] * 20), "early_stop") == []


def test_another_limit_than_its_own():
    lines = steps(sentinel(watch={"early_stop": Limit(0.1, "warn")}), [BUSY] * 5 + [IDLE] * 5 + [BUSY] * 5)
    assert spoke(lines, "early_stop")[0] == 9
    # two of the latest five steps idle: 0.4 above the start, which is below the guard's own limit
    assert spoke(steps(sentinel(watch={"early_stop": Limit(0.3, "warn")}), [BUSY] * 8 + [IDLE] * 2), "early_stop") == [9]
    assert spoke(steps(sentinel(), [BUSY] * 8 + [IDLE] * 2), "early_stop") == []


def test_figures_of_training_and_validation_stand_side_by_side():
    watch, line = sentinel(), StepMetrics(step=0, val_reward=1.0)
    watch.validated(line, IDLE, {})
    watch.rolled_out(line, BUSY)
    assert (line.figures["calls_a_try"], line.figures["val_calls_a_try"]) == (4.0, 0.0)


# --- the policy and the infrastructure --------------------------------------------------------------------------------------


def test_a_drifted_policy_is_not_kept():
    watch, line = sentinel(), StepMetrics(step=0, kl_to_ref=0.6)
    watch.updated(line)
    assert isinstance(watch.halt, Diverged)
    assert [(one.guard, one.figure, one.limit, one.action) for one in line.findings] == [("kl", 0.6, 0.5, "halt")]


def test_a_drift_may_be_allowed_to_end_with_a_checkpoint_or_only_be_told_of():
    for action in ("stop", "warn"):
        watch, line = sentinel(watch={"kl": Limit(0.5, action)}), StepMetrics(step=0, kl_to_ref=0.6)
        watch.updated(line)
        assert line.findings and not isinstance(watch.halt, Diverged)
        assert bool(watch.halt) == (action == "stop")


def test_a_run_that_may_not_drift_at_all_and_does_not_is_let_alone():
    watch = sentinel(watch={"kl": Limit(0.0, "stop")})
    lines = [StepMetrics(step=step, kl_to_ref=0.0) for step in range(20)]
    for line in lines:
        watch.updated(line)
    assert watch.halt is None and not any(line.findings for line in lines)


def test_asked_twice_about_a_step_it_speaks_once():
    watch, line = sentinel(watch={"kl": Limit(0.5, "warn")}), StepMetrics(step=0, kl_to_ref=0.6)
    watch.updated(line)
    line.loss = 0.1
    watch.updated(line)
    assert len(line.findings) == 1


def test_an_engine_that_met_no_number_is_a_finding():
    watch, line = sentinel(), StepMetrics(step=3)
    reason = Diverged("the update is not a number", "a smaller rate")
    watch.broken(line, reason)
    assert watch.halt is reason
    assert [(one.guard, one.what, one.action) for one in line.findings] == [("finite", "the update is not a number", "halt")]


def ended_by(guard: str, figure: float, **line) -> StepMetrics:
    found = Finding(
        guard=guard, step=8, figure=figure, limit=GUARDS[guard].limit.at, action="stop", what="seen", cure="do", rollouts=("r",)
    )
    return StepMetrics(step=8, findings=[found], **line)


def test_a_run_that_goes_on_is_judged_by_a_course_asked_anew_and_not_by_its_bare_figure():
    """Of 12 calls the base made 6.5: four fifths of the rest are 10.9, which is 1.68 times as many and less than the two of the limit.
    16 of 100 unsafe tries are beyond 2% and beyond chance; beyond 10% they are too, but not beyond chance."""
    rows = {"val_tries": 100.0, "val_rows": 100.0}
    base = StepMetrics(
        step=0, figures=rows | {"val_calls_a_try": 6.5, "val_unsafe": 0.0, "val_unsafe_rows": 0.0, "val_unsafe_squares": 0.0}
    )
    now = rows | {
        "val_calls_a_try": 11.2,
        "val_calls_allowed": 12.0,
        "val_unsafe": 0.16,
        "val_unsafe_rows": 16.0,
        "val_unsafe_squares": 16.0,
    }
    for guard, figure, at, stands_at in (
        ("call_inflation", 11.2 / 6.5, 2.0, [10.9 / 6.5]),
        ("call_inflation", 11.2 / 6.5, 1.6, [1.6]),
        ("unsafe", 0.16, 0.02, [0.02]),
        ("unsafe", 0.16, 0.1, []),
    ):
        watch, line = sentinel(lines=[base], watch={guard: Limit(at, "stop")}), ended_by(guard, figure, figures=now)
        watch.taken_up(line)
        assert [one.limit for one in line.findings] == pytest.approx(stands_at)
        assert all((one.what, one.rollouts) == ("seen", ("r",)) for one in line.findings)
        assert (watch.halt is not None) == bool(stands_at)


@pytest.mark.parametrize(("ceiling", "ends"), [(0.8, True), (0.97, False), (None, False)])
def test_a_ceiling_that_was_out_of_date_does_not_end_the_run_again(ceiling, ends):
    """Validation earned 0.95, at least 0.9; a person was said to reach 0.8."""
    watch, line = sentinel(human_ceiling=ceiling), ended_by("above_ceiling", 0.1, val_reward=0.95)
    watch.taken_up(line)
    assert (watch.halt is not None) == ends == bool(line.findings)


@pytest.mark.parametrize("kl", [float("inf"), float("nan")])
def test_a_kl_that_is_no_number_ends_the_run_also_where_the_loss_looks_well(kl):
    watch, line = sentinel(), StepMetrics(step=3, train_reward=0.5)
    line.kl_to_ref, line.entropy, line.loss = kl, 1.0, 0.1
    watch.updated(line)
    assert isinstance(watch.halt, Diverged) and [one.guard for one in line.findings] == ["finite"]


def test_infrastructure_stops_the_run_before_anything_is_learnt():
    """Two of ten searches fail by chance once in 240 looks at 1% each, four of twenty once in 24 000."""
    watch = sentinel()
    lines = steps(watch, [[*IDLE, attempt("x", CALLS), attempt("y", CALLS), failed("f"), failed("g")]] * 2)
    assert [line.infra_failure_rate for line in lines] == [0.2, 0.2]
    assert type(watch.halt) is Halted
    assert "tool:search failed 4 of its last 20 calls (20.0%)" in watch.halt.what
    stopped = next(one for one in lines[-1].findings if one.guard == "infra")
    assert stopped.rollouts == ("f", "g")
    assert lines[-1].loss is None


def test_a_judge_that_fails_has_a_guard_of_its_own():
    watch = sentinel()
    [line] = steps(watch, [[*IDLE, *(failed(f"f{n}", "grader:quality") for n in range(4))]])
    assert spoke([line], "judge_failures") == [0] and not spoke([line], "infra")
    assert line.grader_failure_rate == 4 / 12


def test_a_judge_may_be_borne_more_often_than_a_tool():
    watch = sentinel(watch={"judge_failures": Limit(0.4, "stop")})
    steps(watch, [[*IDLE, *(failed(f"f{n}", "grader:quality") for n in range(4))]])
    assert watch.halt is None


def test_a_step_of_which_nothing_is_left_ends_the_run_whatever_is_allowed():
    watch = sentinel(max_infra_rate=1.0)
    [line] = steps(watch, [[failed("f"), failed("g")]])
    assert spoke([line], "nothing_left") == [0]
    assert watch.halt.what.startswith("every rollout of the step failed from infrastructure: tool:search (2 times)")


# --- audit and holdouts -----------------------------------------------------------------------------------------------------


def test_every_so_many_steps_a_few_rollouts_are_drawn_for_a_person_and_the_seed_decides_which():
    lines = steps(sentinel(audit_every=3, audit_sample=2), [[*BUSY, failed("f")]] * 7)
    assert [len(line.audit) for line in lines] == [2, 0, 0, 2, 0, 0, 2]
    assert lines[0].audit != lines[3].audit
    assert [line.audit for line in steps(sentinel(audit_every=3, audit_sample=2), [[*BUSY, failed("f")]] * 7)] == [
        line.audit for line in lines
    ]
    assert not any("f" in line.audit for line in steps(sentinel(audit_every=1, audit_sample=99), [[*BUSY, failed("f")]]))
    assert not any(line.audit for line in steps(sentinel(audit_every=0), [BUSY] * 3))


def test_holdouts_stand_in_the_line_by_their_mean_without_what_they_failed_on():
    strict = GraderRef("strict", "2", "1" * 16)
    watch, line = sentinel(), StepMetrics(step=0, val_reward=1.0)
    grades = [Grade(strict, 1.0), Grade(strict, 0.5), Grade(strict, None, errors={"other_error": "gone"}), None]
    watch.validated(line, IDLE[:4], {"strict@2": grades, "dead@1": [None] * 4})
    assert line.holdout == {"strict@2": 0.75}


def test_a_holdout_that_fails_stops_no_run():
    watch, line = sentinel(), StepMetrics(step=0, val_reward=1.0)
    watch.validated(line, IDLE[:2], {"strict@2": [Grade(NUMERIC, None, errors={"other_error": "gone"})] * 2})
    assert watch.halt is None and line.findings == []


# --- going on later ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_after", [3, 7, 9, 12])
def test_a_resumed_run_is_watched_as_if_nothing_had_happened(killed_after):
    batches = [BUSY] * 5 + [[*IDLE, failed("f")]] * 12
    lenient = {"max_infra_rate": 0.5}
    whole = steps(sentinel(**lenient), batches)
    watch = sentinel(**lenient)
    before = steps(watch, batches[:killed_after])
    kept = msgspec.json.decode(msgspec.json.encode(watch.state), type=Memory)
    written = msgspec.json.decode(msgspec.json.encode(before), type=list[StepMetrics])
    after = steps(sentinel(kept, written, **lenient), batches[killed_after:], first=killed_after)
    assert written + after == whole
    assert spoke(whole, "early_stop")


def test_a_resumed_run_holds_its_validations_against_the_runs_first():
    watch = sentinel()
    watch.validated(StepMetrics(step=0, val_reward=1.0), BUSY, {"strict@2": [Grade(NUMERIC, 0.5)] * len(BUSY)})
    first = watch.state.first
    watch.validated(StepMetrics(step=10, val_reward=1.0), IDLE, {})
    kept = msgspec.json.decode(msgspec.json.encode(watch.state), type=Memory)
    assert kept.first == first
    assert first.step == 0 and first.holdout["strict@2"]["row-3"] == 0.5


def test_what_was_mended_is_not_held_against_the_run_that_goes_on():
    watch = sentinel()
    steps(watch, [[*IDLE, *(failed(f"f{n}") for n in range(6))]])
    assert watch.halt and watch.state.infra_window == ()


def test_lines_of_runs_from_before_there_were_findings_are_read():
    old = b'{"step":4,"val_reward":null,"train_reward":0.5,"tool_calls":6.5,"kl_to_ref":0.01,"loss":0.1,"entropy":0.3,"rollouts":64}'
    line = msgspec.json.decode(old, type=StepMetrics)
    assert (line.figures, line.findings, line.holdout, line.audit) == ({}, [], {}, ())
    lines = [msgspec.structs.replace(line, step=step, figures={}) for step in range(12)]
    [new] = steps(sentinel(lines=lines), [BUSY], first=12)
    assert new.findings == []


# --- the table --------------------------------------------------------------------------------------------------------------


def test_limits_are_the_configurations_before_the_runs_before_the_guards_own():
    watch = watched(limits(max_kl=0.3, watch={"judge_failures": Limit(0.2, "warn")}))
    assert limit_of("kl", watch) == Limit(0.3, "halt")
    assert limit_of("judge_failures", watch) == Limit(0.2, "warn")
    assert limit_of("infra_tool", watch) == Limit(0.01, "warn")
    assert limit_of("early_stop", watch) == GUARDS["early_stop"].limit


def test_every_entry_of_the_table_has_its_own_name_and_says_what_it_looks_at():
    assert all(name == guard.name and guard.looks_at and guard.unit for name, guard in GUARDS.items())
    assert all(guard.limit.action in ("stop", "halt") for guard in GUARDS.values() if not guard.can_be_off)


def validate(watch: Sentinel, step: int, right: int, failing: int = 0) -> StepMetrics:
    """Of 40 rows the first so many are right, and of the last ones infrastructure fails some."""
    line = StepMetrics(step=step)
    done = [attempt(f"v{step}-{row}", row=f"row-{row}", reward=float(row < right), answer=f"{row}.5") for row in range(40 - failing)]
    lost = [msgspec.structs.replace(failed(f"lost-{row}"), row=Row(f"row-{row}", "?", 42)) for row in range(40 - failing, 40)]
    watch.validated(line, done + lost, {})
    return line


def test_a_validation_is_held_against_the_best_of_the_run_whoever_resumed_it():
    """Half of the rows at first, 36 at step 5, 16 at step 10, which is no clear fall from the first, and one of 20 rows from the best."""
    watch = sentinel(max_infra_rate=1.0)
    validate(watch, 0, 20), validate(watch, 5, 36)
    resumed = sentinel(msgspec.json.decode(msgspec.json.encode(watch.state), type=Memory), max_infra_rate=1.0)
    [found] = [one for one in validate(resumed, 10, 16).findings if one.guard == "reward_fall"]
    assert found.figure == 0.5 and "less than at step 5" in found.what
    assert spoke([validate(sentinel(Memory(first=watch.state.first)), 10, 16)], "reward_fall") == []


def test_a_validation_of_which_most_rows_are_lost_is_no_best_one():
    """All of the 10 rows that came through are right, one more than before, which says nothing of the other 30."""
    watch = sentinel(max_infra_rate=1.0)
    validate(watch, 0, 9), validate(watch, 5, 40, failing=30)
    assert watch.state.best is not None and watch.state.best.step == 0
