"""A trace is the same however its spans came."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.otlp.cards import card_of, cards_of
from observability.otlp.ids import is_uuid7, rollout_id_of, span_id_of, started_ns, trace_id_of
from observability.otlp.spans import Received, Span, merge

TRACE = "5b8efff798038103d269b633813fc60c"
WORDS = ["invoke_agent", "chat", "execute_tool", "plan", None]


@st.composite
def traces(draw):
    """Spans under random parents (circles and strangers too), some of them sent twice and differing."""
    spans = []
    for _ in range(draw(st.integers(1, 8))):
        operation = draw(st.sampled_from(WORDS))
        call = f'[{{"role":"assistant","parts":[{{"type":"tool_call","id":"c{draw(st.integers(0, 3))}","name":"search"}}]}}]'
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.output.messages": call,
            "gen_ai.tool.call.id": f"c{draw(st.integers(0, 3))}",
            "gen_ai.tool.call.result": draw(st.sampled_from("xyz")),
        }
        span_id, parent = draw(st.integers(1, 6)), draw(st.integers(0, 7))
        start = draw(st.integers(1, 5))
        ids = {"trace_id": TRACE, "span_id": f"{span_id:016x}", "parent_id": f"{parent:016x}" if parent else ""}
        spans.append(Span(**ids, start_ns=start, end_ns=start + draw(st.integers(0, 5)), attributes=attributes))
    return spans


@given(traces(), st.randoms(use_true_random=False), st.integers(0, 8))
def test_neither_order_nor_repetition_nor_cutting_into_requests_matters(spans, random, cut):
    shuffled = spans + random.choices(spans, k=3)
    random.shuffle(shuffled)
    whole = merge(spans)
    assert merge(shuffled) == whole
    assert merge((*merge(shuffled[:cut]), *shuffled[cut:])) == whole
    assert card_of(merge(shuffled), "acme") == card_of(whole, "acme")


def test_of_a_span_sent_twice_the_one_that_ended_last_counts(make_span):
    early, late = make_span(1, lasts=1, name="z"), make_span(1, lasts=2, name="a")
    assert merge([late, early]) == merge([early, late]) == (late,)


def test_a_late_span_changes_the_card_and_not_its_id(make_span, now):
    """Children are sent before the span they are in, which started before them."""
    agent = make_span(1, 0, 100, attributes={"gen_ai.operation.name": "invoke_agent"})
    chat = make_span(2, 20, 10, parent=1, attributes={"openinference.span.kind": "LLM", "output.value": "13.4%"})
    (early,) = cards_of(Received((chat,), ()), "acme", now).cards
    assert (early.card.rollout.ending, early.card.rollout.answer) == (None, "")
    known = {early.trace_id: early.card.rollout_id}
    (whole,) = cards_of(Received((*early.spans, agent), ()), "acme", now, known).cards
    assert whole.card.rollout_id == early.card.rollout_id
    assert (whole.card.rollout.ending, whole.card.rollout.answer, whole.card.rollout.seconds) == ("answered", "13.4%", 0.1)
    (at_once,) = cards_of(Received((agent, chat), ()), "acme", now).cards
    assert _unnamed(at_once.card) == _unnamed(whole.card)


def _unnamed(card):
    return msgspec.structs.replace(card, rollout_id="", rollout=msgspec.structs.replace(card.rollout, rollout_id=""))


def test_the_same_trace_is_the_same_card_and_another_tenants_is_another():
    one = rollout_id_of("acme", TRACE, 1_795_233_612_250_999_999)
    assert started_ns(one) == 1_795_233_612_250_000_000
    assert is_uuid7(one)
    assert one == rollout_id_of("acme", TRACE, 1_795_233_612_250_000_000)
    assert one != rollout_id_of("other", TRACE, 1_795_233_612_250_000_000)
    assert one[14:] != rollout_id_of("acme", TRACE[::-1], 1_795_233_612_250_000_000)[14:]


def test_an_id_is_spelt_out():
    """48 bits of milliseconds, the version, 12 bits of the digest, the variant, the next 62 bits of the digest."""
    digest = bin(int(hashlib.sha256(f'["acme","{TRACE}"]'.encode()).hexdigest(), 16))[2:].zfill(256)
    bits = f"{1_795_233_612_250:048b}" + "0111" + digest[:12] + "10" + digest[12:74]
    assert rollout_id_of("acme", TRACE, 1_795_233_612_250_000_000).replace("-", "") == f"{int(bits, 2):032x}"


@pytest.mark.parametrize("rollout_id", ["card-1", "01a1fc43-01da-7abc-9def-000000000001"])
def test_a_card_has_one_trace_and_each_of_its_parts_one_span(rollout_id):
    assert len(bytes.fromhex(trace_id_of(rollout_id))) == 16
    assert len(bytes.fromhex(span_id_of(rollout_id, "turn", 1))) == 8
    assert span_id_of(rollout_id, "turn", 1) != span_id_of(rollout_id, "turn", "1")
