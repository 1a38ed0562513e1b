"""A turn is an answer, tool calls, or malformed; nothing in between and never an exception."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.rollouts.parsing import Answer, Calls, Malformed, parse_turn


def call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


SEARCH = call('{"name": "search", "arguments": {"query": "Atlas Bank"}}')
READ = call('{"name": "read", "arguments": {"path": "a.html"}}')


def test_plain_text_is_the_answer():
    assert parse_turn(" 13.4% \n") == Answer("13.4%")


def test_one_call():
    assert parse_turn(SEARCH) == Calls((("search", {"query": "Atlas Bank"}),))


def test_parallel_calls_keep_their_order_and_prose_around_them_is_allowed():
    assert parse_turn(f"Let me look.\n{SEARCH}\n{READ}") == Calls((("search", {"query": "Atlas Bank"}), ("read", {"path": "a.html"})))


def test_arguments_written_as_a_json_string_are_read():
    assert parse_turn(call('{"name": "read", "arguments": "{\\"path\\": \\"a\\"}"}')) == Calls((("read", {"path": "a"}),))


def test_arguments_may_be_left_out():
    assert parse_turn(call('{"name": "list"}')) == Calls((("list", {}),))


def test_thoughts_are_not_part_of_the_answer_nor_calls():
    assert parse_turn(f"<think>maybe {SEARCH}?</think>\n13.4%") == Answer("13.4%")


LLAMA = '{"name": "search", "parameters": {"query": "Atlas Bank"}}'


@pytest.mark.parametrize("turn", [LLAMA, f"<|python_tag|>{LLAMA}", f"\n{LLAMA} ", LLAMA.replace("{", '{"type": "function", ', 1)])
def test_llamas_call_is_the_whole_turn(turn: str):
    assert parse_turn(turn) == Calls((("search", {"query": "Atlas Bank"}),))


def test_llama_may_make_several_calls_with_a_semicolon_between():
    assert parse_turn(f"{LLAMA}; {LLAMA}") == Calls((("search", {"query": "Atlas Bank"}),) * 2)


@pytest.mark.parametrize(
    "turn",
    [
        f"I would call {LLAMA}",
        '{"name": "Atlas Bank", "revenue": 842}',
        '{"name": "search", "arguments": {"query": "x"}}',
        '{"name": "search", "parameters": "x"}',
        "{}",
        "[1, 2]",
    ],
)
def test_other_json_is_an_answer(turn: str):
    assert parse_turn(turn) == Answer(turn)


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("<tool_call>\n{", "pair up"),
        ("13.4%</tool_call>", "pair up"),
        (f"<tool_call>{SEARCH}", "pair up"),
        (call("{name: search}"), "not JSON"),
        (call('["search"]'), "no name"),
        (call('{"name": 3}'), "no name"),
        (call('{"name": "read", "arguments": ["a"]}'), "not an object"),
        (call('{"name": "read", "arguments": "a"}'), "not JSON"),
        (f"{SEARCH}\n{call('oops')}", "not JSON"),
        (f"{LLAMA} and so on", "not JSON"),
        ("<|python_tag|>search('Atlas Bank')", "not JSON"),
    ],
)
def test_what_cannot_be_read_is_malformed_and_says_why(turn: str, why: str):
    said = parse_turn(turn)
    assert isinstance(said, Malformed)
    assert why in said.why


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", '{"name": "x"}', "{", "word", SEARCH, "<think>", "</think>", "<|python_tag|>", LLAMA, ";"]
        )
    ).map("".join)
)
def test_any_text_is_exactly_one_of_the_three(text: str):
    assert isinstance(parse_turn(text), Answer | Calls | Malformed)
