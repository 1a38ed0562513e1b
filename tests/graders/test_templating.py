"""Variables are filled in and nothing is run; what is missing is told, and whose fault it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.grades import GraderRef
from agent_rft.graders.templating import MissingVariable, render, unusable_variables, without_value

ITEM = {"a": {"b": [{"c": "deep"}, [1, 2]]}, "n": 7, "yes": True, "none": None, "list": ["é", 1.5], "key-with_ä": "x", "text": "{{item.n}}"}
SAMPLE = {"output_text": "hello", "output_tools": [{"function": {"name": "search"}}]}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{item.a.b[0].c}}", "deep"),
        ("{{ item.a.b[1][1] }}/{{\n sample.output_tools[0].function.name\t}}", "2/search"),
        ("{{item.n}} {{item.yes}} {{item.none}}", "7 true null"),
        ("{{item.list}}", '["é", 1.5]'),
        ("{{item.a}}", '{"b": [{"c": "deep"}, [1, 2]]}'),
        ("{{item.key-with_ä}}", "x"),
        ("{{item.text}}", "{{item.n}}"),
        ("{item.n} { {item.n} } }} {{", "{item.n} { {item.n} } }} {{"),
        ("", ""),
    ],
)
def test_a_variable_gives_its_text_or_its_json_and_is_not_looked_at_again(text, filled):
    assert render(text, ITEM, SAMPLE) == filled


@pytest.mark.parametrize(
    "path",
    [
        "item", "sample", "output_text", "items.n", "env.HOME", "item.n | upper", "item.n()", "item['n']", "item[0]", "item.a b", "item.",
        "item..n", "item.n|upper", "1+1", "", "__import__('os')", "item.a.b[-1]", "item.a.b[x]", "self.item.n", "item.n if item.n",
    ],
)  # fmt: skip
def test_anything_but_a_path_into_item_or_sample_has_no_value(path):
    text = "{{" + path + "}}"
    assert unusable_variables(text) == [path]
    with pytest.raises(MissingVariable):
        render(text, ITEM, SAMPLE)


@pytest.mark.parametrize(
    "path", ["item.x", "item.a.x", "item.a.b[2]", "item.n.x", "item.list.x", "item.a[0]", "item.text[0]", "item.n.__class__", "item.a.keys"]
)
def test_a_path_that_leads_nowhere_is_the_items_fault_and_no_attribute_is_ever_read(path):
    with pytest.raises(MissingVariable) as caught:
        render("{{" + path + "}}", ITEM, SAMPLE)
    assert caught.value.path == path and not caught.value.of_answer
    assert unusable_variables("{{" + path + "}}") == []


@pytest.mark.parametrize(
    ("path", "sample", "of_answer"),
    [
        ("sample.output_json.name", {"output_text": "not JSON"}, True),
        ("sample.output_json.name", {"output_text": "{}", "output_json": {}}, True),
        ("sample.output_json.name", {}, False),
        ("sample.output_tools[0].function.name", {"output_text": "", "output_tools": []}, True),
        ("sample.output_tools[0].function.name", {"output_text": ""}, False),
        ("sample.output_jsonx", {"output_text": ""}, False),
        ("sample.output_text", {}, False),
    ],
)
def test_what_the_answer_lacks_is_worth_zero_and_what_the_caller_lacks_is_no_score(path, sample, of_answer):
    with pytest.raises(MissingVariable) as caught:
        render("{{" + path + "}}", {}, sample)
    grade = without_value(GraderRef("g", "1", "h"), caught.value)
    assert (grade.reward, list(grade.errors)) == ((0.0, []) if of_answer else (None, ["invalid_variable_error"]))


@given(st.text())
def test_a_text_comes_back_as_it_was_put_in(text):
    assert render("<{{item.x}}>", {"x": text}, {}) == f"<{text}>"
