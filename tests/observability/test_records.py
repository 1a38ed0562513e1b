"""A card taken apart into rows and put together again is the same card."""

from __future__ import annotations

import datetime as dt
import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult, Turn
from observability.records import RecordedCard, card_of, rows_of, without_token_ids

NOW = dt.datetime(2026, 11, 21, 4, 0, tzinfo=dt.UTC)
words = st.text(max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | words, lambda inner: st.lists(inner) | st.dictionaries(words, inner), max_leaves=5
)
objects = st.dictionaries(words, json_values, max_size=3)


@st.composite
def turns(draw) -> Turn:
    ids = draw(st.lists(st.sampled_from(["call-1", "call-2", "call-3"]), unique=True))
    calls = tuple(ToolCall(call_id, draw(words), draw(objects)) for call_id in ids)
    answered = [call_id for call_id in ids if draw(st.booleans())]  # the infrastructure may fail before the rest
    results = {call_id: ToolResult(call_id, draw(words), draw(st.none() | words), 0.5, draw(st.integers(1, 3))) for call_id in answered}
    sampled = draw(st.lists(st.integers(0, 99)))
    return Turn(draw(words), [1], sampled, [-0.5] * len(sampled), 1, len(sampled), calls, results)


@st.composite
def cards(draw) -> JobCard:
    started = draw(st.datetimes(min_value=dt.datetime(2000, 1, 1), timezones=st.just(dt.UTC))).isoformat()
    rollout = Rollout(
        "card-1",
        (Message("user", draw(words)),),
        (ToolSpec("search", draw(words), draw(objects)),),
        Limits(max_turns=draw(st.integers(1, 99))),
        draw(st.integers()),
        draw(st.lists(turns(), max_size=4)),
        draw(st.none() | st.sampled_from(Ending)),
        draw(words),
        draw(words),
        draw(words),
        started,
        1.5,
    )
    grade = st.builds(
        Grade, st.builds(GraderRef, words, words, words), st.none() | st.floats(0, 1), st.none() | st.booleans(), objects, objects
    )
    return JobCard(
        rollout_id="card-1",
        kind=draw(st.sampled_from(["prior", "train", "eval", "shadow", "production"])),
        tenant=draw(words),
        run_id=draw(words),
        step=draw(st.none() | st.integers()),
        row_id=draw(words),
        sample_index=draw(st.integers(0)),
        started_at=started,
        rollout=rollout,
        reference_answer=draw(json_values),
        metadata=draw(objects),
        item=draw(st.none() | objects),
        grade=draw(st.none() | grade),
        advantage=draw(st.none() | st.floats(-3, 3)),
        cost=Cost(context_tokens=draw(st.integers(0)), seconds=1.5),
        versions=Versions(code=draw(words), checkpoint=draw(words), seed=draw(st.none() | st.integers())),
    )


@settings(max_examples=60)
@given(cards())
def test_a_card_taken_apart_and_put_together_is_the_same_but_for_the_token_ids(card):
    rows = rows_of(RecordedCard(card, NOW))
    assert [step["position"] for step in rows.steps] == list(range(len(rows.steps)))
    back = card_of(rows.card, rows.steps, rows.grades, rows.blobs)
    assert back.card == without_token_ids(card)
    assert back.recorded_at == NOW


@settings(max_examples=60)
@given(cards())
def test_a_card_survives_a_line_of_the_rescue_file(card):
    recorded = RecordedCard(without_token_ids(card), NOW)
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(recorded))), RecordedCard) == recorded


def test_claims_and_observations_stand_in_separate_columns(make_card):
    message, first_call, _, first_result, *_ = rows_of(RecordedCard(make_card(), NOW)).steps
    claims, observations = ("said", "arguments"), ("output", "error", "seconds", "attempts")
    assert [message[name] for name in observations] == [first_call[name] for name in observations] == [None] * 4
    assert [first_result[name] for name in claims] == [None] * 2
    assert (message["said"], first_call["arguments"]) == ("I look it up.", {"query": "Henderson Hotels operating margin Q3 2025"})
    assert (first_result["name"], first_result["seconds"], first_result["attempts"]) == ("search", 0.012, 1)


def test_no_token_id_reaches_the_rows(make_card):
    card = make_card()
    card.rollout.turns[0].sampled_ids = [987654]
    card.rollout.turns[0].logprobs = [-0.987654]
    assert b"987654" not in msgspec.json.encode(rows_of(RecordedCard(card, NOW)))


def test_tokens_are_counted_where_the_engine_gave_only_the_ids(make_card):
    card = make_card()
    card.rollout.turns[0].sampled_tokens = 0
    assert without_token_ids(card).rollout.turns[0].sampled_tokens == 2  # the ids 4 and 5


def test_a_card_that_does_not_say_when_it_started_started_when_it_was_recorded(make_card):
    assert rows_of(RecordedCard(make_card(started_at=""), NOW)).card["started_at"] == NOW
    naive = make_card(started_at="2026-11-21T04:00:12")
    assert rows_of(RecordedCard(naive, NOW)).card["started_at"] == dt.datetime(2026, 11, 21, 4, 0, 12, tzinfo=dt.UTC)
