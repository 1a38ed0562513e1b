"""Rows from JSONL and back: this project's shape and OpenAI's, byte for byte the same when written again."""

from __future__ import annotations

import json
import resource

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rows import Expected, Row
from agent_rft.datasets.rows import dataset_hash, encode_openai_row, encode_row, row_of, version_of
from agent_rft.datasets.rows_io import read_rows, write_openai_rows, write_rows

SEED_ROW = {
    "id": "row-2842",
    "prompt": "What was Henderson Industries' Q3 2025 operating margin?",
    "reference_answer": "13.4%",
    "expected": {"tolerance_rel": 0.02, "evidence_path": "filings/henderson-10q-2025-q3.html", "must_use_tools": ["search", "read"]},
    "tools": [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}],
    "metadata": {"task_type": "numerical_qa", "difficulty": "medium"},
}


def row(value: dict) -> Row:
    read, wrong = row_of(value, "rows.jsonl:1")
    assert read is not None, wrong
    return read


def test_the_source_documents_row_is_read_and_written_unchanged():
    read = row(SEED_ROW)
    assert read == Row(
        "row-2842",
        "What was Henderson Industries' Q3 2025 operating margin?",
        "13.4%",
        Expected(0.02, "filings/henderson-10q-2025-q3.html", ("search", "read")),
        (ToolSpec("search", parameters={"type": "object"}),),
        {"task_type": "numerical_qa", "difficulty": "medium"},
    )
    assert encode_row(read) == json.dumps(SEED_ROW)


def test_an_openai_row_keeps_every_key_of_the_user_as_item():
    read = row(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "year?"}]},
            ],
            "answer": 2024,
            "expected": "a text of the user's own",
            "metadata": ["theirs", "too"],
            "id": 7,
        }
    )
    assert (read.id, read.prompt, read.reference_answer) == ("rows.jsonl:1", "Which year?", None)
    assert read.opening() == (Message("system", "Be brief."), Message("user", "Which year?"))
    item = read.item()
    theirs = {"answer": 2024, "expected": "a text of the user's own", "metadata": ["theirs", "too"], "id": 7}
    assert {key: item[key] for key in theirs} == theirs
    written = json.loads(encode_row(read))
    assert {key: written[key] for key in theirs} == theirs


def test_an_openai_row_may_hold_earlier_tool_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}}
    said = [
        {"role": "user", "content": "Find x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found", "tool_call_id": "c1"},
        {"role": "user", "content": "And now?"},
    ]
    read = row({"messages": said, "reference_answer": "5"})
    assert read.messages[1:3] == (
        Message("assistant", "", (ToolCall("c1", "search", {"query": "x"}),)),
        Message("tool", "found", call_id="c1"),
    )
    assert row(json.loads(encode_row(read))) == read


def calling(arguments: str) -> dict:
    return {"id": "c1", "type": "function", "function": {"name": "search", "arguments": arguments}}


STRICT = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}, "strict": True}}
OPENAIS = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Find x", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [calling('{"query":"x"}')]},
        {"role": "tool", "content": [{"type": "text", "text": "found"}], "tool_call_id": "c1"},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [STRICT],
    "answer": "5",
}


@pytest.mark.parametrize("change", [{}, {"tools": []}, {"tools": None}, {"tools": [STRICT["function"]]}])
def test_an_openai_row_comes_out_of_an_export_as_it_went_in(change):
    given = OPENAIS | change
    read = row(given)
    written = json.loads(encode_openai_row(read))
    assert {key: written[key] for key in given} == given
    assert written == json.loads(encode_row(read)), "ours to read again holds no less"
    assert dataset_hash([read]) == dataset_hash([msgspec.structs.replace(read, as_given={})]), "the version is of what is learnt from"


def test_what_was_changed_since_is_written_as_it_is_now():
    read = row(OPENAIS)
    shorter = json.loads(encode_openai_row(msgspec.structs.replace(read, messages=read.messages[-1:], tools=read.tools * 2)))
    assert shorter["messages"] == [{"role": "user", "content": "And now?"}]
    assert shorter["tools"] == [read.tools[0].as_openai()] * 2


def test_openai_leaves_arguments_empty_and_parameters_null():
    said = [{"role": "assistant", "tool_calls": [calling("")]}, {"role": "user", "content": "And now?"}]
    given = {"messages": said, "tools": [{"type": "function", "function": {"name": "search", "description": None, "parameters": None}}]}
    read = row(given)
    assert read.messages[0].tool_calls == (ToolCall("c1", "search", {}),) and read.tools == (ToolSpec("search"),)
    written = json.loads(encode_openai_row(read))
    assert {key: written[key] for key in given} == given


def test_keys_that_are_not_ours_are_kept_and_seen_by_graders():
    read = row({**SEED_ROW, "human_ceiling": 0.9})
    assert read.extra == {"human_ceiling": 0.9} and read.item()["human_ceiling"] == 0.9


