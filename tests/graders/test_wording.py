"""The words of a grader, as one who has read its file could repeat them."""

import json
from pathlib import Path

from agent_rft.graders.spec import read_spec
from agent_rft.graders.wording import texts_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def texts(spec: dict) -> tuple[str, ...]:
    return texts_of(read_spec(spec, "test"))


def test_what_a_check_looks_for_is_a_text_and_the_rows_own_reference_is_none():
    assert texts(json.loads((EXAMPLES / "hackable/grader.json").read_text())) == ("about",)


def test_what_a_judge_is_told_is_one_where_it_is_a_sentence():
    told = "Give full marks to a careful answer.\nQuestion: {{item.prompt}}\nAnswer: {{sample.output_text}}"
    judge = {"type": "score_model", "name": "j", "model": "m", "input": [{"role": "user", "content": told}]}
    assert texts(judge) == ("Give full marks to a careful answer.\nQuestion:",)


def test_a_grader_of_rules_has_no_words():
    assert texts({"type": "trajectory"}) == ()
