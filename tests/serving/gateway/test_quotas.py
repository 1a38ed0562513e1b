"""Quotas, held against counting by hand; and reading a request, against JSON's own reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.agents import Agent
from serving.gateway.declined import Declined
from serving.gateway.quotas import Allowance, Quotas
from serving.gateway.reading import Prompt, body_for, read, tokens_of

LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
JSON = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=8)


@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 20))
def test_no_stretch_of_time_has_more_requests_than_its_share_and_one_burst(pauses, rate):
    """Of a bucket that holds a minute's requests: in any t seconds at most rate + rate * t / 60."""
    allowance, now, taken, waits = Allowance(Quotas(requests_per_minute=rate, in_flight=0), 0.0), 0.0, [], []
    for pause in pauses:
        now += pause
        try:
            allowance.take(now)
            taken.append(now)
        except Declined as declined:
            waits.append(declined.retry_after)
    assert all(0 < wait <= 60 / rate + 1e-6 for wait in waits)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate + rate * (taken[last] - taken[first]) / 60 + 1e-6


def test_a_request_comes_back_every_so_often_and_tokens_with_the_day():
    allowance = Allowance(Quotas(requests_per_minute=6, tokens_per_day=10), 0.0)
    for _ in range(6):
        allowance.take(0.0)
        allowance.give_back(1)
    with pytest.raises(Declined) as refused:
        allowance.take(4.0)  # 0.4 of a request is back: 0.6 takes 6 s
    assert refused.value.code == "requests_per_minute" and refused.value.retry_after == pytest.approx(6.0)
    allowance.take(10.0)
    allowance.give_back(5)
    with pytest.raises(Declined) as refused:
        allowance.take(86_000.0)
    assert refused.value.code == "tokens_per_day" and refused.value.retry_after == 400.0
    allowance.take(86_400.0)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text))
def test_what_is_not_looked_at_is_sent_on_as_it_is(more, service):
    ours = {"stream", "user", "metadata", "item", "temperature", "max_tokens", "max_completion_tokens"}
    asked = {key: value for key, value in more.items() if key not in ours}
    asked |= {"model": service, "messages": [{"role": "user", "content": "x"}]}
    got = read(json.dumps(asked).encode(), "")
    sent = json.loads(body_for(Prompt(Agent(checkpoint="c", tool_set="t")).put_before(got), "there"))
    assert sent == asked | {"model": "there", "temperature": 1.0, "max_tokens": 512} and got.service == service


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_declined(body):
    try:
        told = read(body, "").service
    except Declined as declined:
        told = declined.what
    assert isinstance(told, str)


def test_tokens_are_what_the_upstream_says_or_the_chunks_of_its_stream():
    assert tokens_of(b'{"usage": {"completion_tokens": 9}}', streamed=False) == 9
    assert tokens_of(b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n', streamed=True) == 2
    assert tokens_of(b'data: {"a":1}\n\ndata: {"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n', streamed=True) == 7
    assert tokens_of(b"<html>", streamed=False) == 0
