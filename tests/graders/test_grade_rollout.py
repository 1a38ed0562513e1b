"""Which endings are graded, what a grader is shown of a rollout, and what a broken grader means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.graders.apply import failed_part, grade_rollout
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.samples import sample_of

ROW = Row("row-1", "What was the revenue?", "$842M")
CALLS = (ToolCall("c1", "search", {"query": "revenue €"}), ToolCall("c2", "read", {"path": "filings/a.html"}))


def rollout(ending: Ending | None, answer: str = "") -> Rollout:
    turns = [Turn("looking", calls=CALLS), Turn(answer)]
    return Rollout("r1", (Message("user", ROW.prompt),), (), Limits(), turns=turns, ending=ending, answer=answer)


class FixedGrader:
    """Gives the same for everything, or raises it."""

    ref = GraderRef("fixed", "1", "0" * 16)

    def __init__(self, outcome: Any, **fields: Any) -> None:
        self.outcome, self.fields = outcome, fields

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return Grade(self.ref, self.outcome, **self.fields)


def test_an_answer_is_graded():
    grade = grade_rollout(ROW, rollout(Ending.ANSWERED, "$842 million"), NumericGrader())
    assert grade and (grade.reward, grade.passed, grade.grader.name) == (1.0, True, "numeric")


@pytest.mark.parametrize("ending", [Ending.OUT_OF_BUDGET, Ending.MALFORMED])
def test_without_an_answer_the_grader_gives_zero_and_its_version_stands_in_the_grade(ending):
    grade = grade_rollout(ROW, rollout(ending), NumericGrader())
    assert grade and (grade.reward, grade.passed) == (0.0, False)
    assert grade.grader == NumericGrader().ref


@pytest.mark.parametrize("ending", [Ending.OUT_OF_BUDGET, Ending.MALFORMED])
def test_no_answer_earns_nothing_even_from_a_grader_that_likes_an_empty_text(ending):
    grade = grade_rollout(ROW, rollout(ending), FixedGrader(1.0, passed=True, parts={"empty": 1}))
    assert grade and (grade.reward, grade.passed) == (0.0, False)
    assert grade.parts == {"empty": 1, "unanswered": ending.value}


def test_an_infrastructure_failure_has_no_grade():
    assert grade_rollout(ROW, rollout(Ending.INFRA_FAILED), FixedGrader(ValueError("never asked"))) is None


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        (FixedGrader(ZeroDivisionError("oops")), "ZeroDivisionError: oops"),
        (FixedGrader(None), "no reward, and no reason given"),
        (FixedGrader(1.5), "reward 1.5 is not a number from 0 to 1"),
        (FixedGrader(float("nan")), "reward nan is not a number from 0 to 1"),
        (FixedGrader("0.5"), "reward '0.5' is not a number from 0 to 1"),
    ],
)
def test_a_broken_grader_gives_no_score_but_a_reason(grader, said):
    grade = grade_rollout(ROW, rollout(Ending.ANSWERED, "5"), grader)
    assert grade and grade.reward is None and grade.passed is None
    assert grade.errors == {"other_error": said}
    assert failed_part(grade) == "grader:fixed"


def test_a_row_that_the_grader_cannot_read_is_no_score_even_without_an_answer():
    grade = grade_rollout(Row("row-1", "?", "unknown"), rollout(Ending.MALFORMED), NumericGrader())
    assert grade and grade.reward is None and list(grade.errors) == ["invalid_variable_error"]


def test_a_rollout_that_has_not_ended_is_our_own_mistake():
    with pytest.raises(ValueError, match="r1 has not ended"):
        grade_rollout(ROW, rollout(None), NumericGrader())


def test_a_sample_has_openais_shape():
    sample = sample_of(rollout(Ending.ANSWERED, '{"value": 842}'))
    assert sample["output_text"] == '{"value": 842}'
    assert sample["output_json"] == {"value": 842}
    assert sample["output_tools"][0] == {
        "id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "revenue €"}'},
    }  # fmt: skip
    assert [tool["function"]["name"] for tool in sample["output_tools"]] == ["search", "read"]
    assert sample["choices"] == [{"index": 0, "message": {"role": "assistant", "content": '{"value": 842}'}, "finish_reason": "stop"}]
    assert (sample["ending"], sample["tool_calls"]) == ("answered", 2)


@pytest.mark.parametrize("text", ["$842M", "NaN", "1e400", '"\\ud800"', "[" * 100_000, ""])
def test_output_json_is_there_only_for_json_that_can_be_sent_on(text):
    sample = sample_of(rollout(Ending.ANSWERED, text))
    assert "output_json" not in sample
    json.dumps(sample, allow_nan=False)


def test_an_unanswered_rollout_shows_no_text_and_why():
    sample = sample_of(rollout(Ending.OUT_OF_BUDGET, "half an ans"))
    assert (sample["output_text"], sample["ending"], sample["choices"][0]["finish_reason"]) == ("", "out_of_budget", "length")
