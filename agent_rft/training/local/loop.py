"""GRPO, top to bottom.

Left out on purpose: several updates on one batch (one is on-policy and needs no more rollouts in flight), a value model
(the group is the baseline), and any state but weights, optimizer and step (every seed is derived from where it is used).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.errors import Diverged, Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import Kind
from agent_rft.contracts.ports import Grader, Recorder, ToolBox
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import OnStep, Outcome, StepMetrics, TrainingJob
from agent_rft.guards.sentinel import Sentinel
from agent_rft.rollouts.cards import card_of
from agent_rft.rollouts.driver import Try, collect
from agent_rft.rollouts.seeds import derive_seed
from agent_rft.training.bookkeeping import count, credit, means
from agent_rft.training.holdouts import holdout_grades
from agent_rft.training.local.batches import trajectories
from agent_rft.training.local.ports import Engine, Journal, Position
from agent_rft.training.schedule import learning_rate, rows_of_step, total_steps


async def train(
    job: TrainingJob,
    engine: Engine,
    journal: Journal,
    tools: ToolBox,
    grader: Grader,
    recorder: Recorder,
    on_step: OnStep,
    holdouts: Sequence[Grader] = (),
) -> Outcome:
    """Each step validates where that is due, then learns; the last one only validates. A guard that halts ends it early."""
    algorithm = job.algorithm
    last = total_steps(len(job.train_rows), algorithm.batch_size, algorithm.epochs, algorithm.max_steps)
    position = engine.position
    lines = journal.rewind(position.step)
    sentinel = Sentinel(
        job.guards,
        position.sentinel,
        lines=lines,
        total_steps=last,
        seed=job.seed,
        train_rows=job.train_rows,
        grader_texts=job.grader_texts,
        leaks_in=job.leaks_in,
    )
    crew = _Crew(job, engine, tools, grader, recorder, sentinel, holdouts)
    made = position.step

    for step in range(position.step, last + 1):
        began, line = time.monotonic(), StepMetrics(step=step)
        try:
            if step % job.evaluate_every == 0 or step == last:
                await crew.validate(step, line)
            if step < last and not sentinel.halt:
                await crew.learn(step, line)
        except Halted as reason:
            sentinel.broken(line, reason)
        halt = sentinel.halt
        made = step + 1 if line.loss is not None else step
        line.seconds = time.monotonic() - began
        journal.append(line)
        lines.append(line)
        on_step(line, last)
        due = halt or (made > step and (made % job.checkpoint_every == 0 or made == last))
        if due and not isinstance(halt, Diverged):
            recorder.flush()
            engine.save(Position(made, sentinel.state))
        if halt:
            break

    recorder.flush()
    halted, cure = (sentinel.halt.what, sentinel.halt.cure) if sentinel.halt else ("", "")
    return Outcome(checkpoint=engine.newest_checkpoint, steps=made, total_steps=last, metrics=tuple(lines), halted=halted, cure=cure)


class _Crew:
    """The two things a step does."""

    def __init__(
        self,
        job: TrainingJob,
        engine: Engine,
        tools: ToolBox,
        grader: Grader,
        recorder: Recorder,
        sentinel: Sentinel,
        holdouts: Sequence[Grader],
    ) -> None:
        self._job, self._engine, self._tools, self._grader, self._recorder = job, engine, tools, grader, recorder
        self._sentinel, self._holdouts = sentinel, holdouts

    async def validate(self, step: int, line: StepMetrics) -> None:
        done = await self._roll_out("val", step, self._job.val_rows, self._job.val_samples, line)
        self._record(done, "eval", step, [None] * len(done))
        line.val_reward, line.val_tool_calls = means(done)
        self._sentinel.validated(line, done, await holdout_grades(done, self._holdouts))

    async def learn(self, step: int, line: StepMetrics) -> None:
        """One batch of groups: roll out, compare within groups, guard, update."""
        algorithm = self._job.algorithm
        rows = rows_of_step(self._job.train_rows, step, algorithm.batch_size, self._job.seed)
        group = algorithm.rollouts_per_prompt
        done = await self._roll_out("train", step, rows, group, line)
        advantages = credit(line, done, group, algorithm.call_cost)
        self._record(done, "train", step, advantages)
        self._sentinel.rolled_out(line, done)
        if self._sentinel.halt:
            return

        began = time.monotonic()
        rate = learning_rate(step, algorithm.learning_rate, algorithm.warmup_steps)
        update = self._engine.update(trajectories(done, advantages), rate)
        line.train_seconds = time.monotonic() - began
        line.loss, line.kl_to_ref, line.entropy, line.learning_rate = update.loss, update.kl, update.entropy, rate
        line.grad_norm, line.clip_fraction = update.grad_norm, update.clip_fraction
        self._sentinel.updated(line)

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