texts = st.text(st.characters(codec="utf-8"), max_size=20)
filled = texts.map(lambda text: "x" + text)
json_values = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows = st.builds(
    Row,
    id=filled,
    prompt=filled,
    reference_answer=filled | st.integers(),
    expected=st.builds(
        Expected, st.none() | st.floats(0, 1), st.none() | filled | st.lists(filled).map(tuple), st.lists(filled).map(tuple)
    ),
    tools=st.lists(st.builds(ToolSpec, filled, texts, st.dictionaries(texts, json_values, max_size=2)), max_size=2).map(tuple),
    metadata=st.dictionaries(texts, json_values, max_size=3),
    messages=st.just(()) | st.lists(st.builds(Message, st.just("user"), filled), min_size=1, max_size=3).map(tuple),
    extra=st.dictionaries(texts.map(lambda text: "x_" + text), json_values, max_size=3),
)


@settings(max_examples=100)
@given(rows)
def test_any_row_survives_writing_and_reading_and_the_bytes_stay_the_same(written):
    line = encode_row(written)
    assert "\n" not in line
    read = row(json.loads(line))
    assert read == written
    assert encode_row(read) == line


@settings(max_examples=100)
@given(rows)
def test_any_row_survives_openais_shape_for_model_and_grader_alike(written):
    line = encode_openai_row(written)
    read = row(json.loads(line))
    assert next(iter(json.loads(line))) == "messages"
    assert (read.opening(), read.tools, read.item()) == (written.opening(), written.tools, written.item())
    assert encode_openai_row(read) == line


def test_openais_shape_reserves_messages_and_tools_and_keeps_the_rest_as_item(tmp_path):
    write_openai_rows(tmp_path / "rows.jsonl", [row({**SEED_ROW, "human_ceiling": 0.9})])
    (line,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["messages"] == [{"role": "user", "content": SEED_ROW["prompt"]}]
    assert written["tools"] == SEED_ROW["tools"]
    kept = ("id", "reference_answer", "expected", "metadata")
    assert {key: held for key, held in written.items() if key not in ("messages", "tools")} == {
        **{key: SEED_ROW[key] for key in kept},
        "human_ceiling": 0.9,
    }
    (read,) = read_rows(tmp_path / "rows.jsonl")
    assert read.item()["human_ceiling"] == 0.9


def shuffled(value: object) -> object:
    """The same JSON with every object's keys in the opposite order."""
    if isinstance(value, dict):
        return {key: shuffled(held) for key, held in reversed(value.items())}
    return [shuffled(held) for held in value] if isinstance(value, list) else value


@settings(max_examples=50)
@given(rows)
def test_the_hash_does_not_depend_on_the_order_of_keys(written):
    assert dataset_hash([row(shuffled(json.loads(encode_row(written))))]) == dataset_hash([written])


def test_the_version_says_which_rows_are_in_which_split():
    one, two = row(SEED_ROW), row({**SEED_ROW, "id": "row-2"})
    versions = {
        version_of({"train": train, "val": val}) for train, val in (([one], [two]), ([two], [one]), ([one, two], []), ([], [one, two]))
    }
    assert len(versions) == 4
    assert version_of({"val": [two], "train": [one]}) == version_of({"train": [one], "val": [two]})


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    written = [row(SEED_ROW), row({**SEED_ROW, "id": "row-2", "prompt": "Ünicode\u2028?"})]
    write_rows(path, written)
    before = path.read_bytes()
    assert read_rows(path) == written
    write_rows(path, read_rows(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


def test_a_disk_that_takes_no_more_is_the_users_to_mend_and_keeps_no_half_of_a_file(tmp_path):
    path, before = tmp_path / "rows.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_rows(path, [row(SEED_ROW)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*rows\.jsonl: File too large"):
            write_rows(path, [row({**SEED_ROW, "note": "x" * 2000})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [held.name for held in tmp_path.iterdir()] == ["rows.jsonl"]
    assert read_rows(path) == [row(SEED_ROW)]


def test_reading_tells_every_fault_and_a_missing_file_is_the_users_to_mend(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a"}\n{\n')
    with pytest.raises(FaultsFound) as caught:
        read_rows(path)
    assert [fault.where for fault in caught.value.faults] == [f"{path}:1", f"{path}:1", f"{path}:2"]
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path / "none.jsonl")


def test_the_dataset_hash_sees_every_change_and_the_order():
    one, two = row(SEED_ROW), row({**SEED_ROW, "id": "row-2"})
    hashes = {dataset_hash(rows) for rows in ([], [one], [one, two], [two, one], [row({**SEED_ROW, "note": 1})])}
    assert len(hashes) == 5 and all(len(h) == 16 for h in hashes)
    assert dataset_hash([row(SEED_ROW)]) == dataset_hash([one])
