"""Worked examples as they are read: each fault with its line, all at once."""

import json

import pytest

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.messages import ToolCall
from agent_rft.datasets.examples import parse_examples

ASKED = {"role": "user", "content": "How many g are 5 kg?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "convert", "arguments": '{"amount": "5"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RETURNED = {"role": "tool", "tool_call_id": "c1", "content": "5000 g"}
ANSWERED = {"role": "assistant", "content": "5000 g"}


def lines(*conversations) -> bytes:
    return b"".join(json.dumps({"messages": messages}).encode() + b"\n" for messages in conversations)


def test_a_conversation_is_read_with_its_calls():
    ((asked, called, returned, answered),) = parse_examples("e.jsonl", lines([ASKED, CALLED, RETURNED, ANSWERED]))
    assert called.tool_calls == (ToolCall("c1", "convert", {"amount": "5"}),)
    assert [asked.role, returned.role, answered.content] == ["user", "tool", "5000 g"]


def test_every_fault_is_told_with_its_line():
    content = (
        lines([ASKED, ANSWERED]) + b"{broken\n\n[1]\n" + lines([ASKED], [ASKED, {"role": "robot", "content": "x"}], [], [ASKED, ANSWERED])
    )
    with pytest.raises(FaultsFound) as found:
        parse_examples("e.jsonl", content)
    assert [str(fault).split(" (")[0] for fault in found.value.faults] == [
        "e.jsonl:2: column 2: broken JSON: Expecting property name enclosed in double quotes",
        "e.jsonl:4: not an object but a list",
        "e.jsonl:5: the last message is the user's",
        "e.jsonl:6: messages[1].role is 'robot'",
        "e.jsonl:7: messages is an empty list",
    ]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([ASKED, RETURNED, ANSWERED], "messages[1] is a tool's, and nothing was called"),
        ([ASKED, CALLED, ANSWERED], "messages[2] should be a tool's: messages[1] calls one"),
        ([ASKED, ANSWERED, ANSWERED], "messages[2] is the assistant's, and nobody spoke before it"),
        ([ANSWERED], "messages[0] is the assistant's, and nobody spoke before it"),
    ],
)
def test_an_order_that_no_rollout_has_is_a_fault(messages, told):
    with pytest.raises(FaultsFound) as found:
        parse_examples("e.jsonl", lines(messages))
    assert told in [fault.what for fault in found.value.faults]


def test_an_empty_file_is_a_fault():
    with pytest.raises(FaultsFound) as found:
        parse_examples("e.jsonl", b"\n")
    assert "e.jsonl: holds no examples" in str(found.value)
