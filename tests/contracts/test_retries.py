"""When another try is worth it, and how long to wait before it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.retries import may_pass, pause_before_next, seconds_asked_for

NOON = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of the HTTP specification's example


@pytest.mark.parametrize("status", [408, 429, 500, 503, 599])
def test_the_servers_trouble_may_pass(status):
    assert may_pass(status)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 409, 422])
def test_the_callers_mistake_does_not(status):
    assert not may_pass(status)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 0), ("7", 7), (" 7 ", 7), ("0", 0), ("soon", 0), ("-3", 0), ("1.5", 0), ("٣", 0),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10),  # ten seconds after NOON
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0),  # ten seconds before
    ],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(header, seconds):
    assert seconds_asked_for(header, NOON) == seconds


@given(st.text(max_size=40))
def test_no_header_breaks_the_reading(header):
    assert seconds_asked_for(header, NOON) >= 0


def test_pauses_double_up_to_the_longest():
    assert [pause_before_next(attempt, 0, 0.5, 3, 1.0) for attempt in (1, 2, 3, 4, 1000)] == [0.5, 1, 2, 3, 3]
    assert pause_before_next(2, 0, 0.5, 3, 1.5) == 1.5  # 0.5 * 2 * 1.5


def test_nobody_returns_before_the_time_that_the_server_named():
    assert pause_before_next(1, 60, 0.5, 3, 1.0) == 60
    assert pause_before_next(3, 1, 0.5, 3, 1.0) == 2
