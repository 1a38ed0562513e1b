"""Each fault with file, line and cure, all in one pass; what is only doubtful; and the table of what is in the data."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from agent_rft.datasets.rows_io import validate_files
from agent_rft.datasets.validate import Count, validate
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.registry import Services, build_grader
from agent_rft.graders.spec import read_spec

TOOLS = ("search", "list", "read")


def row(number: int, **changes: object) -> dict:
    base = {"id": f"row-{number}", "prompt": f"What was figure {number}?", "reference_answer": f"{number}%"}
    return {key: held for key, held in {**base, **changes}.items() if held is not ...}


def tool(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": {}}}


def calling(call: dict) -> dict:
    return {"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "And now?"}]}


def lines(*rows: object) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


def faults_of(*rows: object, **options: object) -> list[str]:
    return [str(f) for f in validate({"train": [("t.jsonl", lines(*rows))]}, **options).faults]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (b'{"id": a}', "t.jsonl:2: column 8: broken JSON: Expecting value (one JSON object a line)"),
        (b'{"id": NaN, "prompt": "p"}', "t.jsonl:2: not usable as JSON: Out of range float values are not JSON compliant"),
        (b'{"id": "\\ud800"}', "t.jsonl:2: not usable as JSON: 'utf-8' codec can't encode"),
        (b'{"id": "caf\xe9"}', "t.jsonl:2: byte 12 (0xe9) is not UTF-8 (save the file as UTF-8)"),
        ([1], "t.jsonl:2: not an object but a list"),
        (row(2, id=...), "t.jsonl:2: missing id"),
        (row(2, id=..., row_id="x", prmpt="p", prompt=...), "t.jsonl:2: missing prompt (is 'prmpt' meant to be it?)"),
        (row(2, reference_answer=...), "t.jsonl:2: missing reference_answer"),
        (row(2, id=5), "t.jsonl:2: id is the number 5 (a text that is not empty, unique over all files)"),
        (row(2, id=" "), "t.jsonl:2: id is an empty text"),
        (row(2, prompt=""), "t.jsonl:2: prompt is an empty text (a text that is not empty)"),
        (row(2, prompt=["p"]), "t.jsonl:2: prompt is a list"),
        (row(2, reference_answer=None), "t.jsonl:2: reference_answer is null"),
        (row(2, reference_answer=""), "t.jsonl:2: reference_answer is an empty text"),
        (row(2, metadata="easy"), "t.jsonl:2: metadata is a text"),
        (row(2, expected=[]), "t.jsonl:2: expected is an empty list (an object)"),
        (row(2, expected={"tolerance": 1}), "t.jsonl:2: expected has an unknown key 'tolerance' (did you mean 'tolerance_rel'?)"),
        (row(2, expected={"tolerance_rel": "2%"}), "t.jsonl:2: expected.tolerance_rel is '2%' (a number from 0 to 1, like 0.001)"),
        (row(2, expected={"evidence_path": 5}), "t.jsonl:2: expected.evidence_path is the number 5 (a path, or a list of paths)"),
        (row(2, expected={"must_use_tools": "read"}), "t.jsonl:2: expected.must_use_tools is a text (a list of tool names)"),
        (row(2, tools={}), "t.jsonl:2: tools is an object"),
        (row(2, tools=[{"type": "function"}]), "t.jsonl:2: tools[0] is not a tool"),
        (row(2, tools=["search"]), "t.jsonl:2: tools[0] is not a tool"),
        (row(1), "t.jsonl:2: id 'row-1' is already taken at t.jsonl:1"),
        ({"messages": []}, "t.jsonl:2: messages is an empty list"),
        (row(2, tools=[{"type": "function", "function": {"name": "x", "parameters": []}}]), "t.jsonl:2: tools[0] is not a tool"),
        ({"messages": ["hello"]}, "t.jsonl:2: messages[0] is a text"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "t.jsonl:2: messages[0].role is 'bot' (one of: system, developer, user, assistant, tool)",
        ),
        ({"messages": [{"content": "x"}]}, "t.jsonl:2: messages[0].role is null"),
        ({"messages": [{"role": "user"}]}, "t.jsonl:2: messages[0].content is null (a text, or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "t.jsonl:2: messages[0].content[0] is no text"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "t.jsonl:2: messages[0].content[0] is a text"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 5}]}, "t.jsonl:2: messages[0].tool_call_id is the number 5"),
        (calling({}), "t.jsonl:2: messages[0].tool_calls[0].function is null"),
        (calling({"function": {"name": "f", "arguments": "{}"}}), "t.jsonl:2: messages[0].tool_calls[0].id is null"),
        (calling({"id": "c", "function": {"arguments": "{}"}}), "t.jsonl:2: messages[0].tool_calls[0].function.name is null"),
        (
            calling({"id": "c", "function": {"name": "f", "arguments": "{x"}}),
            "t.jsonl:2: messages[0].tool_calls[0].function.arguments is not usable as JSON: Expecting property name",
        ),
        (
            calling({"id": "c", "function": {"name": "f", "arguments": "[1]"}}),
            "t.jsonl:2: messages[0].tool_calls[0].function.arguments is a list (an object's JSON in a text",
        ),
        (
            calling({"id": "c", "function": {"name": "f", "arguments": '{"q": "\\ud800"}'}}),
            "t.jsonl:2: messages[0].tool_calls[0].function.arguments is not usable as JSON: 'utf-8' codec",
        ),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "t.jsonl:2: the last message is the assistant's",
        ),
        ({"messages": [{"role": "user", "content": " "}]}, "t.jsonl:2: the last message is empty"),
    ],
)
def test_each_fault_is_told_with_file_line_and_cure(wrong, told):
    assert [fault for fault in faults_of(row(1), wrong, row(3)) if fault.startswith(told)]


def test_an_unknown_tool_is_told_with_the_nearest_known_one():
    wrong = row(1, tools=[tool("serach"), tool("read")], expected={"must_use_tools": ["reed", "read"]})
    assert faults_of(wrong, known_tools=TOOLS) == [
        "t.jsonl:1: unknown tool 'serach' (did you mean 'search'?)",
        "t.jsonl:1: unknown tool 'reed' (did you mean 'read'?)",
    ]
    assert faults_of(wrong) == []


def test_a_reference_answer_that_the_grader_cannot_read_is_a_fault():
    (fault,) = faults_of(row(1), row(2, reference_answer="about a tenth"), grader=NumericGrader())
    assert fault.startswith("t.jsonl:2: grader 'numeric' cannot use this row: item.reference_answer is not one number: 'about a tenth'")


@pytest.mark.parametrize(
    "said",
    [
        "{{sample.output_text}}",
        "{{sample.output_tools[0].function.name}}",
        "{{sample.choices[0].message.content}}",
        "{{sample.output_json.answer}}",
        "{{sample.tool_calls}}",
        "{{sample.trajectory[0].calls[0].output}}",
    ],
)
def test_a_grader_may_name_whatever_a_try_brings(said):
    assert faults_of(row(1), row(2), grader=same(said)) == []


@pytest.mark.parametrize("key", [None, "both"])
def test_what_no_try_brings_is_the_graders_fault_and_told_once(key):
    (fault,) = faults_of(row(1), row(2), row(3), grader=same("{{sample.output_txt}}", key))
    assert fault == (
        "grader 'g': {{sample.output_txt}} is not there "
        "(a sample has choices, ending, output_text, output_tools, rollout_id, tool_calls, trajectory and output_json)"
    )


def test_a_row_without_what_a_grader_names_is_told_by_its_line_also_of_a_graders_part():
    (fault,) = faults_of(row(1, of=2), row(2), grader=same("{{item.of}}", "both"))
    assert fault.startswith("t.jsonl:2: grader 'g' cannot use this row: {{item.of}} is not there")


def same(said: str, key: str | None = None):
    """A string_check, by itself or as a multi's part."""
    check = {"type": "string_check", "name": "g", "input": said, "reference": "{{item.reference_answer}}", "operation": "eq"}
    spec = check if key is None else {"type": "multi", "name": "g", "graders": {key: check}, "calculate_output": key}
    with closing(Services()) as none:
        return build_grader(read_spec(spec), none)


