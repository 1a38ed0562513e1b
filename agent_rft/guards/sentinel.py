"""Watches a run, the same on every engine: told of each batch of rollouts and each update, it writes figures and findings into the
step's line, and says when the run must end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import msgspec

from agent_rft.contracts.errors import Diverged, Halted
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.guards import ACTIONS, ENDING, Finding, Limit
from agent_rft.contracts.rows import Row
from agent_rft.contracts.training import GuardLimits, LeaksIn, StepMetrics
from agent_rft.guards.figures import bad_calls, repeated_calls, step_figures, unsafe
from agent_rft.guards.hacking import Seen, Validation, earns_more, look, validation_of
from agent_rft.guards.health import HEALTH, Course
from agent_rft.guards.infra import InfraGuard, Tally, nothing_left, silent_graders, tally_of
from agent_rft.guards.limits import GUARDS, SHOWN, Suspicion, finding_of, limit_of, watched
from agent_rft.rollouts.seeds import derive_seed

QUIET = 10
"""Steps for which a guard that has warned once does not say the same again; twice as many after each further time."""


class Memory(msgspec.Struct, frozen=True):
    """What a checkpoint keeps, so that a resumed run is watched as if nothing had happened. The lines so far are in metrics.jsonl."""

    infra_window: tuple[Tally, ...] = ()
    kl_floor: float | None = None
    """None until it is measured."""
    first: Validation | None = None
    """The run's first validation, which later ones are held against."""
    best: Validation | None = None
    """That which earned most."""


