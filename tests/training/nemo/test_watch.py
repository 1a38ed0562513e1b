"""The watch, called in the order that NeMo RL calls it: lines as the local engine writes them, guards, and going on later."""

import math
from types import SimpleNamespace

import msgspec
import pytest
from nemo_jobs import job_watched_by

from agent_rft.contracts.errors import Diverged, Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.guards import Limit
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import GuardLimits, StepMetrics
from agent_rft.training.journal import MetricsFile
from agent_rft.training.nemo import watch as watch_module
from agent_rft.training.nemo.watch import State, Watch, keep_state, state_in

NUMERIC = GraderRef("numeric", "1", "0" * 16)
FAILED = None


def rollout(reward: float | None, calls: int = 1) -> GradedRollout:
    turn = Turn("", calls=tuple(ToolCall(f"c{i}", "search", {}) for i in range(calls)), context_tokens=6, sampled_tokens=4)
    failed = reward is FAILED
    ending, part = (Ending.INFRA_FAILED, "tool:search") if failed else (Ending.ANSWERED, "")
    state = Rollout("r", (), (), Limits(), turns=[turn], ending=ending, failed_part=part, reason="503 after 3 attempts" if failed else "")
    return GradedRollout(Row("row", "?", 1), 0, state, None if failed else Grade(NUMERIC, reward))


BATCH = [rollout(1.0), rollout(0.0), rollout(0.5), rollout(0.5)]
"""Two groups of two: the first teaches something."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands still unless it is told to go on."""
    told = SimpleNamespace(now=100.0)
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(monotonic=lambda: told.now))
    return told


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def make(path, clock):
    """A watch over the run's one journal."""

    def make(
        state: State | None = None,
        *,
        total=3,
        measures_floor=False,
        holdouts=(),
        on_step=lambda line, total: None,
        leaks_in=None,
        **guards,
    ) -> Watch:
        limits = GuardLimits(**({"max_infra_rate": 0.01, "infra_window_calls": 1000, "max_kl": 0.5} | guards))
        job = msgspec.structs.replace(job_watched_by(limits), leaks_in=leaks_in)
        return Watch(job, MetricsFile(path), on_step, total, state, holdouts=holdouts, measures_floor=measures_floor)

    return make


def update(watch: Watch, kl: float | None = 0.1, finite: bool = True, loss: float = 0.25) -> bool:
    """Whether the update was made."""
    if watch.refuse_update(kl, finite):
        return False
    watch.updated(loss=loss, grad_norm=2.0, clip_fraction=0.125, entropy=1.5, learning_rate=1e-4, seconds=3.0)
    return True


def validate(watch: Watch, *rewards: float | None, seconds: float = 0.0) -> float | None:
    watch.tried([rollout(reward) for reward in rewards], seconds)
    return watch.validated()


def ended_by_its_validation(watch: Watch, folder) -> None:
    """After a step of learning every try of it is unsafe."""
    watch.tried(SAFE, 0.0)
    watch.validated()
    learn(watch)
    watch.tried(UNSAFE, 0.0)
    watch.validated()
    keep_state(watch.state, folder)
    watch.step_finished()
    watch.close()


def learn(watch: Watch, kl: float = 0.1, batch=BATCH) -> bool:
    watch.rolled_out(batch, 2, 0.0, 1.0)
    return update(watch, kl)


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_run_of_three_steps_leaves_the_lines_that_the_local_engine_would(make, path):
    """Validation of the base, of the weights after two updates, and after the last: each on the line of the weights it judged."""
    shown = []
    watch = make(on_step=lambda line, total: shown.append((line.step, total)))
    validate(watch, 0.0, 0.5)
    learn(watch, kl=0.0)
    watch.step_finished()
    learn(watch)
    validate(watch, 0.5, 1.0, FAILED)
    watch.step_finished()
    learn(watch)
    validate(watch, 1.0, 1.0)
    watch.step_finished()
    watch.close()

    lines = MetricsFile(path).lines()
    assert [(line.step, line.val_reward) for line in lines] == [(0, 0.25), (1, None), (2, 0.75), (3, 1.0)]
    # BATCH: (1 + 0 + 0.5 + 0.5) / 4 = 0.5, one group of two flat
    assert [(line.train_reward, line.flat_groups) for line in lines] == [(0.5, 0.5)] * 3 + [(None, None)]
    assert [line.kl_to_ref for line in lines] == [0.0, 0.1, 0.1, None]
    assert [line.rollouts for line in lines] == [2 + 4, 4, 3 + 4, 2]
    assert [line.tokens for line in lines] == [60, 40, 70, 20]
    assert [line.infra_failures for line in lines] == [0, 0, 1, 0]
    for line in lines[:3]:
        made = (line.loss, line.grad_norm, line.clip_fraction, line.entropy, line.learning_rate, line.train_seconds)
        assert made == (0.25, 2.0, 0.125, 1.5, 1e-4, 3.0)
    assert lines[3].loss is None
    assert shown == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert watch.lines == lines
    assert watch.step == 3
    assert watch.halt is None


