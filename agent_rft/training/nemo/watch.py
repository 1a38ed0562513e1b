"""What a run does while NeMo RL drives it: a line of metrics a step, the guards, and the word that ends it.

NeMo RL trains step s and then validates the weights that came out, s + 1; so a validation belongs to the line after the
one that is being written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent_rft.contracts.errors import Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.training import GuardLimits, OnStep, StepMetrics
from agent_rft.training.bookkeeping import count, credit, means
from agent_rft.training.guards import InfraGuard, Tally, check_finite, check_some_left, tally_of
from agent_rft.training.journal import MetricsFile

STATE = "watch.json"


class State(msgspec.Struct, frozen=True):
    """What a checkpoint keeps of the watch."""

    step: int = 0
    """Updates made, or refused."""
    pending: StepMetrics | None = None
    """The line that a validation has begun and no training has ended yet."""
    unwritten: StepMetrics | None = None
    """The line before it: NeMo RL saves before it says that the step is over."""
    infra_window: tuple[Tally, ...] = ()
    kl_floor: float | None = None
    """None until it is measured."""


class Watch:
    def __init__(
        self,
        guards: GuardLimits,
        journal: MetricsFile,
        on_step: OnStep,
        total_steps: int,
        state: State | None = None,
        *,
        measures_floor: bool = False,
    ) -> None:
        """`measures_floor`: the reference is quantised, so that untrained weights already differ from it."""
        state = state or State()
        self.halt: Halted | None = None
        """Why the run ends early."""
        self._limits, self._journal, self._on_step, self._total = guards, journal, on_step, total_steps
        self._step, self._floor, self._measures_floor = state.step, state.kl_floor, measures_floor
        self._infra = InfraGuard(guards.max_infra_rate, guards.infra_window_calls, state.infra_window)
        self.lines = journal.rewind(state.step + (not self.unfinished))  # the line after the last step only validates
        written = {line.step for line in self.lines}
        if state.unwritten and state.unwritten.step not in written:
            self._tell(state.unwritten)
        self._line = state.pending if state.pending and state.step not in written else StepMetrics(step=state.step)
        self._next = StepMetrics(step=state.step + 1)
        self._trained = False
        self._validated: list[GradedRollout] = []
        self._since, self._ahead = time.monotonic(), 0.0
        """When the last line was written, and what has been spent since on the line after the one under way."""

    @property
    def step(self) -> int:
        return self._step

    @property
    def unfinished(self) -> bool:
        return self._step < self._total

    @property
    def state(self) -> State:
        """As it is once the step under way is over."""
        window = () if self.halt else tuple(self._infra.steps)
        if not self._trained:
            return State(self._step, self._line, None, window, self._floor)
        ending = msgspec.structs.replace(self._line, seconds=self._spent(time.monotonic()))
        return State(self._step, self._next, ending, window, self._floor)

    # --- rollouts --------------------------------------------------------------------------------------------------

    def rolled_out(self, done: Sequence[GradedRollout], group: int, call_cost: float, seconds: float) -> list[float | None]:
        """A training batch, groups of `group` one after another; answers the advantages, None where infrastructure failed."""
        advantages = credit(self._line, done, group, call_cost)
        count(self._line, done, seconds)
        self._judge(done, self._line)
        return advantages

    def tried(self, done: Sequence[GradedRollout], seconds: float) -> None:
        """A batch of a validation."""
        self._validated += done
        self._ahead += seconds if self._trained else 0.0
        count(self._validating, done, seconds)

    def validated(self) -> float | None:
        """The validation is over; answers its mean reward. Before anything was learnt there is nothing to save: it halts at once."""
        line, done = self._validating, self._validated
        line.val_reward, line.val_tool_calls = means(done)
        self._validated = []
        self._judge(done, line)
        if self.halt and self._step == 0 and not self._trained:
            raise self.halt
        return line.val_reward

    @property
    def _validating(self) -> StepMetrics:
        return self._next if self._trained else self._line

    def _judge(self, done: Sequence[GradedRollout], line: StepMetrics) -> None:
        self._infra.note(tally_of(done))
        line.infra_failure_rate, line.grader_failure_rate = self._infra.failure_rate("tool"), self._infra.failure_rate("grader")
        self._held_by(lambda: check_some_left(done))
        self._held_by(self._infra.check)

    def _held_by(self, guard: Callable[[], None]) -> None:
        try:
            guard()
        except Halted as reason:
            self.halt = self.halt or reason

    # --- updates ---------------------------------------------------------------------------------------------------

    def refuse_update(self, kl: float | None, finite: bool) -> bool:
        """Asked before each update, with the KL of the weights that rolled out."""
        self._line.kl_to_ref = kl
        self._trained = True
        if kl is not None and finite and self._measures_floor and self._floor is None:
            self._floor = kl  # nothing was learnt yet: a first update that is refused leaves the weights as they are
        self._step += 1
        if not finite:
            self.halt = self.halt or Halted(
                "advantages or log-probabilities of the batch are not numbers; the update was skipped",
                "look at the reference and at the last checkpoint's weights; then take a smaller algorithm.learning_rate",
            )
        elif kl is not None and kl > self._limits.max_kl + (self._floor or 0.0):
            beside = f" beside the {self._floor:.3g} of the quantised reference itself" if self._floor else ""
            self.halt = self.halt or Halted(
                f"the policy has drifted to a KL of {kl:.3g} from the reference, {self._limits.max_kl:g} is allowed{beside}; "
                "the update was skipped",
                "take a larger algorithm.kl_coef or a smaller algorithm.learning_rate, or allow more with guards.max_kl",
            )
        return self.halt is not None

    def updated(
        self,
        *,
        loss: float,
        grad_norm: float,
        clip_fraction: float | None,
        entropy: float | None,
        learning_rate: float | None,
        seconds: float,
    ) -> None:
        """Raises where the update was not a number: its weights must not be saved."""
        line = self._line
        line.loss, line.grad_norm, line.clip_fraction, line.entropy = loss, grad_norm, clip_fraction, entropy
        line.learning_rate, line.train_seconds = learning_rate, seconds
        try:
            check_finite(loss, grad_norm)
        except Halted as reason:
            self.halt = reason
            raise

    # --- steps -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """What came before, NeMo RL's setup, was no step's time."""
        self._since = time.monotonic()

    def step_finished(self) -> None:
        self._write(self._line)
        self._line, self._next = self._next, StepMetrics(step=self._next.step + 1)
        self._trained = False

    def close(self) -> None:
        """The run is over: the last line only validates, and a line that was cut short says as far as it came."""
        if self._line.val_reward is not None or self._line.rollouts:
            self._write(self._line)

    def _write(self, line: StepMetrics) -> None:
        now = time.monotonic()
        line.seconds = self._spent(now)
        self._since, self._ahead = now - self._ahead, 0.0
        self._tell(line)

    def _tell(self, line: StepMetrics) -> None:
        self._journal.append(line)
        self.lines.append(line)
        self._on_step(line, self._total)

    def _spent(self, now: float) -> float:
        """On the line under way."""
        return now - self._since - self._ahead


def state_in(checkpoint: Path) -> State | None:
    file = checkpoint / STATE
    return msgspec.json.decode(file.read_bytes(), type=State) if file.exists() else None


def keep_state(state: State, checkpoint: Path) -> None:
    (checkpoint / STATE).write_bytes(msgspec.json.encode(state))
