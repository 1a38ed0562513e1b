"""A grader's JSON read: the published forms unchanged, both sides of their contradictions, and every fault at once."""

from __future__ import annotations

import contextlib
import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import FaultsFound
from agent_rft.graders import spec as specs
from agent_rft.graders.spec import read_spec

CHECK = {"type": "string_check", "name": "c", "input": "{{sample.output_text}}", "reference": "{{item.a}}", "operation": "eq"}
JUDGE = {"type": "score_model", "name": "j", "model": "m", "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}]}
PUBLISHED = {
    "string_check": CHECK,
    "text_similarity": {
        "type": "text_similarity", "name": "t", "input": "{{sample.output_text}}", "reference": "{{item.a}}",
        "evaluation_metric": "rouge_l", "pass_threshold": 0.9,
    },
    "score_model": {
        **JUDGE,
        "range": [0, 10],
        "pass_threshold": 5,
        "sampling_params": {"seed": 1, "top_p": 1, "temperature": 0.5, "max_completions_tokens": 32768, "reasoning_effort": "medium"},
    },
    "label_model": {
        "type": "label_model", "name": "l", "model": "m", "labels": ["good", "bad"], "passing_labels": ["good"],
        "input": [{"type": "message", "role": "developer", "content": {"type": "input_text", "text": "{{item.a}}"}}],
    },
    "python": {"type": "python", "source": "def grade(sample, item):\n    return 1.0", "image_tag": "2025-05-08"},
    "multi": {"type": "multi", "graders": {"a": CHECK, "b": JUDGE}, "calculate_output": "(100 - abs(a - b)) / 100"},
    "endpoint": {
        "type": "endpoint", "name": "e", "url": "https://example.com/grade", "headers": {"Authorization": "Bearer ${KEY}"},
        "rate_limit": 50, "pass_threshold": 8,
    },
    "numeric": {"type": "numeric", "use_row_tolerance": True},
    "trajectory": {"type": "trajectory", "required_tools": ["search"], "max_calls": 8, "weights": {"budget": 0.5}},
    "schema": {"type": "schema", "schema": {"type": "object"}},
    "f1_set": {"type": "f1_set", "input": "{{sample.output_text}}", "reference": "{{item.files}}"},
    "code_run": {"type": "code_run", "language": "python", "tests_key": "cases", "timeout": 5, "seconds_in_all": 60},
    "stack": {"type": "stack", "correctness": {"grader": CHECK, "weight": 2}, "safety": {"grader": JUDGE}, "gates": {"safety": 0.5}},
}  # fmt: skip


def faults(value: object) -> list[str]:
    with pytest.raises(FaultsFound) as caught:
        read_spec(value)
    return [str(fault) for fault in caught.value.faults]


def test_every_type_has_a_published_form_here():
    assert set(PUBLISHED) == set(specs.TYPES)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_each_type_is_read_as_published_and_what_was_read_reads_back_the_same(kind):
    value = copy.deepcopy(PUBLISHED[kind])
    spec = read_spec(value)
    assert type(spec).__struct_config__.tag == kind and spec.name
    assert read_spec(msgspec.to_builtins(spec)) == spec == read_spec(msgspec.json.decode(msgspec.json.encode(spec)))
    assert value == PUBLISHED[kind], "reading changed what it was given"


def test_a_name_that_is_left_out_is_the_key_the_role_or_the_type():
    bare = {key: each for key, each in CHECK.items() if key != "name"}
    assert read_spec(bare).name == "string_check"
    assert read_spec({"type": "multi", "graders": {"a": bare}, "calculate_output": "a"}).graders["a"].name == "a"
    assert read_spec({"type": "stack", "correctness": {"grader": bare}}).correctness.grader.name == "correctness"


def test_both_sides_of_the_documented_contradictions():
    assert read_spec({**CHECK, "operation": "neq"}) == read_spec({**CHECK, "operation": "ne"})
    parts = ["one", {"role": "user", "content": "two"}, {"role": "user", "content": [{"type": "input_text", "text": "three"}]}]
    assert read_spec({**CHECK, "input": parts}).input == "one\ntwo\nthree"
    assert read_spec({**JUDGE, "input": "Rate {{sample.output_text}}"}) == read_spec(JUDGE)
    assert read_spec(JUDGE).range == (0.0, 1.0) and read_spec({**JUDGE, "range": None}) == read_spec(JUDGE)
    said = [read_spec({**JUDGE, "sampling_params": {key: 5}}) for key in ("max_completions_tokens", "max_completion_tokens", "max_tokens")]
    assert said[0].sampling_params.max_completions_tokens == 5 and said[0] == said[1] == said[2]
    mapping = read_spec({"type": "multi", "graders": {"c": CHECK}, "calculate_output": "c"})
    assert mapping == read_spec({"type": "multi", "graders": [CHECK], "calculate_output": "c"})
    assert mapping == read_spec({"type": "multi", "graders": CHECK, "calculate_output": "c"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], ["grader: a list is not an object"]),
        ({"type": "string_chek"}, ["grader.type: 'string_chek' is no type of grader (did you mean 'string_check'?)"]),
        ({"operation": "equals"}, ["grader.operation: 'equals' is none of its values (one of: eq, ilike, like, ne)"]),
        ({"operaton": "eq"}, ["grader.operaton: is no key of this (did you mean 'operation'?)"]),
        ({"reference": 5}, ["grader.reference: 5 is not a text"]),
        ({"reference": None}, ["grader.reference: null is not a text"]),
        ({"name": 5}, ["grader.name: 5 is not a text"]),
        ({"input": [{"content": {"type": "input_image"}}]}, ["grader.input[0]: 'input_image' is not a text (texts alone are graded)"]),
    ],
)
def test_a_fault_stands_under_its_path_with_its_cure(change, said):
    assert faults({**CHECK, **change} if isinstance(change, dict) else change) == said


