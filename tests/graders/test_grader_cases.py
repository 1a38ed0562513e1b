"""Cases for a grader: a line in, a line out; whatever is wrong with the file is told at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.graders.cases import grade_cases
from agent_rft.graders.f1_set import F1SetGrader
from agent_rft.graders.numeric import NumericGrader

SHIPPED = Path(__file__).parents[2] / "data" / "research" / "grader_cases.jsonl"


def test_the_shipped_cases_get_what_the_source_documents_expect():
    graded = [json.loads(line) for line in grade_cases(SHIPPED.read_text().splitlines(), NumericGrader())]
    assert [one["reward"] for one in graded] == [1, 1, 0.5, 0, 1]
    assert all(set(one) == {"reward", "parts", "grader"} and set(one["grader"]) == {"name", "version", "hash"} for one in graded)


def test_a_case_the_grader_cannot_score_says_why():
    (line,) = grade_cases(['{"item": {"reference_answer": "soon"}, "sample": {"output_text": "5"}}'], NumericGrader())
    assert json.loads(line)["reward"] is None and "invalid_variable_error" in json.loads(line)["errors"]


def test_a_reward_that_training_would_not_take_is_none_here_either():
    class Generous:
        ref = GraderRef("generous", "1", "abc")

        def grade(self, item, sample):
            return Grade(self.ref, 7.0)

    (line,) = grade_cases(['{"item": {}, "sample": {}}'], Generous())
    assert (json.loads(line)["reward"], json.loads(line)["errors"]) == (None, {"other_error": "reward 7.0 is not a number from 0 to 1"})


def test_every_fault_is_told_with_its_line():
    lines = ['\ufeff{"item": {}, "sample": {}}', "", "{broken", "[]", '{"item": {}}', '{"item": 5}']
    with pytest.raises(FaultsFound) as caught:
        grade_cases(lines, NumericGrader(), source="cases.jsonl")
    assert [str(fault) for fault in caught.value.faults] == [
        "cases.jsonl:3: column 2: broken JSON: Expecting property name enclosed in double quotes",
        "cases.jsonl:4: not an object",
        "cases.jsonl:5: sample is missing",
        "cases.jsonl:6: item is no object",
        "cases.jsonl:6: sample is missing",
    ]


def test_what_no_grade_can_ever_be_is_a_fault_of_its_line():
    wanted = [
        '"errors": 5', '"errors": [1, "a"]', '"errors": "other_error"', '"errors": []', '"errors": null', '"reward": "1"', '"reward": true',
        '"reward": 1.5', '"reward": NaN', '"reward": null', '"reward": 1, "errors": ["other_error"]',
    ]  # fmt: skip
    fine = ['"reward": 0', '"reward": 0.5', '"errors": ["other_error"]', '"reward": null, "errors": ["other_error"]']
    with pytest.raises(FaultsFound) as caught:
        grade_cases([f'{{"item": {{}}, "sample": {{}}, {what}}}' for what in wanted + fine], NumericGrader(), source="c")
    no_list = [f'c:{line}: errors is no list of flags (["invalid_variable_error"])' for line in range(1, 6)]
    said = ["'1'", "true", "1.5", "nan", "null"]
    cure = "where no score is right, leave it out and name its errors"
    no_number = [f"c:{line}: reward {value} is no number from 0 to 1 ({cure})" for line, value in enumerate(said, start=6)]
    both = "c:11: says both reward and errors (leave one out: a grader that failed gives no reward)"
    assert [str(fault) for fault in caught.value.faults] == [*no_list, *no_number, both]


def test_half_a_surrogate_pair_in_a_grade_can_be_written():
    """JSON's own escape is all that can say it."""
    case = r'{"item": {"files": "a"}, "sample": {"output_text": "\ud800"}}'
    (line,) = grade_cases([case], F1SetGrader("{{sample.output_text}}", "{{item.files}}"))
    assert rb'"unasked": ["\ud800"]' in line.encode()
    assert json.loads(line)["parts"]["unasked"] == ["\ud800"]
