"""The rollout machine: every way a rollout goes, and the promises that hold whatever happens."""

import json
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.events import AskModel, CallTools, Event, Finish, InfraFailed, ModelSpoke, TimeUp, ToolReturned
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult
from agent_rft.rollouts.machine import advance, begin, waiting_for


def new_rollout(**limits: float) -> Rollout:
    return Rollout("r-1", (Message("user", "Q?"),), (), Limits(**limits), seed=7)


def calls(*names: str) -> str:
    return "\n".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in names)


def spoke(text: str, stop: str = "stop", context: int = 3, sampled: int = 5) -> ModelSpoke:
    return ModelSpoke(text, stop, list(range(context)), list(range(sampled)), [-0.5] * sampled)


def returned(call_id: str, output: str = "found") -> ToolReturned:
    return ToolReturned(ToolResult(call_id, output))


def test_an_answer_ends_it():
    rollout = new_rollout()
    ask = begin(rollout)
    assert isinstance(ask, AskModel)
    assert ask.new_messages == rollout.opening
    assert advance(rollout, spoke("13.4%")) == Finish("r-1", Ending.ANSWERED)
    assert rollout.answer == "13.4%"


def test_parallel_calls_are_answered_in_the_order_of_the_calls_whatever_returns_first():
    rollout = new_rollout()
    begin(rollout)
    command = advance(rollout, spoke(calls("search", "list")))
    assert isinstance(command, CallTools)
    first, second = (call.call_id for call in command.calls)
    assert advance(rollout, returned(second, "B")) is None
    ask = advance(rollout, returned(first, "A"))
    assert isinstance(ask, AskModel)
    assert [message.content for message in ask.new_messages] == ["A", "B"]
    assert [message.role for message in ask.conversation] == ["user", "assistant", "tool", "tool"]


def test_a_call_beyond_the_budget_is_not_made_and_neither_are_its_siblings():
    rollout = new_rollout(max_tool_calls=2)
    begin(rollout)
    assert advance(rollout, spoke(calls("a", "b", "c"))) == Finish("r-1", Ending.OUT_OF_BUDGET)
    assert rollout.tool_calls == 0
    assert "3 more asked for, 2 allowed" in rollout.reason


def test_calls_in_the_last_turn_are_not_made_because_no_turn_is_left_to_use_them():
    rollout = new_rollout(max_turns=1)
    begin(rollout)
    assert advance(rollout, spoke(calls("a"))) == Finish("r-1", Ending.OUT_OF_BUDGET)
    assert "turns" in rollout.reason


@pytest.mark.parametrize("stop", ["length", "no_room"])
def test_a_turn_that_was_cut_off_is_out_of_budget_even_if_it_reads_as_an_answer(stop: str):
    rollout = new_rollout()
    begin(rollout)
    assert advance(rollout, spoke("13.4%", stop)) == Finish("r-1", Ending.OUT_OF_BUDGET)
    assert rollout.answer == ""


def test_the_next_turn_may_write_what_is_left_of_the_tokens():
    rollout = new_rollout(max_trajectory_tokens=20, max_turn_tokens=10)
    ask = begin(rollout)
    assert (ask.max_tokens, ask.room) == (10, 20)
    advance(rollout, spoke(calls("a")))  # 3 + 5 tokens used
    ask = advance(rollout, returned("call-1-1"))
    assert (ask.max_tokens, ask.room) == (10, 12)


def test_an_unreadable_turn_is_the_models_fault():
    rollout = new_rollout()
    begin(rollout)
    assert advance(rollout, spoke("<tool_call>{")) == Finish("r-1", Ending.MALFORMED)


def test_time_up_while_the_model_speaks_is_its_budget_but_while_a_tool_hangs_it_is_ours():
    speaking, hanging = new_rollout(), new_rollout()
    begin(speaking)
    assert advance(speaking, TimeUp()) == Finish("r-1", Ending.OUT_OF_BUDGET)
    begin(hanging)
    advance(hanging, spoke(calls("search")))
    assert advance(hanging, TimeUp()) == Finish("r-1", Ending.INFRA_FAILED)
    assert hanging.failed_part == "tool:search"


