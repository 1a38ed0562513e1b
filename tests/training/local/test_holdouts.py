"""Graders that training never sees: what they say is set beside the rollouts, and changes none of them."""

import threading

import small_world as world

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.training.holdouts import THREADS, grades_by, holdout_grades


class Likes(world.LikesA):
    def __init__(self, name: str) -> None:
        self.ref = GraderRef(name, "1", "0" * 16)


class Broken(Likes):
    def grade(self, item, sample) -> Grade:
        raise ConnectionError("no judge there")


class Meets(Likes):
    """Answers once as many ask as are let in together."""

    waits = True

    def __init__(self, name: str, together: int) -> None:
        super().__init__(name)
        self._barrier = threading.Barrier(together, timeout=10)

    def grade(self, item, sample) -> Grade:
        self._barrier.wait()
        return super().grade(item, sample)


def answered(answer: str, ending: Ending = Ending.ANSWERED) -> GradedRollout:
    [row] = world.make_rows(1)
    return GradedRollout(row, 0, Rollout("r", (), (), Limits(), ending=ending, answer=answer), None)


DONE = [answered("aabb"), answered("b"), answered("", Ending.INFRA_FAILED)]


def test_each_grades_each_rollout_but_those_that_infrastructure_failed():
    found = grades_by(DONE, [Likes("one"), Likes("two")])
    assert {name: [grade and grade.reward for grade in grades] for name, grades in found.items()} == {
        "one@1": [0.5, 0.0, None],
        "two@1": [0.5, 0.0, None],
    }


def test_one_that_fails_leaves_the_rollout_as_it_was():
    [failed, *_] = grades_by(DONE, [Broken("judge")])["judge@1"]
    assert failed.reward is None and "no judge there" in failed.errors["other_error"]
    assert [graded.rollout.ending for graded in DONE] == [Ending.ANSWERED, Ending.ANSWERED, Ending.INFRA_FAILED]


async def test_one_that_waits_is_asked_about_many_at_once_and_answers_in_order():
    done = [answered("a" if number % 2 else "b") for number in range(THREADS)]
    found = await holdout_grades(done, [Meets("judge", THREADS)])
    assert [grade.reward for grade in found["judge@1"]] == [number % 2 for number in range(THREADS)]


async def test_without_any_nothing_is_asked():
    assert await holdout_grades(DONE, []) == {}