def test_a_run_without_a_last_validation_has_no_last_line(make, path):
    watch = make(total=1)
    learn(watch)
    watch.step_finished()
    watch.close()
    assert [line.step for line in MetricsFile(path).lines()] == [0]


def test_advantages_are_those_of_the_groups_and_none_where_infrastructure_failed(make):
    """1 and 0: 0.5 / (0.70711 + 0.0001) = 0.70701 either way; half a group that is left is no comparison."""
    found = make().rolled_out([rollout(1.0), rollout(0.0), rollout(0.5), rollout(FAILED)], 2, 0.0, 1.0)
    assert found == pytest.approx([0.70701, -0.70701, 0.0, None], abs=1e-5)


def test_the_time_of_a_validation_is_on_the_line_that_it_judges(make, path, clock):
    """Base: 5 s. Step 0: 20 s of rollouts and training. Step 1: 30 s, and then 7 s of validation: of line 2, with its own 40 s."""
    watch = make()
    clock.now += 5
    validate(watch, 0.0, seconds=5)
    clock.now += 20
    learn(watch)
    watch.step_finished()
    clock.now += 30
    learn(watch)
    clock.now += 7
    validate(watch, 1.0, seconds=7)
    watch.step_finished()
    clock.now += 40
    learn(watch)
    clock.now += 2
    validate(watch, 1.0, seconds=2)
    watch.step_finished()
    clock.now += 1
    watch.close()
    lines = MetricsFile(path).lines()
    assert [line.seconds for line in lines] == [5 + 20, 30, 7 + 40, 2 + 1]
    assert sum(line.seconds for line in lines) == clock.now - 100
    # a rolled out batch takes its 1 second, told by `learn`; the validation's beside
    assert [line.rollout_seconds for line in lines] == [6, 1, 8, 2]


def test_nemo_rls_setup_is_no_steps_time(make, path, clock):
    """50 s of setup, then 20 s of rollouts and training."""
    watch = make()
    clock.now += 50
    watch.begin()
    clock.now += 20
    learn(watch)
    watch.step_finished()
    assert [line.seconds for line in MetricsFile(path).lines()] == [20]


# --- going on later ---------------------------------------------------------------------------------------------------


def two_steps(watch: Watch) -> None:
    """Up to where NeMo RL saves its second checkpoint: after the validation, before it says that the step is over."""
    validate(watch, 0.0, FAILED)
    learn(watch)
    watch.step_finished()
    learn(watch)
    validate(watch, 0.5, 1.0)


def the_rest(watch: Watch) -> None:
    learn(watch, batch=[*BATCH[:3], rollout(FAILED)])
    validate(watch, 1.0, 1.0)
    watch.step_finished()
    watch.close()


LENIENT = {"max_infra_rate": 0.5}


@pytest.mark.parametrize("lived_on", ["not at all", "until the line was written", "into the next step"])
def test_resumed_from_a_checkpoint_it_goes_on_as_if_nothing_had_happened(make, path, tmp_path, lived_on):
    watch = make(**LENIENT)
    two_steps(watch)
    watch.step_finished()
    the_rest(watch)
    whole = path.read_bytes()
    path.unlink()

    killed = make(**LENIENT)
    two_steps(killed)
    keep_state(killed.state, tmp_path)
    if lived_on != "not at all":
        killed.step_finished()
    if lived_on == "into the next step":
        learn(killed, kl=0.4)
        killed.step_finished()
    resumed = make(state_in(tmp_path), **LENIENT)
    assert resumed.step == 2
    assert [line.step for line in resumed.lines] == [0, 1]
    the_rest(resumed)
    assert path.read_bytes() == whole


def test_a_line_that_a_checkpoint_was_ahead_of_has_its_time(make, tmp_path, clock):
    watch = make()
    learn(watch)
    clock.now += 30
    validate(watch, 1.0, seconds=10)
    keep_state(watch.state, tmp_path)
    assert [line.seconds for line in make(state_in(tmp_path)).lines] == [20]