@pytest.mark.parametrize(
    ("kind", "change", "where"),
    [
        ("text_similarity", {"evaluation_metric": "rouge_6"}, "grader.evaluation_metric"),
        ("text_similarity", {"pass_threshold": 1.5}, "grader.pass_threshold"),
        ("text_similarity", {"pass_threshold": True}, "grader.pass_threshold"),
        ("text_similarity", {"pass_threshold": float("nan")}, "grader.pass_threshold"),
        ("score_model", {"range": [1, 0]}, "grader.range"),
        ("score_model", {"range": [0, 5, 10]}, "grader.range"),
        ("score_model", {"pass_threshold": 11}, "grader.pass_threshold"),
        ("score_model", {"input": []}, "grader.input"),
        ("score_model", {"input": [{"role": "judge", "content": "x"}]}, "grader.input[0].role"),
        ("score_model", {"input": [{"role": "user", "content": "{{x}}"}]}, "grader.input[0].content"),
        ("score_model", {"sampling_params": {"temprature": 1}}, "grader.sampling_params.temprature"),
        ("score_model", {"sampling_params": {"max_tokens": 1, "max_completions_tokens": 1}}, "grader.sampling_params.max_tokens"),
        ("score_model", {"sampling_params": {"max_tokens": 0}}, "grader.sampling_params.max_completions_tokens"),
        ("label_model", {"passing_labels": ["god"]}, "grader.passing_labels[0]"),
        ("label_model", {"labels": ["good", "bad", "bad"]}, "grader.labels"),
        ("python", {"source": " "}, "grader.source"),
        ("python", {"source": "#" * 256_000}, "grader.source"),
        ("endpoint", {"url": "file:///etc/passwd"}, "grader.url"),
        ("endpoint", {"rate_limit": 0}, "grader.rate_limit"),
        ("endpoint", {"headers": {"a": 1}}, "grader.headers.a"),
        ("multi", {"graders": {}}, "grader.graders"),
        ("trajectory", {"max_calls": -1}, "grader.max_calls"),
        ("trajectory", {"max_calls": 1.5}, "grader.max_calls"),
        ("trajectory", {"weights": {"budget": 0}}, "grader.weights.budget"),
        ("trajectory", {"weights": {"stop": 1}}, "grader.weights.stop"),
        ("trajectory", {"min_parallelism": 0.5}, "grader.min_parallelism"),
        ("trajectory", {"weights": {}, "required_tools": [], "evidence": False, "max_calls": None}, "grader"),
        ("schema", {"schema": {"properties": {"a": {"type": "txt"}}}}, "grader.schema.properties.a.type"),
        ("schema", {"schema": {"items": [{"$ref": "file:///etc/passwd"}]}}, "grader.schema.items[0].$ref"),
        ("schema", {"schema": {"pattern": "("}}, "grader.schema.pattern"),
        ("schema", {"schema": {"$schema": 5}}, "grader.schema.$schema"),
        ("code_run", {"timeout": 0}, "grader.timeout"),
        ("stack", {"correctness": {"weight": 1}}, "grader.correctness.grader"),
        ("stack", {"correctness": {"grader": CHECK, "weight": -1}}, "grader.correctness.weight"),
        ("stack", {"correctness": {"grader": CHECK, "weight": 1}, "calculate_output": "correctness"}, "grader.correctness.weight"),
        ("stack", {"calculate_output": "speed", "correctness": {"grader": CHECK}}, "grader.calculate_output"),
        ("stack", {"gates": {"process": 0.5}}, "grader.gates.process"),
        ("stack", {"gates": {"safety": 0}}, "grader.gates.safety"),
        ("stack", {"safety": {"grader": PUBLISHED["stack"]}}, "grader.safety.grader.type"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind, change, where):
    told = faults({**PUBLISHED[kind], **change})
    assert [fault.partition(": ")[0] for fault in told if fault.startswith(f"{where}:")] == [where], told


def test_all_faults_are_told_at_once_the_inner_ones_too():
    value = {
        "type": "multi",
        "graders": {
            "accuracy": {**CHECK, "operation": "equals", "input": "{{items.a}}"},
            "judge": {**JUDGE, "modle": "m", "range": [1, 1]},
            "again": PUBLISHED["multi"],
            "max": CHECK,
        },
        "calculate_output": "acuracy + judge",
    }
    assert faults(value) == [
        "grader.graders.accuracy.operation: 'equals' is none of its values (one of: eq, ilike, like, ne)",
        "grader.graders.accuracy.input: {{items.a}} can have no value ({{item.key}} or {{sample.key}}, with .key and [0] after it)",
        "grader.graders.judge.modle: is no key of this (did you mean 'model'?)",
        "grader.graders.judge.range: [1.0, 1.0] is no range ([lowest, highest])",
        "grader.graders.again.type: a multi in a multi (they do not nest)",
        "grader.graders.max: is no name that a formula can use (letters, digits and _, and none of its functions)",
        "grader.calculate_output: no grader 'acuracy' (did you mean 'accuracy'?)",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(kind=st.sampled_from(sorted(PUBLISHED)), data=st.data())
def test_whatever_stands_in_a_field_is_read_or_told_and_never_a_stack_trace(kind, data):
    key = data.draw(st.sampled_from(sorted(type(read_spec(PUBLISHED[kind])).__struct_fields__)))
    with contextlib.suppress(FaultsFound):
        spec = read_spec({**PUBLISHED[kind], key: data.draw(JSON)})
        assert read_spec(msgspec.to_builtins(spec)) == spec
