"""Drives rollout machines with a real sampler, real tools and a grader. The only place where a rollout meets I/O."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.events import AskModel, CallTools, Command, Event, InfraFailed, ModelSpoke, TimeUp, ToolReturned
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.ports import Grader, Sampler, ToolBox, waits
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.graders.apply import failed_part, grade_rollout
from agent_rft.rollouts.machine import advance, begin

OnDone = Callable[[GradedRollout], None]


class Try(msgspec.Struct, frozen=True):
    """One rollout to run."""

    row: Row
    sample_index: int
    seed: int


class Kept(Protocol):
    """Remembers tries that are over, so that none is run or graded a second time."""

    def rollout(self, attempt: Try) -> Rollout | None: ...

    def grade(self, attempt: Try) -> Grade | None: ...

    def ended(self, attempt: Try, rollout: Rollout) -> None:
        """Told before it is graded: a grader that fails costs no rollout."""
        ...

    def graded(self, attempt: Try, grade: Grade) -> None: ...


async def collect(
    tries: Sequence[Try],
    sampler: Sampler,
    tools: ToolBox,
    grader: Grader,
    limits: Limits,
    *,
    on_done: OnDone | None = None,
    in_flight: int = 128,
    kept: Kept | None = None,
) -> list[GradedRollout]:
    """Run and grade every try, `in_flight` at a time, and answer them in the order they were asked for.

    A grader that waits for others (`waits`) is asked in threads, while the other rollouts go on. What is `kept` already is neither
    run nor graded.
    """
    rollouts = [(kept.rollout(attempt) if kept else None) or start(attempt, limits) for attempt in tries]
    done: list[GradedRollout | None] = [None] * len(tries)

    def keep(position: int, grade: Grade | None) -> None:
        attempt = tries[position]
        graded = done[position] = GradedRollout(attempt.row, attempt.sample_index, rollouts[position], grade)
        if kept and grade:
            kept.graded(attempt, grade)
        if on_done:
            on_done(graded)

    def grade_at(position: int) -> Grade | None:
        return grade_or_fail(tries[position].row, rollouts[position], grader)

    async with _grading(grade_at, keep, in_flight if waits(grader) else 0) as begin_grading:

        def finished(position: int) -> None:
            if kept:
                kept.ended(tries[position], rollouts[position])
            begin_grading(position)

        for position in [i for i, rollout in enumerate(rollouts) if rollout.ending is not None]:
            if kept and (grade := kept.grade(tries[position])):
                keep(position, grade)
            else:
                begin_grading(position)
        to_run = {i: rollout for i, rollout in enumerate(rollouts) if rollout.ending is None}
        if sampler.batched:
            waiting = list(to_run)
            for first in range(0, len(waiting), in_flight):
                await _run_in_waves({i: to_run[i] for i in waiting[first : first + in_flight]}, sampler, tools, finished)
        else:
            await _run_side_by_side(to_run, sampler, tools, finished, in_flight)
    return [graded for graded in done if graded]


@asynccontextmanager
async def _grading(
    grade_at: Callable[[int], Grade | None], keep: Callable[[int, Grade | None], None], threads: int
) -> AsyncGenerator[Callable[[int], None]]:
    """What to call with the position of a rollout that has finished: it is graded at once, or in one of so many threads.

    Left, every rollout is graded; left by an error, no further one is.
    """
    if not threads:
        yield lambda position: keep(position, grade_at(position))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="grading")
    loop = asyncio.get_running_loop()

    async def keep_later(position: int, grade: asyncio.Future[Grade | None]) -> None:
        keep(position, await grade)

    try:
        async with asyncio.TaskGroup() as group:

            def finished(position: int) -> None:
                # begun here and not in the task: a sampler that computes in this thread would hold that up
                group.create_task(keep_later(position, loop.run_in_executor(pool, grade_at, position)))

            yield finished
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def start(attempt: Try, limits: Limits) -> Rollout:
    return Rollout(new_rollout_id(), attempt.row.opening(), attempt.row.tools, limits, attempt.seed)


def new_rollout_id(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """A UUID, version 7: unique everywhere, sorted by time in every index. Who needs many has cheaper chance than the system's."""
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | int.from_bytes(random_bytes(10))
    bits = bits & ~(0xF << 76) & ~(0x3 << 62) | (0x7 << 76) | (0x2 << 62)
    digits = f"{bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def grade_or_fail(row: Row, rollout: Rollout, grader: Grader) -> Grade | None:
    """A grader that gives no score is infrastructure: the rollout fails with it and no grade exists."""
    grade = grade_rollout(row, rollout, grader)
    if grade is not None and grade.reward is None:
        rollout.ending = Ending.INFRA_FAILED
        rollout.failed_part = failed_part(grade)
        rollout.reason = f"the grader gave no score: {grade.errors}"
    return grade


# --- one after another, each at its own pace: endpoints --------------------------------------------------------------


async def _run_side_by_side(
    rollouts: Mapping[int, Rollout], sampler: Sampler, tools: ToolBox, finished: Callable[[int], None], in_flight: int
) -> None:
    waiting = iter(rollouts.items())

    async def run_what_waits() -> None:
        for position, rollout in waiting:
            await run_one(rollout, sampler, tools)
            finished(position)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, len(rollouts))):
                group.create_task(run_what_waits())
    except BaseExceptionGroup as several:  # one mistake met by many rollouts is said once
        raise several.exceptions[0] from None


