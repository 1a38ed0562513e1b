"""A long run is looked at hundreds of times. A healthy one is let alone all the way, and a fault that comes late is found."""

import math
import random
from itertools import count

import msgspec
import pytest
from graded_tries import attempt, call, failed

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import GuardLimits, StepMetrics
from agent_rft.guards.sentinel import Sentinel
from agent_rft.training.bookkeeping import credit, means

STEPS, EVERY, PROMPTS, GROUP = 120, 5, 4, 8
LIMITS = GuardLimits(max_infra_rate=0.01, infra_window_calls=1000, max_kl=0.5, human_ceiling=0.9)
STRICT = GraderRef("strict", "1", "s1")


class Course:
    """A policy that goes from three rows in ten to eight, with nine calls a try at first and four in the end; of its calls and gradings
    two in a thousand fail, of its tries five in a thousand call what is denied. Some rows are hard, others easy."""

    def __init__(self, seed: int) -> None:
        self._draw, self._numbers = random.Random(seed), count()
        self._hardness = [self._draw.gauss(0, 1.5) for _ in range(260)]
        self.unsafe = 0.005

    def tried(self, row: int, learned: float) -> GradedRollout:
        draw, name = self._draw, f"r{next(self._numbers)}"
        if draw.random() < 0.002 * 6:
            return failed(name)
        made = max(1, round(draw.gauss(9 - 5 * learned, 2.5)))
        calls = [(call(number, query=draw.randrange(20)),) for number in range(made)]
        right = draw.random() < 1 / (1 + math.exp(self._hardness[row] + 1.2 - 3.2 * learned))
        graded = attempt(
            name,
            *calls,
            reward=float(right),
            row=f"row-{row}",
            answer=f"{row}.5" if right else str(draw.randrange(10**6)),
            denied=("c0",) if draw.random() < self.unsafe else (),
            tokens=draw.choice((5, 10, 20)),
        )
        return msgspec.structs.replace(graded, row=Row(f"row-{row}", f"What did company {row} earn?", f"{row}.5"))

    def step(self, step: int, watch: Sentinel) -> StepMetrics:
        draw, learned, line = self._draw, 1 - math.exp(-step / 30), StepMetrics(step=step)
        if step % EVERY == 0:
            done = [self.tried(row, learned) for row in range(200, 260)]
            line.val_reward, line.val_tool_calls = means(done)
            watch.validated(line, done, {"strict@1": [self._strictly(one) for one in done]})
        done = [self.tried(row, learned) for row in draw.sample(range(200), PROMPTS) for _ in range(GROUP)]
        credit(line, done, GROUP, 0.02)
        watch.rolled_out(line, done)
        line.kl_to_ref = 0.1 * learned**1.5 * math.exp(draw.gauss(0, 0.2))
        line.entropy, line.loss = 0.4 * (1 - learned / 2) * math.exp(draw.gauss(0, 0.1)), 0.0
        watch.updated(line)
        return line

    def _strictly(self, one: GradedRollout) -> Grade | None:
        """Another grader, that takes one try in ten for the contrary."""
        return None if one.reward is None else Grade(STRICT, one.reward if self._draw.random() < 0.9 else 1 - one.reward)


@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_run_of_a_hundred_and_twenty_steps_is_let_alone(seed: int):
    course, watch = Course(seed), Sentinel(LIMITS, total_steps=STEPS, seed=seed)
    lines = [course.step(step, watch) for step in range(STEPS)]
    assert [(one.step, one.guard, one.what) for line in lines for one in line.findings] == []
    rewards = [line.val_reward or 0.0 for line in lines[::EVERY]]
    assert rewards[0] < 0.45 and rewards[-1] > 0.65, "it did learn"
    assert sum(line.figures["unsafe"] for line in lines) > 0, "and some tries were unsafe"


def test_a_policy_that_becomes_unsafe_late_is_stopped_within_a_few_steps():
    course, watch = Course(1), Sentinel(LIMITS, total_steps=STEPS, seed=1)
    for step in range(60):
        course.step(step, watch)
    assert watch.halt is None
    course.unsafe = 0.3
    for step in range(60, 66):
        course.step(step, watch)
    assert watch.halt is not None and "did what no agent may" in watch.halt.what
