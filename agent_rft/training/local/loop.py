"""GRPO, top to bottom.

Left out on purpose: several updates on one batch (one is on-policy and needs no more rollouts in flight), a value model
(the group is the baseline), and any state but weights, optimizer and step (every seed is derived from where it is used).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.errors import Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Kind
from agent_rft.contracts.ports import Grader, Recorder, ToolBox
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import OnStep, Outcome, StepMetrics, TrainingJob
from agent_rft.rollouts.cards import card_of
from agent_rft.rollouts.driver import Try, collect
from agent_rft.rollouts.seeds import derive_seed
from agent_rft.training.bookkeeping import count, credit, means
from agent_rft.training.guards import Diverged, InfraGuard, check_kl, check_some_left, tally_of
from agent_rft.training.local.batches import trajectories
from agent_rft.training.local.ports import Engine, Journal, Position
from agent_rft.training.schedule import learning_rate, rows_of_step, total_steps


async def train(
    job: TrainingJob, engine: Engine, journal: Journal, tools: ToolBox, grader: Grader, recorder: Recorder, on_step: OnStep
) -> Outcome:
    """Each step validates where that is due, then learns; the last one only validates. A guard that halts ends it early."""
    algorithm = job.algorithm
    last = total_steps(len(job.train_rows), algorithm.batch_size, algorithm.epochs, algorithm.max_steps)
    position = engine.position
    lines = journal.rewind(position.step)
    guard = InfraGuard(job.guards.max_infra_rate, job.guards.infra_window_calls, position.infra_window)
    crew = _Crew(job, engine, tools, grader, recorder, guard)
    made, halt = position.step, None

    for step in range(position.step, last + 1):
        began, line = time.monotonic(), StepMetrics(step=step)
        try:
            if step % job.evaluate_every == 0 or step == last:
                await crew.validate(step, line)
            if step < last:
                await crew.learn(step, line)
        except Halted as reason:
            halt = reason
        made = step + 1 if line.loss is not None else step
        line.seconds = time.monotonic() - began
        journal.append(line)
        lines.append(line)
        on_step(line, last)
        due = halt or (made > step and (made % job.checkpoint_every == 0 or made == last))
        if due and not isinstance(halt, Diverged):
            recorder.flush()
            engine.save(Position(made, () if halt else tuple(guard.steps)))
        if halt:
            break

    recorder.flush()
    halted, cure = (halt.what, halt.cure) if halt else ("", "")
    return Outcome(checkpoint=engine.newest_checkpoint, steps=made, total_steps=last, metrics=tuple(lines), halted=halted, cure=cure)


class _Crew:
    """The two things a step does."""

    def __init__(self, job: TrainingJob, engine: Engine, tools: ToolBox, grader: Grader, recorder: Recorder, guard: InfraGuard) -> None:
        self._job, self._engine, self._tools, self._grader, self._recorder, self._guard = job, engine, tools, grader, recorder, guard

    async def validate(self, step: int, line: StepMetrics) -> None:
        done = await self._roll_out("val", step, self._job.val_rows, self._job.val_samples, line)
        self._record(done, "eval", step, [None] * len(done))
        self._guard_infra(done, line)
        line.val_reward, line.val_tool_calls = means(done)

    async def learn(self, step: int, line: StepMetrics) -> None:
        """One batch of groups: roll out, guard, compare within groups, update."""
        algorithm = self._job.algorithm
        rows = rows_of_step(self._job.train_rows, step, algorithm.batch_size, self._job.seed)
        group = algorithm.rollouts_per_prompt
        done = await self._roll_out("train", step, rows, group, line)
        advantages = credit(line, done, group, algorithm.call_cost)
        self._record(done, "train", step, advantages)
        self._guard_infra(done, line)

        began = time.monotonic()
        rate = learning_rate(step, algorithm.learning_rate, algorithm.warmup_steps)
        update = self._engine.update(trajectories(done, advantages), rate)
        line.train_seconds = time.monotonic() - began
        line.loss, line.kl_to_ref, line.entropy, line.learning_rate = update.loss, update.kl, update.entropy, rate
        line.grad_norm, line.clip_fraction = update.grad_norm, update.clip_fraction
        check_kl(update.kl, self._job.guards.max_kl)

    async def _roll_out(self, phase: str, step: int, rows: Sequence[Row], tries: int, line: StepMetrics) -> list[GradedRollout]:
        began = time.monotonic()
        seeds = [Try(row, i, derive_seed(self._job.seed, phase, step, row.id, i)) for row in rows for i in range(tries)]
        job = self._job
        done = await collect(seeds, self._engine.sampler, self._tools, self._grader, job.limits, in_flight=job.rollouts_in_flight)
        count(line, done, time.monotonic() - began)
        return done

    def _record(self, done: Sequence[GradedRollout], kind: Kind, step: int, advantages: Sequence[float | None]) -> None:
        job = self._job
        versions = msgspec.structs.replace(job.versions, checkpoint=self._engine.sampler.checkpoint)
        for graded, advantage in zip(done, advantages, strict=True):
            card = card_of(graded, kind=kind, run_id=job.run_id, step=step, advantage=advantage, versions=versions, tenant=job.tenant)
            self._recorder.record(card)

    def _guard_infra(self, done: Sequence[GradedRollout], line: StepMetrics) -> None:
        self._guard.note(tally_of(done))
        line.infra_failure_rate, line.grader_failure_rate = self._guard.failure_rate("tool"), self._guard.failure_rate("grader")
        check_some_left(done)
        self._guard.check()
