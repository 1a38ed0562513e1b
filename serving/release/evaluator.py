"""Grades live sessions: the grader that the agent was trained against, and others that it never saw, on what users were answered.

Beside the answers, never before them: a turn waits in the store until it is graded. Within a budget: so many a minute and at a time, the
newest first; where more come than that, the oldest go without, and are counted. A grader that failed gave no score. It is asked again
where it waits for others, and in the end the turn goes without one, with the reason on its card.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import deque
from collections.abc import Sequence
from statistics import fmean

import msgspec
import structlog
from sqlalchemy import exc

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader, waits
from agent_rft.contracts.releases import Turn
from agent_rft.graders.apply import grade_rollout
from agent_rft.rollouts.cards import row_tried
from observability import turns
from observability.cards import cards_by_id
from observability.graders import append_grades
from observability.records import StoredCard
from observability.redaction.detectors import BUILT_IN_ONLY, Detectors
from observability.store import Store
from serving.release.leadership import Leadership
from serving.threads import in_daemon_thread

LOOK_SECONDS = 1.0
MOST_TRIES = 5
PAUSE_SECONDS = 2.0
"""Before the second try; each next pause is twice as long."""
log = structlog.get_logger("serving.evaluator")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    per_minute: int = 120
    in_flight: int = 8
    most_waiting: int = 2000


class _Again(Exception):
    """Nothing is known yet: the card is not there, or a grader did not answer."""


class Evaluator:
    def __init__(
        self,
        store: Store,
        grader: Grader,
        holdouts: Sequence[Grader],
        leadership: Leadership,
        budget: Budget,
        detectors: Detectors = BUILT_IN_ONLY,
    ) -> None:
        self._store, self._grader, self._holdouts, self._leadership = store, grader, holdouts, leadership
        self._budget, self._detectors = budget, detectors
        self._under_way = dict[tuple[str, str], asyncio.Task[None]]()
        self._tries = dict[tuple[str, str], tuple[int, float]]()
        """How often it was tried, and from when on it may be again."""
        self._begun = deque[float](maxlen=budget.per_minute)

    async def run(self) -> None:
        try:
            while True:
                if self._leadership.leads:
                    await self.look()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._under_way.values():
                task.cancel()

    async def look(self) -> None:
        """Begins as many gradings as there is room for. Never raises."""
        now = dt.datetime.now(dt.UTC)
        try:
            dropped = await in_daemon_thread(turns.drop_oldest, self._store, self._budget.most_waiting, now)
            if dropped:
                log.warning("gradings_dropped", count=dropped, most_waiting=self._budget.most_waiting)
            room = self._budget.in_flight - len(self._under_way)
            found = await in_daemon_thread(turns.to_grade, self._store, self._budget.in_flight * 4) if room > 0 else []
        except (exc.SQLAlchemyError, OSError) as error:
            log.warning("evaluator_cannot_reach_the_store", trouble=str(error).partition("\n")[0])
            return
        for turn in found:
            key = (turn.tenant, turn.rollout_id)
            if room <= 0 or not self._pace():
                return
            if key in self._under_way or self._tries.get(key, (0, 0.0))[1] > time.monotonic():
                continue
            room -= 1
            self._begun.append(time.monotonic())
            self._under_way[key] = asyncio.create_task(self._settle(turn))

    async def drained(self) -> None:
        """Returns when nothing is under way."""
        while self._under_way:
            await asyncio.wait(list(self._under_way.values()))

    def _pace(self) -> bool:
        full = len(self._begun) == self._budget.per_minute
        return not full or time.monotonic() - self._begun[0] >= 60

    async def _settle(self, turn: Turn) -> None:
        key = (turn.tenant, turn.rollout_id)
        tries = self._tries.get(key, (0, 0.0))[0] + 1
        try:
            await in_daemon_thread(self.grade, turn, tries >= MOST_TRIES)
            self._tries.pop(key, None)
        except _Again:
            self._tries[key] = (tries, time.monotonic() + PAUSE_SECONDS * 2 ** (tries - 1))
        except (exc.SQLAlchemyError, OSError) as error:  # no fault of the turn's
            log.warning("evaluator_cannot_reach_the_store", trouble=str(error).partition("\n")[0])
            self._tries[key] = (tries - 1, time.monotonic() + PAUSE_SECONDS)
        except Exception as error:
            log.error("turn_cannot_be_graded", rollout_id=turn.rollout_id, exc_info=error)
            self._tries[key] = (tries, time.monotonic() + PAUSE_SECONDS * 2 ** (tries - 1))
        finally:
            del self._under_way[key]

    def grade(self, turn: Turn, last: bool) -> None:
        """In a thread. The grades stand on the card before the turn has its figures: killed between the two, nobody is asked twice."""
        stored = next(cards_by_id(self._store, [turn.rollout_id], turn.tenant), None)
        if stored is None and not last:
            raise _Again
        if stored is None or stored.erased or stored.card.rollout.ending is None:
            log.warning("turn_without_a_card", rollout_id=turn.rollout_id)
            self._graded(turn, None, None)
            return
        holdouts = [self._given(stored, grader, last) for grader in self._holdouts]
        reward = self._given(stored, self._grader, last)  # last: it is what lists show of the card
        rewards = [one for one in holdouts if one is not None]
        self._graded(turn, reward, fmean(rewards) if rewards else None)

    def _graded(self, turn: Turn, reward: float | None, holdout: float | None) -> None:
        turns.graded(self._store, turn.tenant, turn.rollout_id, reward, holdout, dt.datetime.now(dt.UTC))

    def _given(self, stored: StoredCard, grader: Grader, last: bool) -> float | None:
        """The reward that this very grader gives the card, or gave it before."""
        card = stored.card
        kept = [dated.grade for dated in stored.grades if dated.grade.grader.hash == grader.ref.hash and dated.grade.reward is not None]
        if kept:
            return kept[-1].reward
        grade = grade_rollout(row_tried(card), card.rollout, grader)
        if grade is None:  # infrastructure failed: there is nothing to score
            return None
        if grade.reward is None:
            if waits(grader) and not last:
                raise _Again
            log.warning("grader_gave_no_score", grader=grader.ref.name, rollout_id=card.rollout_id, errors=grade.errors)
        self._append(card.tenant, card.rollout_id, grade)
        return grade.reward

    def _append(self, tenant: str, rollout_id: str, grade: Grade) -> None:
        try:
            append_grades(self._store, [(rollout_id, grade)], tenant, self._detectors)
        except UserError as error:  # sealed meanwhile: the figure counts, the card takes no more
            log.warning("grade_not_on_the_card", rollout_id=rollout_id, why=error.what)
