"""What is written fast is what Python's own json writes and reads."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.messages import Message, ToolCall
from observability.texts import from_json, storable, to_json

NUMBERS = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.text() | st.text(st.characters(categories=["Cs"])) | NUMBERS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.builds(
    Message,
    st.just("user"),
    st.text(),
    st.lists(st.builds(ToolCall, st.text(max_size=3), st.text(max_size=3), st.dictionaries(st.text(max_size=3), VALUES, max_size=2))).map(
        tuple
    ),
)


@settings(max_examples=300)
@given(VALUES, st.booleans())
def test_json_is_read_as_pythons_own_reads_it(value: Any, escaped: bool):
    text = json.dumps(value, ensure_ascii=escaped)
    read, own = from_json(text), json.loads(text)
    assert (repr(read), read) == (repr(own), own)


@pytest.mark.parametrize(("text", "read"), [("1e400", math.inf), ('"\\ud83d"', "\ud83d"), ("[-0.0]", [-0.0]), ("-1E-7", -1e-7)])
def test_what_only_pythons_own_reads_is_read(text: str, read: Any):
    assert from_json(text) == read == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", "'a'", "nul"])
def test_what_is_none_is_refused(text: str):
    with pytest.raises(ValueError):
        from_json(text)


@settings(max_examples=300)
@given(st.lists(MESSAGES, max_size=2).map(tuple))
def test_records_are_written_as_what_they_are_made_of(messages: tuple[Message, ...]):
    """By the name of their hash stand texts that earlier versions wrote from plain values."""
    assert to_json(messages) == to_json(msgspec.to_builtins(messages))
    assert from_json(storable(to_json(messages))) == json.loads(storable(to_json(messages)))
