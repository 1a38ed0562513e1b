"""A trace of any agent, in either convention, is the card that a reviewer would have written from it."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, ToolResult
from observability.otlp.cards import card_of, cards_of
from observability.otlp.spans import Event, Received, Span, merge

ASKED = "What was the operating margin?"


def said(role, *parts):
    return {"role": role, "parts": list(parts)}


def text(content):
    return {"type": "text", "content": content}


def call(call_id, **arguments):
    return {"type": "tool_call", "id": call_id, "name": "search", "arguments": arguments}


@pytest.fixture
def genai(make_span):
    """An agent that searched twice in parallel, one of which failed, then answered."""
    resource = {"service.name": "filings-desk", "service.version": "2.1"}
    spoke = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "o",
        "gen_ai.response.model": "o-2026",
    }
    ran = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
    return [
        make_span(
            1,
            0,
            500,
            name="invoke_agent desk",
            resource=resource,
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "desk",
                "gen_ai.conversation.id": "c-9",
                "gen_ai.tool.definitions": json.dumps(
                    [{"type": "function", "name": "search", "description": "By words.", "parameters": {"type": "object"}}]
                ),
                "rft.tenant": "somebody else",
            },
        ),
        make_span(
            2,
            10,
            100,
            parent=1,
            attributes=spoke
            | {
                "gen_ai.system_instructions": json.dumps([text("Be exact.")]),
                "gen_ai.input.messages": json.dumps([said("user", text(ASKED))]),
                "gen_ai.output.messages": json.dumps(
                    [said("assistant", {"type": "reasoning", "content": "Look."}, text("I look."), call("a", q="x"), call("b", q="y"))]
                ),
                "gen_ai.usage.input_tokens": 50,
                "gen_ai.usage.output_tokens": 9,
            },
        ),
        make_span(3, 120, 30, parent=1, attributes=ran | {"gen_ai.tool.call.id": "a", "gen_ai.tool.call.result": '{"margin": "13.4%"}'}),
        make_span(4, 121, 20, parent=1, failed=True, attributes=ran | {"gen_ai.tool.call.id": "b", "error.type": "timeout"}),
        make_span(
            5,
            160,
            80,
            parent=1,
            attributes=spoke
            | {
                "gen_ai.output.messages": json.dumps([said("assistant", text("13.4%"))]),
                "gen_ai.usage.input_tokens": 90,
                "gen_ai.usage.output_tokens": 4,
            },
            events=(
                Event(
                    "gen_ai.evaluation.result",
                    0,
                    {
                        "gen_ai.evaluation.name": "exact",
                        "gen_ai.evaluation.score.value": 1.0,
                        "gen_ai.evaluation.score.label": "Pass",
                        "gen_ai.evaluation.explanation": "same",
                    },
                ),
            ),
        ),
    ]


def test_a_genai_trace_is_read_whole(genai):
    trace = card_of(merge(genai), "acme")
    card, rollout = trace.card, trace.card.rollout
    assert (card.tenant, card.kind, card.run_id, card.step, card.row_id) == ("acme", "production", "filings-desk", None, "")
    assert card.started_at == rollout.started_at == "2026-11-21T04:00:12.250000+00:00"
    assert rollout.opening == (Message("system", "Be exact."), Message("user", ASKED))
    assert rollout.tools == (ToolSpec("search", "By words.", {"type": "object"}),)
    looked, answered = rollout.turns
    assert looked.text == "<think>Look.</think>\nI look."
    assert looked.calls == (ToolCall("a", "search", {"q": "x"}), ToolCall("b", "search", {"q": "y"}))
    assert looked.results == {"a": ToolResult("a", '{"margin": "13.4%"}', None, 0.03), "b": ToolResult("b", "", "timeout", 0.02)}
    assert (answered.text, answered.calls, answered.results) == ("13.4%", (), {})
    assert (rollout.ending, rollout.answer, rollout.seconds) == (Ending.ANSWERED, "13.4%", 0.5)
    assert card.cost == Cost(context_tokens=140, sampled_tokens=13, tool_calls=2, seconds=0.5, tool_seconds=0.05)  # 50 + 90, 9 + 4
    assert card.versions == Versions(code="2.1", checkpoint="openai/o-2026")
    assert card.metadata == {"conversation_id": "c-9", "agent": "desk", "service": "filings-desk"}
    assert card.grade == Grade(GraderRef("exact", "untold", ""), 1.0, True, {"score": 1.0, "label": "Pass", "explanation": "same"})
    assert [dated.grade for dated in trace.grades] == [card.grade]
    assert trace.grades[0].graded_at.isoformat() == "2026-11-21T04:00:12.490000+00:00"  # the end of the span: 12.25 + 0.16 + 0.08
    assert trace.spans == tuple(genai)


@pytest.fixture
def openinference(make_span):
    spoke = {"openinference.span.kind": "LLM", "llm.model_name": "tiny", "llm.provider": "local"}
    first = {
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "Be exact.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.contents.0.message_content.text": ASKED,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "I look.",
        "llm.output_messages.0.message.tool_calls.0.tool_call.id": "a",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "search",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"q": "x"}',
        "llm.tools.0.tool.json_schema": json.dumps({"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}),
        "llm.token_count.prompt": 50,
        "llm.token_count.completion": 9,
    }
    second = {"llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "13.4%"}
    return [
        make_span(1, 0, 500, attributes={"openinference.span.kind": "CHAIN", "session.id": "s-1", "output.value": '{"state": 1}'}),
        make_span(2, 1, 490, parent=1, attributes={"openinference.span.kind": "AGENT", "agent.name": "desk"}),
        make_span(3, 10, 100, parent=2, attributes=spoke | first),
        make_span(
            4,
            120,
            30,
            parent=2,
            name="search",
            attributes={
                "openinference.span.kind": "TOOL",
                "tool.name": "search",
                "input.value": '{"q": "x"}',
                "output.value": "margin 13.4%",
            },
        ),
        make_span(5, 160, 80, parent=2, attributes=spoke | second | {"session.id": "s-1"}),
    ]


def test_an_openinference_trace_is_read_whole(openinference):
    card = card_of(merge(openinference), "acme").card
    rollout = card.rollout
    assert rollout.opening == (Message("system", "Be exact."), Message("user", ASKED))
    assert rollout.tools == (ToolSpec("search", "", {"type": "object"}),)
    assert rollout.turns[0].calls == (ToolCall("a", "search", {"q": "x"}),)
    assert rollout.turns[0].results == {"a": ToolResult("a", "margin 13.4%", None, 0.03)}  # no id was told: found by the tool's name
    assert (rollout.ending, rollout.answer, rollout.seconds) == (Ending.ANSWERED, "13.4%", 0.49)  # the agent's, not the chain's
    assert (card.cost.context_tokens, card.cost.sampled_tokens) == (50, 9)
    assert card.versions.checkpoint == "local/tiny"
    assert card.metadata == {"agent": "desk"}


def chat(make_span, number, after, *parts, parent=1, **attributes):
    spoken = json.dumps([said("assistant", *parts)])
    return make_span(number, after, 5, parent, attributes={"gen_ai.operation.name": "chat", "gen_ai.output.messages": spoken} | attributes)


def tool(make_span, number, after, parent=1, lasts=5, **attributes):
    told = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search", "gen_ai.tool.call.result": f"result {number}"}
    return make_span(number, after, lasts, parent, attributes=told | {f"gen_ai.tool.{name}": value for name, value in attributes.items()})


def turns(*spans):
    return card_of(merge(spans), "acme").card.rollout.turns


def test_a_call_watched_by_two_libraries_counts_once(make_span):
    inner = chat(make_span, 3, 11, text("hello"), parent=2)
    assert [turn.text for turn in turns(chat(make_span, 2, 10, text("hello")), inner)] == ["hello"]


def test_the_inner_work_of_a_tool_is_no_turn_of_the_agents(make_span):
    spans = [
        chat(make_span, 2, 0, call("a")),
        tool(make_span, 3, 10, **{"call.id": "a"}),
        chat(make_span, 4, 11, text("to myself"), parent=3),
    ]
    (turn,) = turns(*spans, tool(make_span, 5, 12, parent=4))
    assert turn.results["a"].output == "result 3"


def test_the_same_call_id_in_every_turn_is_kept_apart(make_span):
    spans = [chat(make_span, 2, 0, call("call_0", q=1)), chat(make_span, 4, 20, call("call_0", q=2))]
    first, second = turns(*spans, tool(make_span, 3, 10, **{"call.id": "call_0"}), tool(make_span, 5, 30, **{"call.id": "call_0"}))
    assert (first.results["call_0"].output, second.results["call_0"].output) == ("result 3", "result 5")


def test_calls_of_one_tool_without_ids_are_answered_in_their_order(make_span):
    (turn,) = turns(chat(make_span, 2, 0, call("", q=1), call("", q=2)), tool(make_span, 3, 10), tool(make_span, 4, 11))
    assert [(asked.arguments["q"], turn.results[asked.call_id].output) for asked in turn.calls] == [(1, "result 3"), (2, "result 4")]


def test_a_call_that_ran_again_was_tried_again(make_span):
    spans = [tool(make_span, 3, 10, lasts=5, **{"call.id": "a"}), tool(make_span, 4, 20, lasts=7, **{"call.id": "a"})]
    (turn,) = turns(chat(make_span, 2, 0, call("a")), *spans)
    assert turn.results == {"a": ToolResult("a", "result 4", None, 0.012, 2)}  # 5 ms + 7 ms


def test_a_tool_that_nobody_asked_for_makes_its_call(make_span):
    (turn,) = turns(chat(make_span, 2, 0, text("words only")), tool(make_span, 3, 10, **{"call.arguments": "not json"}))
    assert turn.calls == (ToolCall(f"{3:016x}", "search", {"value": "not json"}),)
    (alone,) = turns(tool(make_span, 3, 10))
    assert (alone.text, list(alone.results)) == ("", [f"{3:016x}"])


def test_a_result_that_no_span_tells_is_read_from_what_the_model_was_told_next(make_span):
    heard = json.dumps([said("tool", {"type": "tool_call_response", "id": "a", "response": {"margin": 13.4}})])
    first, _ = turns(chat(make_span, 2, 0, call("a")), chat(make_span, 3, 10, text("so"), **{"gen_ai.input.messages": heard}))
    assert first.results == {"a": ToolResult("a", '{"margin":13.4}')}


def test_a_trace_with_no_agent_is_carded_by_its_root(make_span):
    card = card_of(
        (make_span(1, 0, 100, attributes={"input.value": ASKED, "output.value": "13.4%"}), make_span(2, 1, 5, parent=1)), "acme"
    ).card
    assert card.rollout.opening == (Message("user", ASKED),)
    assert (card.rollout.answer, card.rollout.turns, card.run_id) == ("13.4%", [], "otlp")


def test_the_topmost_agent_is_the_cards(make_span):
    agents = [
        make_span(n, after, lasts, parent, attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": f"agent {n}"})
        for n, after, lasts, parent in ((3, 0, 10, 2), (2, 0.5, 90, 1))
    ]
    card = card_of(merge([make_span(1, 0, 100), *agents]), "acme").card  # the sub-agent's clock is behind
    assert card.metadata["agent"] == "agent 2"


@pytest.mark.parametrize(
    ("changed", "ending", "reason"),
    [
        ({"failed": True, "message": "no quota"}, Ending.INFRA_FAILED, "no quota"),
        ({"end_ns": 0}, None, "its end has not come yet"),
        ({"parent_id": "f" * 16, "attributes": {}}, None, "the span that holds the others has not come yet"),
        ({}, Ending.OUT_OF_BUDGET, "tokens: length"),
    ],
)
def test_how_it_ended(make_span, changed, ending, reason):
    """The model's last word was cut off; what befell the agent's span comes first."""
    agent = make_span(1, 0, 100, attributes={"gen_ai.operation.name": "invoke_agent"})
    grade = Event("gen_ai.evaluation.result", 5, {"gen_ai.evaluation.name": "x", "gen_ai.evaluation.score.value": 1})
    agent = msgspec.structs.replace(agent, events=(grade,), **changed)
    cut = chat(make_span, 2, 10, text("The marg"), **{"gen_ai.response.finish_reasons": ["length"]})
    card = card_of(merge([agent, cut]), "acme").card
    assert (card.rollout.ending, card.rollout.reason, card.rollout.answer) == (ending, reason, "")
    assert (card.grade is None) == (ending is Ending.INFRA_FAILED)  # what infrastructure spoiled has no grade


@pytest.mark.parametrize(
    ("told", "reward", "passed", "errors"),
    [
        ({"score.value": 0}, 0.0, None, {}),
        ({"score.value": 4.0, "score.label": "fail"}, None, False, {"not_0_to_1": 4.0}),
        ({"score.value": "high"}, None, None, {"not_0_to_1": "high"}),
        ({"score.label": "relevant"}, None, None, {}),
    ],
)
def test_a_score_of_an_unknown_scale_is_no_reward(make_span, told, reward, passed, errors):
    attributes = {"gen_ai.evaluation.name": "judge"} | {f"gen_ai.evaluation.{name}": value for name, value in told.items()}
    grade = card_of((make_span(1, attributes=attributes),), "acme").card.grade
    assert (grade.reward, grade.passed, grade.errors) == (reward, passed, errors)


def test_what_cannot_be_stored_is_rejected_and_the_rest_is_taken(make_span, now):
    day = 24 * 3600 * 1000
    bad = [
        make_span(2, trace_id="0" * 32),
        make_span(3, span_id=""),
        make_span(4, start_ns=0),
        make_span(5, 2 * day),
    ]
    cards = cards_of(Received((make_span(1), *bad), ()), "acme", now)
    assert [trace.spans for trace in cards.cards] == [(make_span(1),)]
    assert [each.why.split(",")[0][:26] for each in cards.rejected] == [
        "its trace id is '000000000",
        "its span id is ''",
        "it has no start time",
        "it lies in the future: set",
    ]


def test_a_clock_that_stepped_back_makes_no_negative_time(make_span):
    spans = [make_span(1, 100, -50, attributes={"gen_ai.operation.name": "invoke_agent"}), tool(make_span, 2, 10, lasts=-5)]
    card = card_of(merge(spans), "acme").card
    assert (card.cost.seconds, card.cost.tool_seconds) == (0.0, 0.0)


def test_our_own_names_are_believed_where_they_fit(make_span):
    fits = "01a1fc43-01da-7abc-9def-000000000001"  # 2026-11-21, as the spans
    for sent, kept in ((fits, True), ("card-1", False), (fits.replace("-7abc", "-4abc"), False), ("01f1fc43" + fits[8:], False)):
        assert (card_of((make_span(1, attributes={"rft.rollout_id": sent}),), "acme").card.rollout_id == sent) is kept
    odd = {
        "rft.kind": "magic",
        "rft.step": "7",
        "rft.sample_index": -1,
        "rft.limits": "[]",
        "rft.cost": '{"tool_calls": 99999999999}',
        "rft.seed": "1e99",
    }
    card = card_of((make_span(1, attributes=odd),), "acme").card
    assert (card.kind, card.step, card.sample_index, card.cost.tool_calls, card.versions.seed) == ("production", None, 0, 0, None)


KNOWN = [
    "gen_ai.operation.name",
    "openinference.span.kind",
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.definitions",
    "gen_ai.tool.call.id",
    "gen_ai.tool.name",
    "gen_ai.tool.call.arguments",
    "gen_ai.tool.call.result",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.evaluation.name",
    "gen_ai.evaluation.score.value",
    "gen_ai.evaluation.score.label",
    "gen_ai.response.finish_reasons",
    "llm.input_messages.0.message.role",
    "llm.output_messages.x.message",
    "llm.output_messages.0.message.tool_calls.0.tool_call.id",
    "llm.tools.0.tool.json_schema",
    "llm.output_messages.0.message.contents.0",
    "input.value",
    "output.value",
    "error.type",
    "session.id",
    "rft.attempts",
    "rft.seconds",
    "rft.context_tokens",
    "rft.cost",
    "rft.limits",
    "rft.metadata",
    "rft.step",
    "rft.ending",
    "rft.seed",
    "rft.rollout_seed",
    "rft.grade.parts",
    "rft.rollout_id",
    "gen_ai.agent.name",
]
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [
            "chat",
            "invoke_agent",
            "execute_tool",
            "LLM",
            "{",
            "[[",
            "[1]",
            '{"a":1}',
            '[{"parts":[{"type":"tool_call"}]}]',
            "answered",
            "9" * 400,
            "[" * 3000,
            "",
        ]
    ),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "parts",
                    "type",
                    "content",
                    "id",
                    "name",
                    "arguments",
                    "function",
                ]
            ),
            below,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.integers(0, 4), st.dictionaries(st.sampled_from(KNOWN), ODD, max_size=8)), min_size=1, max_size=5))
def test_no_attributes_break_the_reader_and_every_card_can_be_written_down(drawn):
    spans = [
        Span(
            trace_id="01" * 16,
            span_id=f"{n:016x}",
            parent_id=f"{parent:016x}" if parent else "",
            start_ns=n,
            end_ns=9,
            attributes=attributes,
            events=(Event("e", 3, attributes),),
        )
        for n, (parent, attributes) in enumerate(drawn, 1)
    ]
    trace = card_of(merge(spans), "acme")
    assert msgspec.json.decode(msgspec.json.encode(trace), type=type(trace)) == trace
    assert {call.call_id for turn in trace.card.rollout.turns for call in turn.calls} >= {
        i for turn in trace.card.rollout.turns for i in turn.results
    }
