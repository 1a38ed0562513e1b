"""multi and stack: the formula, the weights and the gates; a part that failed is never a score."""

from __future__ import annotations

from typing import Any

import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.graders.multi import MultiGrader
from agent_rft.graders.stack import StackGrader


class Fixed:
    """Gives the same for everything, or raises it."""

    def __init__(self, reward: Any, hash: str = "0" * 16, **fields: Any) -> None:
        self.ref, self.reward, self.fields = GraderRef("fixed", "1", hash), reward, fields

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        if isinstance(self.reward, Exception):
            raise self.reward
        return Grade(self.ref, self.reward, **self.fields)


class Waiting(Fixed):
    waits = True


FAILED = Fixed(None, errors={"model_grader_refusal_error": "no"})


def multi(formula: str, **rewards: Any) -> Grade:
    graders = {key: each if isinstance(each, Fixed) else Fixed(each) for key, each in rewards.items()}
    return MultiGrader(graders, formula).grade({}, {})


def test_the_formula_decides_and_the_parts_are_told():
    grade = multi("0.5 * a + b", a=1.0, b=0.25)
    assert (grade.reward, grade.passed) == (0.75, True)  # 0.5 + 0.25, on the threshold
    assert grade.parts["sub_rewards"] == {"a": 1.0, "b": 0.25} and grade.parts["score"] == 0.75
    assert grade.parts["graders"]["a"]["grader"]["name"] == "fixed"


def test_the_formula_sees_a_judges_own_units():
    assert (
        multi("(100 - abs(expected - judge)) / 100", expected=Fixed(1.0, parts={"score": 90}), judge=Fixed(0.8, parts={"score": 80})).reward
        == 0.9
    )


@pytest.mark.parametrize(("formula", "reward", "score"), [("a + 1", 1.0, 1.5), ("a - 1", 0.0, -0.5)])
def test_a_value_out_of_range_is_cut_and_the_uncut_one_kept(formula, reward, score):
    grade = multi(formula, a=0.5)
    assert (grade.reward, grade.parts["score"]) == (reward, score)


def test_a_failed_part_makes_the_whole_null_with_its_flags_under_its_key():
    grade = multi("a + b + c", a=1.0, b=FAILED, c=ValueError("oops"))
    assert (grade.reward, grade.passed) == (None, None)
    assert grade.errors == {"b.model_grader_refusal_error": "no", "c.other_error": "ValueError: oops"}
    assert grade.parts["sub_rewards"] == {"a": 1.0, "b": None, "c": None}


def test_even_a_part_that_the_formula_leaves_out_or_multiplies_by_zero_must_not_fail():
    assert multi("a + 0 * b", a=1.0, b=FAILED).reward is None
    assert multi("a", a=1.0, b=FAILED).reward is None


def test_a_formula_without_a_value_or_that_cannot_be_read_is_no_score():
    assert multi("a / b", a=1.0, b=0.0).errors == {"other_error": "calculate_output: division by zero: 1 / 0"}
    unread = multi("a.real", a=1.0)
    assert unread.reward is None and unread.errors == {"formula_parse_error": "column 2: '.' where an operator should stand"}


def test_the_hash_covers_the_formula_and_every_part():
    graders = [MultiGrader({"a": Fixed(1.0, hash)}, formula) for hash, formula in [("0", "a"), ("1", "a"), ("0", "a + 0")]]
    stacks = [
        StackGrader({"correctness": Fixed(1.0, hash)}, {"correctness": weight}, gates)
        for hash, weight, gates in [("0", 1, {}), ("1", 1, {}), ("0", 2, {}), ("0", 1, {"correctness": 0.5})]
    ]
    assert len({grader.ref.hash for grader in [*graders, *stacks]}) == 7


def test_a_whole_waits_if_one_of_its_parts_does():
    assert MultiGrader({"a": Fixed(1.0), "b": Waiting(1.0)}, "a").waits and StackGrader({"safety": Waiting(1.0)}, {}).waits
    assert not MultiGrader({"a": Fixed(1.0)}, "a").waits and not StackGrader({"safety": Fixed(1.0)}, {}).waits


def stack(rewards: dict[str, Any], weights: dict[str, float] | None = None, **options: Any) -> Grade:
    graders = {role: each if isinstance(each, Fixed) else Fixed(each) for role, each in rewards.items()}
    return StackGrader(graders, weights or {}, **options).grade({}, {})


def test_the_weighted_mean():
    assert (
        stack({"correctness": 1.0, "process": 0.5, "safety": 1.0}, {"correctness": 2, "process": 1, "safety": 1}).reward == 0.875
    )  # 3.5 / 4
    assert stack({"correctness": 1.0, "efficiency": 0.5}).reward == 0.75


@pytest.mark.parametrize("formula", [None, "1", "correctness + safety + 5"])
def test_safety_at_zero_makes_the_whole_zero_whatever_the_formula_says(formula):
    grade = stack({"correctness": 1.0, "safety": 0.0}, {"correctness": 1, "safety": 0}, calculate_output=formula)
    assert (grade.reward, grade.passed, grade.parts["gates_shut"]) == (0.0, False, ["safety"])


@pytest.mark.parametrize(("process", "reward"), [(0.49, 0.0), (0.5, 0.75)])
def test_a_gate_is_the_least_that_a_part_must_reach(process, reward):
    assert stack({"correctness": 1.0, "process": process}, gates={"process": 0.5}).reward == reward


def test_correctness_at_zero_shuts_nothing_where_no_gate_says_so():
    assert stack({"correctness": 0.0, "safety": 1.0}).reward == 0.5


def test_a_failed_part_fails_the_stack_even_behind_a_shut_gate():
    grade = stack({"correctness": FAILED, "safety": 0.0})
    assert (grade.reward, grade.errors) == (None, {"correctness.model_grader_refusal_error": "no"})
    assert stack({"correctness": 0.0, "process": 1.0}, calculate_output="process / correctness").errors == {
        "other_error": "calculate_output: division by zero: 1 / 0"
    }