def test_the_table_hears_of_a_line_that_a_checkpoint_was_ahead_of(make, tmp_path):
    watch = make()
    learn(watch)
    keep_state(watch.state, tmp_path)
    shown = []
    make(state_in(tmp_path), on_step=lambda line, total: shown.append((line.step, total)))
    assert shown == [(0, 3)]


def test_a_run_that_was_killed_after_its_last_checkpoint_still_has_its_last_line(make, path, tmp_path):
    watch = make(total=1)
    learn(watch)
    validate(watch, 1.0)
    keep_state(watch.state, tmp_path)
    make(state_in(tmp_path), total=1).close()
    assert [(line.step, line.val_reward) for line in MetricsFile(path).lines()] == [(0, None), (1, 1.0)]


def test_a_line_that_a_validation_has_begun_is_kept(make, tmp_path):
    watch = make()
    validate(watch, 0.5)
    keep_state(watch.state, tmp_path)
    kept = state_in(tmp_path)
    assert (kept.step, kept.unwritten) == (0, None)
    assert kept.pending == StepMetrics(step=0, val_reward=0.5, val_tool_calls=1.0, figures=kept.pending.figures, rollouts=1, tokens=10)


def test_the_guards_window_goes_with_the_checkpoint_unless_it_halted(make):
    """What was mended must not be held against the run that goes on."""
    watch = make(**LENIENT)
    learn(watch, batch=[*BATCH[:3], rollout(FAILED)])
    [tally] = watch.state.sentinel.infra_window
    assert tally.calls["tool:search"] == 4
    assert tally.failed == {"tool:search": 1}
    strict = make(max_infra_rate=0.0)
    learn(strict, batch=[*BATCH[:3], rollout(FAILED)])
    assert strict.halt
    assert strict.state.sentinel.infra_window == ()


def test_there_may_be_no_state(tmp_path):
    assert state_in(tmp_path) is None


# --- guards -----------------------------------------------------------------------------------------------------------


def test_a_drift_is_refused_with_its_figure_and_the_line_is_written(make, path):
    watch = make()
    assert learn(watch, kl=0.5)
    watch.step_finished()
    assert not learn(watch, kl=0.512)
    watch.step_finished()
    watch.close()
    assert watch.halt.what == "the policy has drifted to a KL of 0.512 from the reference, 0.5 is allowed; the update is not kept"
    assert "guards.max_kl" in watch.halt.cure
    lines = MetricsFile(path).lines()
    assert [(line.step, line.kl_to_ref, line.loss) for line in lines] == [(0, 0.5, 0.25), (1, 0.512, None)]
    assert watch.state.step == 2, "the batch was spent: resumed, the run goes on with the next"


def test_a_quantised_references_own_distance_is_measured_first_and_allowed_on_top(make, tmp_path):
    watch = make(measures_floor=True)
    assert learn(watch, kl=0.7), "untrained weights: all of it is the reference's own"
    watch.step_finished()
    assert learn(watch, kl=1.19)
    keep_state(watch.state, tmp_path)
    resumed = make(state_in(tmp_path), measures_floor=True)
    assert learn(resumed, kl=1.19)
    resumed.step_finished()
    assert not learn(resumed, kl=1.21)
    assert "KL of 1.21 from the reference, 0.5 is allowed beside the 0.7 of the quantised reference itself" in resumed.halt.what


def test_an_exact_reference_has_no_floor(make):
    assert not learn(make(), kl=0.7)


def test_a_floor_that_was_not_a_number_is_measured_when_the_run_goes_on(make, tmp_path):
    """The refused update changed no weights."""
    watch = make(measures_floor=True)
    watch.rolled_out(BATCH, 2, 0.0, 1.0)
    assert not update(watch, kl=math.nan, finite=False)
    keep_state(watch.state, tmp_path)
    resumed = make(state_in(tmp_path), measures_floor=True)
    assert learn(resumed, kl=0.7)


def test_without_a_reference_nothing_drifts(make, path):
    watch = make()
    watch.rolled_out(BATCH, 2, 0.0, 1.0)
    assert update(watch, kl=None)
    watch.step_finished()
    assert MetricsFile(path).lines()[0].kl_to_ref is None


def test_what_is_not_a_number_is_refused_before_the_update(make):
    watch = make()
    watch.rolled_out(BATCH, 2, 0.0, 1.0)
    assert not update(watch, finite=False)
    assert "not numbers; the update was skipped" in watch.halt.what


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_an_update_that_is_not_a_number_raises_so_that_nothing_is_saved(make, path, loss):
    watch = make()
    watch.rolled_out(BATCH, 2, 0.0, 1.0)
    with pytest.raises(Diverged, match="not a number"):
        update(watch, loss=loss)
    assert isinstance(watch.halt, Diverged)
    watch.close()
    assert [(line.step, line.loss, line.grad_norm) for line in MetricsFile(path).lines()] == [(0, None, 2.0)]


