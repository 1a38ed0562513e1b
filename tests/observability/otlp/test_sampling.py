"""What OpenTelemetry's senders say of the runs that they left out."""

from __future__ import annotations

import pytest

from observability.otlp.sampling import sampling_rate, senders
from observability.otlp.spans import Span


@pytest.mark.parametrize(
    ("trace_state", "rate"),
    [
        ("ot=th:0", 1.0),
        ("ot=th:8", 0.5),  # 8 is half of 16
        ("ot=th:c", 0.25),  # 12 of 16 are dropped
        ("ot=rv:abcdef12345678;th:e66", 1 - 0xE66 / 0x1000),
        ("vendor=x, ot=th:fc;rv:12,other=th:8", 1 / 64),  # 252 of 256
        ("", None),
        ("ot=rv:12", None),
        ("other=th:8", None),
        ("ot=th:", None),
        ("ot=th:123456789abcdef", None),  # fifteen digits
        ("ot=th:-8", None),
        ("ot=th:X", None),
    ],
)
def test_the_threshold_in_the_trace_state_is_the_share_that_is_left_out(trace_state, rate):
    assert sampling_rate(trace_state) == rate


def span(service, trace_state):
    return Span(
        trace_id="1" * 32, span_id="1" * 16, start_ns=1, resource={"service.name": service} if service else {}, trace_state=trace_state
    )


def test_of_a_service_the_lowest_rate_counts_and_spans_that_name_none_change_nothing():
    spans = [span("desk", ""), span("desk", "ot=th:8"), span("desk", "ot=th:c"), span("desk", ""), span("", "ot=th:0"), span("other", "")]
    assert senders(spans) == {"desk": 0.25, "of no name": 1.0, "other": None}
