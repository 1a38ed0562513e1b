"""Which key of a row a grader takes for right, by its own JSON."""

from __future__ import annotations

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rows import Row
from agent_rft.graders.right_answers import reference_at, references_of, right_answers
from agent_rft.graders.spec import read_spec


def check(reference: str, operation: str = "eq", text: str = "{{sample.output_text}}") -> dict[str, object]:
    return {"type": "string_check", "name": "s", "input": text, "reference": reference, "operation": operation}


SIMILAR = {
    "type": "text_similarity", "input": "{{sample.output_text}}", "reference": "{{ item.long }}", "evaluation_metric": "fuzzy_match",
}  # fmt: skip
JUDGE = {"type": "label_model", "model": "m", "input": "{{item.answer}}", "labels": ["a", "b"], "passing_labels": ["a"]}

PARTS = {"a": check("{{item.answer}}"), "b": SIMILAR, "c": check("{{item.answer}}", "like")}
MULTI = {"type": "multi", "graders": PARTS, "calculate_output": "a"}


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (check("{{item.answer}}"), ["{{item.answer}}"]),
        (check("{{sample.output_text}}", "like", "{{item.answer}}"), ["{{item.answer}}"]),
        (check("{{item.answer}}", "neq"), []),
        (check("yes"), []),
        (check("{{item.tool}}", text="{{sample.output_tools[0].function.name}}"), ["{{item.tool}}"]),
        (check("{{item.a}} {{sample.output_text}}"), []),
        ({"type": "f1_set", "input": "{{sample.output_text}}", "reference": "{{item.names}}"}, ["{{item.names}}"]),
        ({"type": "numeric"}, []),
        (JUDGE, []),
        (MULTI, ["{{item.answer}}", "{{ item.long }}"]),
        ({"type": "stack", "correctness": {"grader": SIMILAR}, "process": {"grader": {"type": "trajectory"}}}, ["{{ item.long }}"]),
    ],
)  # fmt: skip
def test_what_answers_are_held_against_is_right(spec, found):
    assert references_of(read_spec(spec)) == found


def test_a_rows_right_answers_are_what_the_references_say_and_its_own_each_once():
    row = Row("r", "?", "13.4%", extra={"answer": "13.4%", "names": ["a", "b"], "solution": {"value": [7]}})
    references = ["{{item.answer}}", "{{item.names}}", "{{item.gone}}", reference_at("solution.value[0]")]
    assert right_answers(row, references) == ["13.4%", '["a", "b"]', "7"]
    assert right_answers(Row("r", "?", None, extra={"answer": ""}), ["{{item.answer}}"]) == []


@pytest.mark.parametrize("key", ["", "a b", "answer}}", "a..b"])
def test_a_key_that_can_be_none_is_refused(key):
    with pytest.raises(UserError, match="names no key of a row"):
        reference_at(key)