def test_a_faulty_row_is_still_looked_into_and_faults_come_in_the_order_of_the_file():
    wrong = row(1, prompt="", tools=[tool("fetch")], reference_answer="soon")
    told = faults_of(row(1), {}, wrong, row(4, id=...), known_tools=TOOLS, grader=NumericGrader())
    assert [fault.split(":")[1] for fault in told] == ["2", "2", "2", "3", "3", "3", "3", "4"]


def test_ids_are_unique_over_all_files():
    report = validate(
        {"train": [("a.jsonl", lines(row(1))), ("b.jsonl", lines(row(1)))], "val": [("v.jsonl", lines(row(1, prompt="Else?")))]}
    )
    assert [str(f).split(" (")[0] for f in report.faults] == [
        "b.jsonl:1: id 'row-1' is already taken at a.jsonl:1",
        "v.jsonl:1: id 'row-1' is already taken at a.jsonl:1",
    ]


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_split_without_rows_is_a_fault_that_names_its_file(empty):
    other = "val" if empty == "train" else "train"
    report = validate({other: [("full.jsonl", lines(row(1), b"{"))], empty: [("empty.jsonl", b"\xef\xbb\xbf\r\n \n")]})
    told = [str(fault) for fault in report.faults]
    assert told[0] == f"empty.jsonl: holds no rows (the {empty} split needs some, one JSON object a line)"
    assert [fault.split(":")[:2] for fault in told[1:]] == [["full.jsonl", "2"]]


def test_a_file_without_rows_beside_one_with_rows_is_no_fault():
    assert validate({"train": [("t.jsonl", lines(row(1))), ("more.jsonl", b"")]}).faults == ()


def test_a_byte_order_mark_blank_lines_and_crlf_are_nobodys_fault():
    content = b"\xef\xbb\xbf" + json.dumps(row(1)).encode() + b"\r\n\r\n  \n" + json.dumps(row(2)).encode() + b"\r\n"
    report = validate({"train": [("t.jsonl", content + b"{")]})
    assert report.sizes == {"train": 2}
    assert [f.where for f in report.faults] == ["t.jsonl:5"]


