"""schema, f1_set and trajectory, beyond what the examples hold."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from agent_rft.graders.f1_set import F1SetGrader
from agent_rft.graders.samples import sample_of
from agent_rft.graders.schema import SchemaGrader, schema_faults
from agent_rft.graders.trajectory import Options, TrajectoryGrader

LINKED = {
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["id"]}},
    "$ref": "#/$defs/node",
}


def fits(schema: dict, text: str):
    return SchemaGrader(schema).grade({}, {"output_text": text})


def test_a_schema_may_refer_to_its_own_parts_and_the_misfits_are_named():
    assert fits(LINKED, '{"id": 1, "next": {"id": 2}}').reward == 1
    grade = fits(LINKED, '{"id": 1, "next": {}}')
    assert (grade.reward, grade.parts) == (0.0, {"misfits": ["$.next: 'id' is a required property"], "count": 1})


def test_a_reference_to_elsewhere_is_never_fetched():
    grade = fits({"$ref": "http://127.0.0.1:1/schema.json"}, "{}")
    assert grade.reward is None and "other_error" in grade.errors


def test_an_answer_nested_without_end_does_not_fit_and_breaks_nothing():
    deep = '{"id": 1, "next": ' * 800 + '{"id": 1}' + "}" * 800
    assert fits(LINKED, deep).parts == {"misfits": ["nested too deep"], "count": 1}
    assert fits(LINKED, "[" * 100_000).parts == {"why": "not JSON"}


def test_the_schema_belongs_to_the_hash():
    assert SchemaGrader({"type": "object"}).ref.hash != SchemaGrader({"type": "array"}).ref.hash


BACKTRACKING = "^(a+)+$"
"""2 to the power of 30 ways to split 30 a's, all of which a backtracking engine tries before it sees that ! fits none."""


