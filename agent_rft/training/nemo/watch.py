"""What a run does while NeMo RL drives it: a line of metrics a step, what guards say, and the word that ends it.

NeMo RL trains step s and then validates the weights that came out, s + 1; so a validation belongs to the line after the
one that is being written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent_rft.contracts.errors import Diverged, Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.training import OnStep, StepMetrics, TrainingJob
from agent_rft.guards.sentinel import Memory, Sentinel
from agent_rft.training.bookkeeping import count, credit, means
from agent_rft.training.guards import check_finite
from agent_rft.training.holdouts import grades_by
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
    sentinel: Memory = Memory()
    """What the guards remember."""


class Watch:
    def __init__(
        self,
        job: TrainingJob,
        journal: MetricsFile,
        on_step: OnStep,
        total_steps: int,
        state: State | None = None,
        *,
        holdouts: Sequence[Grader] = (),
        measures_floor: bool = False,
    ) -> None:
        """`measures_floor`: the reference is quantised, so that untrained weights already differ from it."""
        state = state or State()
        self._journal, self._on_step, self._total, self._holdouts = journal, on_step, total_steps, holdouts
        self._step = state.step
        self.lines = journal.rewind(state.step + (not self.unfinished))  # the line after the last step only validates
        written = {line.step for line in self.lines}
        if state.unwritten and state.unwritten.step not in written:
            self._tell(state.unwritten)
        self._sentinel = Sentinel(
            job.guards,
            state.sentinel,
            lines=self.lines,
            total_steps=total_steps,
            seed=job.seed,
            train_rows=job.train_rows,
            grader_texts=job.grader_texts,
            leaks_in=job.leaks_in,
            measures_floor=measures_floor,
        )
        self._line = state.pending if state.pending and state.step not in written else StepMetrics(step=state.step)
        done = next((line for line in self.lines if line.step == state.step), None)  # the run had come to its end
        self._sentinel.taken_up(msgspec.structs.replace(done) if done else self._line)
        self._next = StepMetrics(step=state.step + 1)
        self._trained = False
        self._validated: list[GradedRollout] = []
        self._since, self._ahead = time.monotonic(), 0.0
        """When the last line was written, and what has been spent since on the line after the one under way."""

    @property
    def halt(self) -> Halted | None:
        """Why the run ends early."""
        return self._sentinel.halt

    @property
    def step(self) -> int:
        return self._step

    @property
    def unfinished(self) -> bool:
        return self._step < self._total

    @property
    def state(self) -> State:
        """As it is once the step under way is over."""
        remembered = self._sentinel.state
        if not self._trained:
            return State(self._step, self._line, None, remembered)
        ending = msgspec.structs.replace(self._line, seconds=self._spent(time.monotonic()))
        return State(self._step, self._next, ending, remembered)

    # --- rollouts --------------------------------------------------------------------------------------------------

    def rolled_out(self, done: Sequence[GradedRollout], group: int, call_cost: float, seconds: float) -> list[float | None]:
        """A training batch, groups of `group` one after another; answers the advantages, None where infrastructure failed."""
        advantages = credit(self._line, done, group, call_cost)
        count(self._line, done, seconds)
        self._sentinel.rolled_out(self._line, done)
        return advantages

    def tried(self, done: Sequence[GradedRollout], seconds: float) -> None:
        """A batch of a validation."""
        self._validated += done
        self._ahead += seconds if self._trained else 0.0
        count(self._validating, done, seconds)

    def validated(self) -> float | None:
        """The validation is over; answers its mean reward. Raises what ends the run where nothing is to be saved: before anything
        was learnt, or where the weights that were judged are not to be kept."""
        line, done, halted_before = self._validating, self._validated, self.halt
        line.val_reward, line.val_tool_calls = means(done)
        self._validated = []
        self._sentinel.validated(line, done, grades_by(done, self._holdouts))
        if self.halt and (isinstance(self.halt, Diverged) or (self._step == 0 and not self._trained)) and not halted_before:
            raise self.halt
        return line.val_reward

    @property
    def _validating(self) -> StepMetrics:
        return self._next if self._trained else self._line

    # --- updates ---------------------------------------------------------------------------------------------------

    def refuse_update(self, kl: float | None, finite: bool) -> bool:
        """Asked before each update, with the KL of the weights that rolled out."""
        self._line.kl_to_ref = kl
        self._trained = True
        self._step += 1
        if not finite:
            what = "advantages or log-probabilities of the batch are not numbers; the update was skipped"
            cure = "look at the reference and at the last checkpoint's weights; then take a smaller algorithm.learning_rate"
            self._sentinel.broken(self._line, Halted(what, cure))
        else:
            self._sentinel.updated(self._line)
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
        """Raises where its weights must not be saved: the update was not a number, or a guard will not have them."""
        line = self._line
        line.loss, line.grad_norm, line.clip_fraction, line.entropy = loss, grad_norm, clip_fraction, entropy
        line.learning_rate, line.train_seconds = learning_rate, seconds
        try:
            check_finite(loss, grad_norm)
        except Halted as reason:
            self._sentinel.broken(line, reason)
            raise
        self._sentinel.updated(line)
        if isinstance(self.halt, Diverged):
            raise self.halt

    def broken(self, reason: Halted) -> None:
        """NeMo RL's loop was left by it: what no guard has said yet is the engine's own."""
        if not self.halt:
            self._sentinel.broken(self._line, reason)

    # --- steps -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """What came before, NeMo RL's setup, was no step's time."""
        self._since = time.monotonic()

    def step_finished(self) -> None:
        self._write(self._line)
        self._line, self._next = self._next, StepMetrics(step=self._next.step + 1)
        self._trained = False

    def close(self) -> None:
        """The run is over: the last line only validates, and a line that was cut short says as far as it came. So does the one after
        it, where a validation of weights that are not kept has ended the run."""
        for line in (self._line, self._next):
            if line.val_reward is not None or line.rollouts:
                self._write(line)

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