def test_tools_that_fail_too_often_halt_and_the_batch_is_not_learnt_from(make, path):
    """Three of four calls: far beyond what one in a hundred explains."""
    watch = make()
    assert not learn(watch, batch=[rollout(1.0), *[rollout(FAILED)] * 3])
    assert "tool:search failed 3 of its last 4 calls (75.0%)" in watch.halt.what
    assert "guards.max_infra_rate" in watch.halt.cure
    watch.step_finished()
    [line] = MetricsFile(path).lines()
    assert (line.infra_failures, line.infra_failure_rate) == (3, 0.75)


def test_a_grader_that_fails_too_often_halts_as_a_tool_does_and_its_rate_stands_beside(make, path):
    """Graders that failed leave a grade without a reward: 3 of 4."""
    watch, failed = make(), rollout(1.0)
    state = msgspec.structs.replace(failed.rollout, ending=Ending.INFRA_FAILED, failed_part="grader:numeric", reason="the judge is gone")
    failed = msgspec.structs.replace(failed, rollout=state, grade=Grade(NUMERIC, None, errors={"model_grader_server_error": "gone"}))
    assert not learn(watch, batch=[rollout(1.0), *[failed] * 3])
    assert "grader:numeric failed 3 of its last 4 calls (75.0%)" in watch.halt.what
    assert watch.halt.what.endswith("the last one said: the judge is gone")
    watch.step_finished()
    [line] = MetricsFile(path).lines()
    assert (line.infra_failures, line.grader_failure_rate, line.infra_failure_rate) == (3, 0.75, 0.0)


def test_a_batch_of_which_nothing_came_through_is_refused(make):
    watch = make(max_infra_rate=1.0)
    assert watch.rolled_out([rollout(FAILED)] * 4, 2, 0.0, 1.0) == [None] * 4
    assert not update(watch, kl=None)
    said = "every rollout of the step failed from infrastructure: tool:search (4 times); the last one said: 503 after 3 attempts"
    assert watch.halt.what == said
    assert watch.halt.cure == "mend tool:search"


def test_the_first_reason_stays(make):
    watch = make()
    watch.rolled_out([rollout(FAILED)] * 4, 2, 0.0, 1.0)
    update(watch, kl=99.0, finite=False)
    assert watch.halt.what.startswith("every rollout of the step failed")


def test_a_first_validation_of_which_nothing_came_through_ends_the_run_at_once(make, path):
    watch = make()
    with pytest.raises(Halted, match=r"every rollout of the step failed from infrastructure: tool:search \(2 times\)"):
        validate(watch, FAILED, FAILED)
    watch.close()
    assert [(line.step, line.val_reward, line.infra_failures) for line in MetricsFile(path).lines()] == [(0, None, 2)]


def test_a_later_one_lets_the_step_be_saved(make):
    watch = make(total=2)
    validate(watch, 0.5)
    assert learn(watch)
    assert validate(watch, FAILED, FAILED) is None
    assert watch.halt
    watch.step_finished()
    assert watch.state.step == 1


def test_validation_in_several_batches_is_one(make):
    watch = make()
    watch.tried([rollout(1.0), rollout(1.0)], 0.0)
    watch.tried([rollout(0.0), rollout(FAILED)], 0.0)
    assert watch.validated() == pytest.approx(2 / 3)


# --- the same sentinel as on the local engine -------------------------------------------------------------------------


class Strict:
    """A holdout that thinks half of everything."""

    ref = GraderRef("strict", "2", "1" * 16)

    def grade(self, item, sample) -> Grade:
        return Grade(self.ref, 0.5)


def test_holdouts_grade_what_a_validation_brought_and_stand_on_the_line_of_the_weights_that_they_judged(make, path):
    watch = make(holdouts=[Strict()])
    validate(watch, 0.0, 1.0)
    learn(watch)
    validate(watch, 1.0, FAILED)
    watch.step_finished()
    learn(watch)
    watch.step_finished()
    assert [line.holdout for line in MetricsFile(path).lines()] == [{"strict@2": 0.5}, {"strict@2": 0.5}]
    assert watch.state.sentinel.first.holdout == {"strict@2": {"row": 0.5}}


def test_lines_have_figures_and_findings_and_a_warning_ends_nothing(make, path):
    watch = make(watch={"kl": Limit(0.05, "warn")})
    assert learn(watch, kl=0.1)
    watch.step_finished()
    [line] = MetricsFile(path).lines()
    assert (line.figures["calls_a_try"], [finding.guard for finding in line.findings]) == (1.0, ["kl"])
    assert watch.halt is None