class Sentinel:
    def __init__(
        self,
        limits: GuardLimits,
        state: Memory | None = None,
        *,
        lines: Iterable[StepMetrics] = (),
        total_steps: int = 0,
        seed: int = 0,
        train_rows: Sequence[Row] = (),
        grader_texts: Sequence[str] = (),
        leaks_in: LeaksIn | None = None,
        measures_floor: bool = False,
    ) -> None:
        """`lines`: of the run so far. `leaks_in`: None looks for no secrets. `measures_floor`: the reference is quantised, so that
        untrained weights already differ from it."""
        state = state or Memory()
        self.halt: Halted | None = None
        """Why the run ends early. Diverged: what the step made of the weights is not to be kept."""
        self._limits, self._watch, self._lines = limits, watched(limits), list(lines)
        self._total, self._seed = total_steps, seed
        self._train_rows, self._grader_texts, self._leaks_in = train_rows, grader_texts, leaks_in
        self._infra = InfraGuard(limits.max_infra_rate, limits.infra_window_calls, state.infra_window)
        self._floor, self._measures_floor = state.kl_floor, measures_floor
        self._first, self._best = state.first, state.best or state.first
        self._done: Sequence[GradedRollout] = ()
        """The training rollouts of the step under way."""

    @property
    def state(self) -> Memory:
        """What was mended must not be held against the run that goes on: so a halt forgets the failures."""
        return Memory(() if self.halt else tuple(self._infra.steps), self._floor, self._first, self._best)

    # --- what it is told of ------------------------------------------------------------------------------------------------

    def rolled_out(self, line: StepMetrics, done: Sequence[GradedRollout]) -> None:
        """A training batch, before anything is learnt from it; its reward, calls and flat groups are in the line."""
        self._begin(line)
        self._done = done
        line.figures |= step_figures(done, self._leaks_in)
        line.audit = self._audit_sample(line.step, done)
        self._look_at_infrastructure(line, done)
        self._look_at_course(line)
        self._suspect(line, Seen(done=done, **self._background))

    def validated(self, line: StepMetrics, done: Sequence[GradedRollout], holdout: Mapping[str, Sequence[Grade | None]]) -> None:
        """A whole validation, its reward in the line. `holdout`: by grader that training never sees, a grade for each of `done`."""
        self._begin(line)
        line.figures |= {f"val_{name}": figure for name, figure in step_figures(done, self._leaks_in).items()}
        line.holdout |= {name: mean for name, grades in holdout.items() if (mean := _mean_reward(grades)) is not None}
        self._look_at_infrastructure(line, done)
        self._look_at_holdouts(line, holdout)
        self._look_at_course(line, done)
        found = validation_of(line.step, done, holdout, self._grader_texts)
        self._suspect(line, Seen(done=done, validation=found, **self._background))
        self._first = self._first or found
        if self._best is None or earns_more(found, self._best):
            self._best = found

    def updated(self, line: StepMetrics) -> None:
        """The line has figures of an update, made or about to be made: asked again, it looks at what has come since."""
        self._begin(line)
        if self._measures_floor and self._floor is None:
            self._floor = line.kl_to_ref  # nothing was learnt yet: a first update that is refused leaves the weights as they are
        if line.kl_to_ref is None or math.isfinite(line.kl_to_ref):
            return self._look_at_course(line)
        # Without a kl_coef it is no part of the loss, which may look well.
        cure = "take a smaller algorithm.learning_rate or a larger algorithm.kl_coef"
        self.broken(line, Diverged(f"the KL to the reference is {line.kl_to_ref}; the update is not kept", cure))

    def taken_up(self, line: StepMetrics) -> None:
        """Of a run that goes on, a line that was judged before it ended and is not judged anew: what was found holds by the limits of
        now, and ends the run again where those still say so. Infrastructure was mended since: that is only told."""
        self._begin(line)
        found, line.findings = line.findings, []
        for one in found:
            limit = limit_of(one.guard, self._watch)
            action = "warn" if limit.action in ENDING and GUARDS[one.guard].family == "infra" else limit.action
            beyond = self._still_beyond(one, line, limit.at)
            if action != "off" and beyond is not None:
                self._keep(line, msgspec.structs.replace(one, limit=beyond, action=action))

    def _still_beyond(self, one: Finding, line: StepMetrics, at: float) -> float | None:
        """The limit of now, unless it is borne. A course is there to be asked anew; of what was found in rollouts the figure alone is."""
        if guard := HEALTH.get(one.guard):
            found = guard(self._course(line), at)
            return found and (at if found.limit is None else found.limit)
        if one.guard == "above_ceiling":  # its figure holds the ceiling of then, which may have been out of date
            ceiling = self._limits.human_ceiling
            if ceiling is None or (line.val_reward or 0.0) <= ceiling:
                return None
        return at if one.figure >= at else None

    def broken(self, line: StepMetrics, reason: Halted) -> None:
        """The engine met what is not a number, and ends the run."""
        self._begin(line)
        limit = msgspec.structs.replace(limit_of("finite", self._watch), action="halt" if isinstance(reason, Diverged) else "stop")
        line.findings.append(finding_of("finite", line.step, limit, Suspicion(1.0, reason.what, reason.cure)))
        self.halt = self.halt or reason

    # --- how it looks ------------------------------------------------------------------------------------------------------

    def _begin(self, line: StepMetrics) -> None:
        if not any(line is one for one in self._lines[-2:]):
            self._lines.append(line)

    @property
    def _background(self) -> dict[str, Any]:
        return {
            "lines": self._lines,
            "first": self._first,
            "best": self._best,
            "train_rows": self._train_rows,
            "human_ceiling": self._limits.human_ceiling,
            "grader_texts": self._grader_texts,
        }

    def _look_at_infrastructure(self, line: StepMetrics, done: Sequence[GradedRollout]) -> None:
        self._infra.note(tally_of(done))
        line.infra_failure_rate, line.grader_failure_rate = self._infra.failure_rate("tool"), self._infra.failure_rate("grader")
        failed = [graded.rollout.rollout_id for graded in done if graded.infra_failed]
        if found := nothing_left(done):
            self._speak(line, "nothing_left", found._replace(rollouts=failed))
        for name, found in self._infra.suspicions({name: limit.at for name, limit in self._watch.items()}):
            self._speak(line, name, found._replace(rollouts=failed))
        for found in self._infra.suspicious_tools(limit_of("infra_tool", self._watch).at):
            self._speak(line, "infra_tool", found._replace(rollouts=failed))

    def _look_at_holdouts(self, line: StepMetrics, holdout: Mapping[str, Sequence[Grade | None]]) -> None:
        """Training can do without them, so it goes on; but who trusts in them has to know that they are silent."""
        limit = limit_of("judge_failures", self._watch)
        for found in silent_graders(holdout, limit.at) if limit.action != "off" else ():
            self._keep(line, finding_of("judge_failures", line.step, Limit(limit.at, "warn"), found))

    def _look_at_course(self, line: StepMetrics, done: Sequence[GradedRollout] | None = None) -> None:
        course = self._course(line)
        for name, guard in HEALTH.items():
            if found := guard(course, limit_of(name, self._watch).at):
                self._speak(line, name, found._replace(rollouts=self._telling(name, self._done if done is None else done)))

    def _course(self, line: StepMetrics) -> Course:
        kl = limit_of("kl", self._watch).at + (self._floor or 0.0)
        return Course(self._lines, max(0, self._total - line.step), kl)

    def _telling(self, name: str, done: Sequence[GradedRollout]) -> list[str]:
        leaks_in = self._leaks_in or (lambda _: ())
        telling: dict[str, Telling] = {**TELLING, "unsafe": lambda one: unsafe(one.rollout, leaks_in(one.rollout))}
        if name not in telling:
            return []
        counted = [graded for graded in done if not graded.infra_failed]
        return [graded.rollout.rollout_id for graded in sorted(counted, key=telling[name], reverse=True)][:SHOWN]

    def _suspect(self, line: StepMetrics, seen: Seen) -> None:
        for finding in look(seen, self._watch):
            self._keep(line, finding)

    def _speak(self, line: StepMetrics, name: str, found: Suspicion) -> None:
        limit = limit_of(name, self._watch)
        if limit.action != "off":
            self._keep(line, finding_of(name, line.step, limit, found))

    def _keep(self, line: StepMetrics, finding: Finding) -> None:
        """Once a step, unless it is harder than what was said; and what has been warned of is not said again at once."""
        hardness = ACTIONS.index(finding.action)
        if any(one.guard == finding.guard and ACTIONS.index(one.action) >= hardness for one in line.findings):
            return
        said = [past.step for past in self._lines if past is not line and any(one.guard == finding.guard for one in past.findings)]
        if finding.action == "warn" and said and line.step - said[-1] < QUIET * 2 ** (len(said) - 1):
            return
        line.findings.append(finding)
        if finding.action == "halt":
            self.halt = self.halt or Diverged(f"{finding.what}; the update is not kept", finding.cure)
        elif finding.action == "stop":
            self.halt = self.halt or Halted(finding.what, finding.cure)

    def _audit_sample(self, step: int, done: Sequence[GradedRollout]) -> tuple[str, ...]:
        """A few of the step's rollouts for a person to read, whatever they scored: what nobody suspects is found in no other way."""
        every, size = self._limits.audit_every, self._limits.audit_sample
        if not every or step % every:
            return ()
        counted = [graded.rollout.rollout_id for graded in done if not graded.infra_failed]
        return tuple(random.Random(derive_seed(self._seed, "audit", step)).sample(counted, min(size, len(counted))))


def _mean_reward(grades: Sequence[Grade | None]) -> float | None:
    rewards = [grade.reward for grade in grades if grade and grade.reward is not None]
    return fmean(rewards) if rewards else None


Telling = Callable[[GradedRollout], float]
TELLING: dict[str, Telling] = {
    "token_inflation": lambda one: one.rollout.sampled_tokens,
    "token_collapse": lambda one: -one.rollout.sampled_tokens,
    "call_inflation": lambda one: one.rollout.tool_calls,
    "call_collapse": lambda one: -one.rollout.tool_calls,
    "early_stop": lambda one: -one.rollout.tool_calls,
    "tool_spam": lambda one: repeated_calls(one.rollout),
    "bad_calls": lambda one: bad_calls(one.rollout),
    "unanswered": lambda one: not one.rollout.answer.strip(),
}
"""How much a rollout shows of what a guard speaks of."""
