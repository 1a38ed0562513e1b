"""A card goes out as a trace and comes back as the same card, but for what OTLP does not carry."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn
from observability.otlp.cards import card_of, cards_of
from observability.otlp.export import spans_of
from observability.otlp.json_form import read_json, write_json
from observability.otlp.protobuf import read_protobuf, write_protobuf
from observability.records import DatedGrade, without_token_ids

ID = "01a1fc43-01da-7abc-9def-000000000001"


def there_and_back(card, now, read=read_json, write=write_json):
    (trace,) = cards_of(read(write(spans_of(card))), card.tenant, now).cards
    return trace.card


@pytest.mark.parametrize(("read", "write"), [(read_json, write_json), (read_protobuf, write_protobuf)])
def test_everything_but_token_ids_and_log_probabilities_comes_back(make_card, now, read, write):
    card = make_card(ID, item={"expected": {"tolerance_rel": 0.01}, "extra": [1, None, "ü"]})
    assert card.rollout.turns[0].sampled_ids  # what is left behind
    assert there_and_back(card, now, read, write) == without_token_ids(card)


def changed(card, **rollout):
    return msgspec.structs.replace(card, rollout=msgspec.structs.replace(card.rollout, **rollout))


@pytest.mark.parametrize(
    "ending",
    [
        (Ending.OUT_OF_BUDGET, "turns: 2 taken", ""),
        (Ending.MALFORMED, "no JSON", ""),
        (Ending.INFRA_FAILED, "tool:search: gone", "tool:search"),
    ],
)
def test_every_ending_comes_back(make_card, now, ending):
    card = make_card(ID, grade=None)
    card = changed(card, ending=ending[0], reason=ending[1], failed_part=ending[2], answer="", turns=card.rollout.turns[:1])
    assert there_and_back(card, now) == without_token_ids(card)


def test_a_card_with_almost_nothing_in_it_comes_back(make_card, now):
    card = make_card(ID, run_id="", row_id="", step=None, metadata={}, reference_answer=None, grade=None, advantage=None)
    card = changed(card, opening=(), tools=(), turns=[], answer="", reason="")
    assert there_and_back(card, now) == card


def test_odd_words_and_calls_come_back(make_card, now):
    calls = (ToolCall("1", "search", {"q": ["a", {"b": None}]}), ToolCall("2", "read", {}), ToolCall("3", "read", {"path": "\0"}))
    results = {"2": ToolResult("2", '{"not": "parsed"}', "policy_denied", 1 / 3, 3), "1": ToolResult("1", "", None, 1e-9)}
    turns = [
        Turn("", calls=calls, results=results),
        Turn("<think>hm</think> [not json", context_tokens=5),
        Turn('{"answer": 1}', sampled_tokens=2),
    ]
    opening = (
        Message("user", ""),
        Message("assistant", "", (ToolCall("0", "read", {"n": 1}),)),
        Message("tool", "[1]", call_id="0"),
        Message("user", "go on"),
    )
    card = changed(make_card(ID), turns=turns, opening=opening, answer="  1 ")
    assert there_and_back(card, now) == card


def test_what_otlp_cannot_hold_is_exactly_this(make_card, now):
    """Half a surrogate pair becomes the replacement character; a start is told in UTC; one that is missing is the id's own time."""
    card = changed(make_card(ID), answer="a\ud800")
    assert there_and_back(card, now).rollout.answer == "a\ufffd"
    card = changed(make_card(ID, started_at="2026-11-21T05:00:12.250000+01:00"), started_at="2026-11-21T05:00:12.250000+01:00")
    assert there_and_back(card, now).started_at == "2026-11-21T04:00:12.250000+00:00"
    card = changed(make_card(ID, started_at=""), started_at="")
    assert there_and_back(card, now).started_at == "2026-11-21T04:00:12.250000+00:00"  # 0x01a1fc4301da ms
    foreign_id = there_and_back(make_card("card-1"), now).rollout_id
    assert foreign_id[14] == "7" and foreign_id == there_and_back(make_card("card-1"), now).rollout_id


def test_every_grade_goes_along_with_its_grader(make_card):
    def dated(version, reward, minute):
        grade = Grade(GraderRef("judge", version, version * 8), reward, None, {"why": ["x"]}, {"refused": True} if reward is None else {})
        return DatedGrade(grade, dt.datetime(2026, 11, 21, 5, minute, 0, 1, tzinfo=dt.UTC))

    grades = (dated("1", 0.5, 1), dated("2", None, 2), dated("3", 0.25, 3))
    trace = card_of(spans_of(make_card(ID), grades), "local")
    assert trace.grades == grades
    assert trace.card.grade == grades[-1].grade


def test_the_trace_reads_as_genai_to_others(make_card):
    """What a peer that knows the conventions alone finds in it."""
    agent, searched, *tools, answered = spans_of(make_card(ID))
    assert agent.trace_id == ID.replace("-", "") and agent.parent_id == ""
    assert {span.parent_id for span in (searched, *tools, answered)} == {agent.span_id}
    assert [span.attributes["gen_ai.operation.name"] for span in (agent, searched, *tools, answered)] == [
        "invoke_agent",
        "chat",
        "execute_tool",
        "execute_tool",
        "chat",
    ]
    assert agent.end_ns - agent.start_ns == 1_930_000_000
    assert [span.end_ns - span.start_ns for span in tools] == [12_000_000, 250_000_000]
    assert searched.attributes["gen_ai.usage.input_tokens"] == 3
    assert msgspec.json.decode(answered.attributes["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "The operating margin was 13.4%."}]}
    ]
    starts = [span.start_ns for span in (agent, searched, *tools, answered)]
    assert starts == sorted(set(starts))