def test_an_endpoint_that_parsed_the_calls_itself_is_believed():
    rollout = new_rollout()
    begin(rollout)
    command = advance(rollout, ModelSpoke("", calls=(("search", {"query": "x"}),), context_tokens=4, sampled_tokens=2))
    assert isinstance(command, CallTools)
    assert command.calls[0].arguments == {"query": "x"}
    assert rollout.total_tokens == 6


def test_late_and_doubled_news_changes_nothing():
    rollout = new_rollout()
    begin(rollout)
    advance(rollout, spoke(calls("a", "b")))
    assert advance(rollout, spoke("nobody asked")) is None
    advance(rollout, returned("call-1-1", "first"))
    assert advance(rollout, returned("call-1-1", "again")) is None
    assert rollout.turns[0].results["call-1-1"].output == "first"
    advance(rollout, InfraFailed("tool:b", "503"))
    assert advance(rollout, returned("call-1-2")) is None
    assert rollout.ending is Ending.INFRA_FAILED


# --- whatever happens ---------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["13.4%", "", "<tool_call>{", calls("a"), calls("a", "b"), calls("a", "b", "c"), calls("a") + "x"])
EVENTS = st.one_of(
    st.builds(spoke, TEXTS, st.sampled_from(["stop", "stop", "stop", "length", "no_room"]), st.integers(0, 9), st.integers(0, 9)),
    st.builds(lambda turn, i: returned(f"call-{turn}-{i}"), st.integers(1, 4), st.integers(1, 3)),
    st.just(TimeUp()),
    st.just(InfraFailed("tool:a", "503")),
)
MOSTLY_GOOD = st.one_of(st.builds(spoke, st.sampled_from([calls("a"), calls("a", "b")])), st.just("answer the tools"))


def feed(rollout: Rollout, event: Event | str) -> list[object]:
    if event == "answer the tools":
        return [advance(rollout, returned(call.call_id)) for call in waiting_for(rollout)]
    return [advance(rollout, event)]


@given(st.lists(EVENTS | MOSTLY_GOOD, max_size=30), st.integers(1, 4), st.integers(0, 4), st.integers(1, 60))
def test_any_events_end_in_one_ending_within_every_budget(events: list[Event | str], turns: int, tool_calls: int, tokens: int):
    rollout = new_rollout(max_turns=turns, max_tool_calls=tool_calls, max_trajectory_tokens=tokens)
    commands = [begin(rollout)]
    for event in [*events, TimeUp()]:
        commands += feed(rollout, event)
    assert rollout.ending is not None
    assert sum(isinstance(command, Finish) for command in commands) == 1
    sent = sum(len(command.calls) for command in commands if isinstance(command, CallTools))
    assert sent == rollout.tool_calls <= tool_calls
    assert len(rollout.turns) <= turns
    assert all(command.max_tokens <= command.room for command in commands if isinstance(command, AskModel))


@given(st.lists(EVENTS | MOSTLY_GOOD, max_size=12), st.integers(0, 12))
def test_a_rollout_pickled_and_restored_midway_goes_on_the_same(events: list[Event | str], cut: int):
    whole, torn = new_rollout(), new_rollout()
    begin(whole), begin(torn)
    for position, event in enumerate(events):
        if position == cut:
            torn = pickle.loads(pickle.dumps(torn))
            torn = msgspec.msgpack.decode(msgspec.msgpack.encode(torn), type=Rollout)
        assert feed(whole, event) == feed(torn, event)
    assert json.loads(msgspec.json.encode(whole)) == json.loads(msgspec.json.encode(torn))


@given(st.lists(st.builds(spoke, st.sampled_from([calls("a"), "13.4%"]), context=st.integers(1, 4), sampled=st.integers(1, 4)), max_size=5))
def test_tokens_are_kept_as_they_were_sampled(turns: list[ModelSpoke]):
    rollout = new_rollout()
    begin(rollout)
    heard: list[ModelSpoke] = []
    for said in turns:
        if rollout.ending is None:
            heard.append(said)
        advance(rollout, said)
        feed(rollout, "answer the tools")
    assert [turn.sampled_ids for turn in rollout.turns] == [said.sampled_ids for said in heard]
    assert [turn.context_ids for turn in rollout.turns] == [said.context_ids for said in heard]
    assert [turn.logprobs for turn in rollout.turns] == [said.logprobs for said in heard]