def test_openai_rows_without_ids_are_named_by_file_and_line():
    chat = {"messages": [{"role": "user", "content": "Which year?"}]}
    report = validate({"train": [("some/folder/t.jsonl", lines(chat, {"messages": [{"role": "user", "content": "And how much?"}]}))]})
    assert report.faults == () and report.sizes == {"train": 2}


def leak(train_prompt: str, val_prompt: str) -> tuple[list[str], list[str]]:
    files = {"train": [("t.jsonl", lines(row(1, prompt=train_prompt)))], "val": [("v.jsonl", lines(row(2, prompt=val_prompt)))]}
    report = validate(files)
    return [str(f) for f in report.faults], [str(w) for w in report.warnings if w.where == "v.jsonl:1"]


def test_the_same_question_on_both_sides_is_a_leak_whatever_its_case_spacing_and_marks():
    faults, _ = leak("What was Atlas Corp's margin?", "what  was “Atlas Corp's” MARGIN")
    assert faults == ["v.jsonl:1: 'row-2' asks what training asks at t.jsonl:1 (a leak makes validation worthless: take one of them out)"]
    assert leak("Is -5% a loss?", "Is 5% a loss?") == ([], [])
    assert leak("What is C++?", "What is C#?") == ([], [])


def test_the_same_words_in_another_order_are_a_warning():
    faults, warnings = leak("What was the revenue of Atlas in Q3 2025?", "Atlas Q3 2025: what was the revenue?")
    assert faults == []
    assert warnings == ["v.jsonl:1: 'row-2' has the same words as training's t.jsonl:1 (take one out if they ask the same)"]


def test_the_same_last_message_in_another_conversation_is_no_leak():
    def chat(document: str) -> dict:
        return {"messages": [{"role": "system", "content": document}, {"role": "user", "content": "Classify this."}]}

    files = {"train": [("t.jsonl", lines(chat("a dog")))], "val": [("v.jsonl", lines(chat("a cat")))]}
    assert validate(files).faults == ()


def test_a_question_asked_twice_within_a_split_is_a_warning():
    report = validate({"train": [("t.jsonl", lines(row(1, prompt="Same?"), row(2, prompt="same")))]})
    assert "t.jsonl:2: 'row-2' asks the same as t.jsonl:1, and expects another answer (keep one of them)" in map(str, report.warnings)


def numbered(first: int, count: int, **changes: object) -> bytes:
    return lines(*(row(n, **changes) for n in range(first, first + count)))


@pytest.mark.parametrize(
    ("train", "val", "told"),
    [
        (200, 50, []),  # a fifth held out
        (489, 123, []),  # 20.1%, as the source documents split theirs
        (199, 30, ["train: 199 rows (200 to 1,000 work best)"]),
        (1001, 200, ["train: 1001 rows (200 to 1,000 work best)"]),
        (200, 10, ["val: 5% of the rows are held out (10% to 20% is usual)"]),  # 10 / 210
        (200, 100, ["val: 33% of the rows are held out (10% to 20% is usual)"]),
    ],
)
def test_size_advice(train, val, told):
    report = validate({"train": [("t.jsonl", numbered(0, train))], "val": [("v.jsonl", numbered(2000, val))]})
    assert [str(w) for w in report.warnings] == told


def test_a_stratum_on_one_side_only_is_a_warning():
    easy, hard = {"metadata": {"task_type": "qa", "difficulty": "easy"}}, {"metadata": {"task_type": "qa", "difficulty": "hard"}}
    report = validate({"train": [("t.jsonl", numbered(0, 240, **easy))], "val": [("v.jsonl", numbered(2000, 60, **hard))]})
    assert [str(w) for w in report.warnings] == [
        "val: no row of task type 'qa', difficulty 'easy' (split by both)",
        "train: no row of task type 'qa', difficulty 'hard' (split by both)",
    ]


def test_the_distribution_table_and_shared_evidence(tmp_path):
    def asked(number: int, difficulty: str, path: str, metric: str) -> dict:
        return row(number, expected={"evidence_path": path}, metadata={"task_type": "qa", "difficulty": difficulty, "metric": metric})

    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    train.write_bytes(lines(asked(1, "easy", "a", "revenue"), asked(2, "easy", "b", "revenue"), asked(3, "hard", "a", "margin"), row(4)))
    val.write_bytes(lines(asked(5, "easy", "a", "revenue"), asked(6, "hard", "b", "margin")))
    report = validate_files({"train": train, "val": [val]}, TOOLS, NumericGrader())
    assert report.counts == (
        Count("train", "qa", "easy", 2, 0.5),
        Count("train", "qa", "hard", 1, 0.25),
        Count("train", "unspecified", "unspecified", 1, 0.25),
        Count("val", "qa", "easy", 1, 0.5),
        Count("val", "qa", "hard", 1, 0.5),
    )
    assert report.shared_evidence == 1  # row 5 asks for the revenue of "a", as row 1 does