async def run_one(rollout: Rollout, sampler: Sampler, tools: ToolBox) -> None:
    """From its beginning to its end."""
    clock = Clock(rollout)
    command: Command | None = begin(rollout)
    while rollout.ending is None:
        if isinstance(command, AskModel):
            command = advance(rollout, await speak(sampler, command, clock))
        elif isinstance(command, CallTools):
            command = await run_tools(rollout, command, tools, clock)
    clock.stop()


# --- in step: one forward pass serves every live rollout -------------------------------------------------------------


async def _run_in_waves(rollouts: dict[int, Rollout], sampler: Sampler, tools: ToolBox, finished: Callable[[int], None]) -> None:
    clocks = {i: Clock(rollout) for i, rollout in rollouts.items()}
    commands: dict[int, Command | None] = {i: begin(rollout) for i, rollout in rollouts.items()}
    while commands:
        asks = {i: command for i, command in commands.items() if isinstance(command, AskModel)}
        for i in [i for i in asks if clocks[i].left() <= 0]:
            commands[i] = advance(rollouts[i], TimeUp())
            del asks[i]
        for i, reply in zip(asks, await sampler.sample(list(asks.values())) if asks else (), strict=True):
            spoke_in_time = clocks[i].left() > 0  # else its next call would seem to be the tool's delay
            commands[i] = advance(rollouts[i], reply if spoke_in_time else TimeUp())
        calling = {i: command for i, command in commands.items() if isinstance(command, CallTools)}
        after = await asyncio.gather(*(_run_tools_in_wave(rollouts[i], command, tools, clocks[i]) for i, command in calling.items()))
        for i, (command, done_at) in zip(calling, after, strict=True):
            commands[i] = command
            clocks[i].wait(time.monotonic() - done_at)
        for i in [i for i in commands if rollouts[i].ending is not None]:
            del commands[i]
            clocks[i].stop()
            finished(i)


async def _run_tools_in_wave(rollout: Rollout, command: CallTools, tools: ToolBox, clock: Clock) -> tuple[Command | None, float]:
    """The next command, and when it was there: what the wave waits for longer is a sibling's tool."""
    return await run_tools(rollout, command, tools, clock), time.monotonic()


# --- shared ----------------------------------------------------------------------------------------------------------


class Clock:
    """A rollout's seconds."""

    def __init__(self, rollout: Rollout, began: float | None = None) -> None:
        """`began`: the monotonic time at which it began, where another process of this machine has begun it."""
        self._rollout, self._began, self._waited = rollout, time.monotonic() if began is None else began, 0.0
        rollout.started_at = rollout.started_at or datetime.now(UTC).isoformat(timespec="milliseconds")

    def left(self) -> float:
        return self._rollout.limits.max_seconds - (time.monotonic() - self._began - self._waited)

    def wait(self, seconds: float) -> None:
        """Time in which others were waited for counts against nobody: a hanging tool must not cost its siblings their grade."""
        self._waited += seconds

    def stop(self) -> None:
        self._rollout.seconds = time.monotonic() - self._began


async def speak(sampler: Sampler, ask: AskModel, clock: Clock) -> Event:
    limit = asyncio.timeout(clock.left())
    try:
        async with limit:
            said = (await sampler.sample([ask]))[0]
    except TimeoutError as error:
        if not limit.expired():  # the sampler's own: a mistake in there, which must not cost the model its grade
            raise
        trouble: Sequence[str] = getattr(error.__context__, "__notes__", ())
        return InfraFailed("model", f"{trouble[0]}; then the time was up") if trouble else TimeUp()
    if isinstance(said, ModelSpoke):
        clock.wait(said.lost_seconds)
    return said


async def run_tools(rollout: Rollout, command: CallTools, tools: ToolBox, clock: Clock) -> Command | None:
    """All calls of the turn at once. The first infrastructure failure ends the rollout; its siblings are called off."""
    if len(command.calls) == 1:  # the most frequent turn needs no task of its own
        limit = asyncio.timeout(max(clock.left(), 0))
        try:
            async with limit:
                return advance(rollout, await _run_tool(rollout.rollout_id, command.calls[0], tools))
        except TimeoutError:
            if not limit.expired():
                raise
            return advance(rollout, TimeUp())
    jobs = [asyncio.create_task(_run_tool(rollout.rollout_id, call, tools)) for call in command.calls]
    answer, waiting = None, set(jobs)
    try:
        while waiting and rollout.ending is None:
            done, waiting = await asyncio.wait(waiting, timeout=max(clock.left(), 0), return_when=asyncio.FIRST_COMPLETED)
            for news in [await job for job in jobs if job in done] or [TimeUp()]:
                answer = advance(rollout, news) or answer
    finally:
        for job in jobs:
            job.cancel()
    return answer


async def _run_tool(rollout_id: str, call: ToolCall, tools: ToolBox) -> Event:
    try:
        return ToolReturned(await tools.call(rollout_id, call))
    except InfraError as error:
        return InfraFailed(error.part, error.what)