def test_a_drift_that_may_be_kept_is_refused_with_what_is_left_saved(make):
    watch = make(watch={"kl": Limit(0.05, "stop")})
    assert not learn(watch, kl=0.1)
    assert type(watch.halt) is Halted
    assert watch.state.step == 1


SAFE, UNSAFE = ([msgspec.structs.replace(rollout(1.0), row=Row(f"row-{number}", "?", 1)) for number in range(20)] for _ in range(2))
for one in UNSAFE:
    one.rollout.turns[0].results = {"c0": ToolResult("c0", "no", "policy_denied")}


@pytest.mark.parametrize(("action", "raises"), [("halt", True), ("stop", False)])
def test_weights_whose_validation_a_guard_will_not_have_are_not_saved(make, path, action, raises):
    """No try of the base did what no agent may, and every one of the tuned does."""
    watch = make(watch={"unsafe": Limit(0.02, action)})
    watch.tried(SAFE, 0.0)
    watch.validated()
    learn(watch)
    watch.tried(UNSAFE, 0.0)
    if raises:
        with pytest.raises(Diverged, match=r"100.0% of the 20 tries of a validation did what no agent may"):
            watch.validated()
    else:
        assert watch.validated() == 1.0
        watch.step_finished()
    assert watch.halt
    watch.close()
    lines = MetricsFile(path).lines()
    assert [(line.step, [finding.guard for finding in line.findings]) for line in lines] == [(0, []), (1, ["unsafe"])]


@pytest.mark.parametrize(
    ("now", "ends", "said"),
    [
        (Limit(0.02, "stop"), True, ["stop"]),
        (Limit(0.02, "warn"), False, ["warn"]),
        (Limit(0.02, "off"), False, []),
        (Limit(1.1, "stop"), False, []),
    ],
    ids=["as it was", "warned of", "off", "borne"],
)
def test_a_run_that_goes_on_is_held_to_the_limits_of_now_by_a_validation_that_is_not_made_again(make, path, tmp_path, now, ends, said):
    """Ended by every try of the tuned being unsafe, a share of 1. The line is told again, after the one that is undone."""
    ended_by_its_validation(make(watch={"unsafe": Limit(0.02, "stop")}), tmp_path)

    again = make(state_in(tmp_path), watch={"unsafe": now})
    assert (again.halt is not None) == ends
    again.close()
    assert [line.step for line in MetricsFile(path).undone()] == [1]
    line = MetricsFile(path).lines()[-1]
    assert (line.step, [finding.action for finding in line.findings], line.val_reward) == (1, said, 1.0)


def test_a_last_validation_that_a_guard_did_not_bear_does_not_pass_at_the_second_try(make, path, tmp_path):
    ended_by_its_validation(make(total=1, watch={"unsafe": Limit(0.02, "stop")}), tmp_path)
    whole = path.read_bytes()
    for action, ends in (("stop", True), ("warn", False)):
        again = make(state_in(tmp_path), total=1, watch={"unsafe": Limit(0.02, action)})
        again.close()
        assert (again.halt is not None) == ends and path.read_bytes() == whole


def test_infrastructure_that_ended_a_run_at_a_validation_does_not_end_it_again(make, tmp_path):
    watch = make(total=2)
    validate(watch, 0.5)
    learn(watch)
    validate(watch, FAILED, FAILED)
    keep_state(watch.state, tmp_path)
    watch.step_finished()
    watch.close()
    again = make(state_in(tmp_path), total=2)
    assert watch.halt and not again.halt
    assert {finding.action for finding in again.state.pending.findings} == {"warn"}


def test_whoever_begins_the_run_says_what_a_secret_is(make, path):
    watch = make(leaks_in=lambda rollout: ("KEY",))
    validate(watch, 1.0)
    learn(watch)
    watch.step_finished()
    assert MetricsFile(path).lines()[0].figures["val_leaked"] == 1.0


def test_what_left_the_loop_without_a_guards_word_is_the_engines_own(make, path):
    watch = make()
    learn(watch)
    watch.broken(Diverged("the model's logits are not numbers", "go on from an earlier checkpoint"))
    watch.broken(Halted("another", "none"))
    watch.close()
    [line] = MetricsFile(path).lines()
    assert [(finding.guard, finding.what) for finding in line.findings] == [("finite", "the model's logits are not numbers")]
    assert watch.halt.cure == "go on from an earlier checkpoint"