@pytest.mark.parametrize(
    ("schema", "output"),
    [
        ({"pattern": BACKTRACKING}, "a" * 30 + "!"),
        ({"propertyNames": {"pattern": BACKTRACKING}}, {"a" * 30 + "!": 1}),
        ({"patternProperties": {BACKTRACKING: {"type": "string"}}, "minProperties": 2}, {"a" * 30 + "!": 1}),
        ({"patternProperties": {BACKTRACKING: {}}, "additionalProperties": False}, {"a" * 30 + "!": 1}),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "not": {"items": {"not": {"pattern": BACKTRACKING}}}}, ["a" * 30 + "!"]),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": BACKTRACKING, "items": {"$ref": "#"}, "type": "array"},
            ["a" * 30 + "!"],
        ),
    ],
)
def test_no_pattern_makes_a_grade_take_long(schema, output):
    """In a process of its own: what backtracks could not be stopped from within this one."""
    assert list(schema_faults(schema)) == []
    body = (
        "import json, sys; from agent_rft.graders.schema import SchemaGrader;"
        "print(SchemaGrader(json.loads(sys.argv[1])).grade({}, {'output_text': sys.argv[2]}).reward)"
    )
    asked = [sys.executable, "-c", body, json.dumps(schema), json.dumps(output)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "0.0\n"


KEYS = st.text("ab_", max_size=3)
PATTERNS = st.sampled_from(["^a", "b$", "a|b", "_", "^[ab]+$"])
INNER = st.sampled_from([True, {"type": "string"}, {"pattern": "^a"}, {"minimum": 2}])


@given(
    patterns=st.dictionaries(PATTERNS, INNER, max_size=2),
    properties=st.dictionaries(KEYS, INNER, max_size=2),
    rest=st.sampled_from([True, False, {"type": "integer"}, {"pattern": "b"}]),
    output=st.dictionaries(KEYS, st.sampled_from([1, 3, "a", "ba", None]), max_size=4),
)
def test_properties_and_patterns_mean_what_the_library_says(patterns, properties, rest, output):
    schema = {"patternProperties": patterns, "properties": properties, "additionalProperties": rest}
    found = list(jsonschema.Draft202012Validator(schema).iter_errors(output))
    by_library = {error.json_path + ("" if error.validator == "additionalProperties" else f": {error.message}") for error in found}
    parts = fits(schema, json.dumps(output)).parts
    assert parts.get("count", 0) == len(found)
    assert {"$" if misfit.startswith("$: Additional") else misfit for misfit in parts.get("misfits", [])} <= by_library


@pytest.mark.parametrize(
    ("schema", "path", "what"),
    [
        ({"pattern": "(?=a)b"}, ".pattern", "'(?=a)b' is no regular expression of RE2"),
        ({"properties": {"x": {"pattern": r"(a)\1"}}}, ".properties.x.pattern", "invalid escape sequence: \\1"),
        ({"pattern": "a{2000}"}, ".pattern", "invalid repetition size: {2000}"),
        ({"pattern": "\ud800"}, ".pattern", "is no regular expression of RE2"),
        ({"patternProperties": {"(?!a)": {}}}, ".patternProperties", "'(?!a)' is no regular expression of RE2"),
        ({"patternProperties": {"a": {}}, "allOf": [{"unevaluatedProperties": False}]}, "", "take additionalProperties"),
        ({"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}, ".items.$schema", "at the top of the schema alone"),
    ],
)
def test_what_would_not_be_matched_in_linear_time_is_refused(schema, path, what):
    [(where, said)] = schema_faults(schema)
    assert where == path and what in said


def test_a_pattern_that_only_shows_when_it_is_used_is_no_score():
    """Draft 4's own schema says nothing of these keys."""
    grade = fits({"$schema": "http://json-schema.org/draft-04/schema#", "patternProperties": {"(?!a)": {}}}, '{"b": 1}')
    assert grade.reward is None and "'(?!a)' is no regular expression of RE2" in grade.errors["other_error"]


NAMES = st.lists(st.sampled_from(["a.py", "b.py", "c/d.py", "e.py", "f.py"]))
F1 = F1SetGrader("{{sample.output_text}}", "{{item.files}}")


@given(named=NAMES, wanted=NAMES)
def test_f1_is_the_harmonic_mean_of_precision_and_recall_in_either_form(named, wanted):
    as_list = F1.grade({"files": wanted}, {"output_text": json.dumps(named)})
    as_lines = F1.grade({"files": "\n".join(wanted)}, {"output_text": "\n".join(named)})
    assert as_list.reward == as_lines.reward
    both = len(set(named) & set(wanted))
    if both:
        precision, recall = both / len(set(named)), both / len(set(wanted))
        assert as_list.reward == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert as_list.reward == (0 if named or wanted else 1)


def test_f1_tells_what_was_missed_and_what_nobody_asked_for():
    parts = F1.grade({"files": ["a.py", "b.py"]}, {"output_text": "b.py\nc.py"}).parts
    assert parts == {"precision": 0.5, "recall": 0.5, "missed": ["a.py"], "unasked": ["c.py"]}


def rollout(*turns: list[tuple[str, str | None]], tool: str = "read") -> Rollout:
    """Turns of (path, error) calls; a path of its own error None was read."""
    made = []
    for number, calls in enumerate(turns):
        asked = tuple(ToolCall(f"c{number}-{at}", tool, {"path": path}) for at, (path, _) in enumerate(calls))
        results = {call.call_id: ToolResult(call.call_id, "text", error, 0.5) for call, (_, error) in zip(asked, calls, strict=True)}
        made.append(Turn("thinking", calls=asked, results=results))
    return Rollout("r", (Message("user", "?"),), (), Limits(), turns=[*made, Turn("done")], ending=Ending.ANSWERED, answer="done")


def went(options: Options, *turns: list[tuple[str, str | None]], tool: str = "read", **expected: object):
    return TrajectoryGrader(options).grade({"expected": expected}, sample_of(rollout(*turns, tool=tool)))


def test_a_sample_shows_each_call_with_what_came_of_it_and_openais_keys_as_they_were():
    sample = sample_of(rollout([("a", None), ("b", "model_error")]))
    assert sample["trajectory"] == [
        {"text": "thinking", "calls": [
            {"id": "c0-0", "name": "read", "arguments": {"path": "a"}, "output": "text", "error": None, "seconds": 0.5},
            {"id": "c0-1", "name": "read", "arguments": {"path": "b"}, "output": "text", "error": "model_error", "seconds": 0.5},
        ]},
        {"text": "done", "calls": []},
    ]  # fmt: skip
    assert set(sample) == {"output_text", "output_tools", "choices", "rollout_id", "ending", "tool_calls", "trajectory"}
    json.dumps(sample, allow_nan=False)


@pytest.mark.parametrize(
    ("turns", "tool", "share"),
    [
        ([[("a", None)], [("b", None)]], "read", 1.0),
        ([[("a", None), ("b", "model_error")]], "read", 0.5),
        ([[("a", None), ("b", None)]], "list", 0.0),  # listing is not reading
        ([[("a/", None)]], "read", 0.0),
        ([], "read", 0.0),
    ],
)
def test_evidence_counts_where_it_was_read_and_came_back(turns, tool, share):
    assert went(Options(), *turns, tool=tool, evidence_path=["a", "b"]).reward == share


def test_what_is_read_beside_the_evidence_in_one_turn_is_not_after_it():
    options = Options(evidence=False, max_calls_after_evidence=0)
    assert went(options, [("a", None), ("b", None), ("c", None)], evidence_path="a").reward == 1
    assert went(options, [("a", None)], [("b", None)], evidence_path="a").reward == 0
    assert went(options, [("b", None)], evidence_path="a").reward == 0  # never read


@pytest.mark.parametrize(("calls", "reward"), [(0, 1), (4, 1), (5, 0.8), (8, 0.5)])
def test_beyond_the_budget_the_reward_falls_with_the_calls(calls, reward):
    assert went(Options(max_calls=4), *[[(str(at), None)] for at in range(calls)]).reward == reward


@pytest.mark.parametrize(("paths", "reward"), [("abcd", 1), ("aabb", 0.75), ("aaaa", 0.5)])  # one repetition is free
def test_repeated_calls_cost_their_share(paths, reward):
    assert went(Options(max_redundant=1), *[[(path, None)] for path in paths]).reward == reward


def test_weights_and_threshold_decide():
    options = Options(max_calls=1, weights={"evidence": 3}, pass_threshold=0.8)
    grade = went(options, [("a", None)], [("b", None)], evidence_path="a")
    assert (grade.reward, grade.passed) == (0.875, True)  # (3 x 1 + 1 x 1/2) / 4
    assert grade.parts == {"criteria": {"evidence": 1.0, "budget": 0.5}}
    assert TrajectoryGrader(options).ref.hash != TrajectoryGrader(Options(max_calls=1)).ref.hash


@pytest.mark.parametrize(
    ("item", "sample", "flag"),
    [
        ({"expected": {"evidence_path": 5}}, {"trajectory": []}, "invalid_variable_error"),
        ({"expected": {}}, {"trajectory": []}, "invalid_variable_error"),
        ({"expected": {"evidence_path": "a"}}, {}, "sample_parse_error"),
        ({"expected": {"evidence_path": "a"}}, {"trajectory": [{"calls": [{"name": 5}]}]}, "sample_parse_error"),
    ],
)
def test_what_cannot_be_judged_is_no_score(item, sample, flag):
    grade = TrajectoryGrader(Options()).grade(item, sample)
    assert (grade.reward, list(grade.errors)) == (None, [flag])
