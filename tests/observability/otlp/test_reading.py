"""Both encodings say the same, and what is broken costs nobody but itself."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from agent_rft.contracts.errors import UserError
from observability.otlp.json_form import answer_json, read_json, write_json
from observability.otlp.protobuf import answer_protobuf, read_protobuf, write_protobuf
from observability.otlp.spans import Event, Link, Rejected, Span

SPAN = {
    "traceId": "5B8EFFF798038103D269B633813FC60C",
    "spanId": "EEE19B7EC3C1B174",
    "parentSpanId": "EEE19B7EC3C1B173",
    "name": "chat",
    "startTimeUnixNano": "1795233612250000000",
    "endTimeUnixNano": 1795233612350000000,
    "kind": 3,
    "attributes": [
        {"key": "model", "value": {"stringValue": "tiny"}},
        {"key": "tokens", "value": {"intValue": "42"}},
        {"key": "more", "value": {"intValue": 43}},
        {"key": "sure", "value": {"boolValue": False}},
        {"key": "warm", "value": {"doubleValue": 0.5}},
        {"key": "odd", "value": {"doubleValue": "NaN"}},
        {"key": "raw", "value": {"bytesValue": "AAH/"}},
        {"key": "nothing", "value": {}},
        {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}}},
        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"boolValue": True}}]}}},
    ],
    "events": [{"name": "seen", "timeUnixNano": "7", "attributes": [{"key": "a", "value": {"stringValue": "b"}}]}],
    "status": {"code": 2, "message": "gone"},
    "droppedAttributesCount": 3,
    "aFieldOfNextYear": {"deep": [1, {"x": None}]},
}


def body(*spans, **beside):
    """An OTLP/JSON request of one resource."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}], "unknown": 1}
    return json.dumps(
        {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "lib"}, "spans": list(spans)}]}], **beside}
    ).encode()


def test_json_is_read_as_the_specification_writes_it():
    received = read_json(body(SPAN, unknown=True))
    assert received.rejected == ()
    assert received.spans == (
        Span(
            trace_id="5b8efff798038103d269b633813fc60c",
            span_id="eee19b7ec3c1b174",
            parent_id="eee19b7ec3c1b173",
            name="chat",
            kind=3,
            start_ns=1795233612250000000,
            end_ns=1795233612350000000,
            attributes={
                "model": "tiny",
                "tokens": 42,
                "more": 43,
                "sure": False,
                "warm": 0.5,
                "odd": "NaN",
                "raw": "AAH/",
                "nothing": None,
                "list": ["a", 1],
                "map": {"k": True},
            },
            events=(Event("seen", 7, {"a": "b"}),),
            failed=True,
            message="gone",
            dropped=3,
            resource={"service.name": "shop"},
            scope="lib",
        ),
    )


def test_protobuf_is_read_as_its_own_library_writes_it():
    request = ExportTraceServiceRequest()
    of_scope = request.resource_spans.add().scope_spans.add()
    span = of_scope.spans.add(trace_id=bytes(range(16)), span_id=bytes(range(8)), name="s", kind=1, start_time_unix_nano=2**63 + 5)
    span.attributes.append(KeyValue(key="raw", value=AnyValue(bytes_value=b"\0\1\xff")))
    span.attributes.append(KeyValue(key="far", value=AnyValue(double_value=float("-inf"))))
    span.attributes.append(KeyValue(key="low", value=AnyValue(int_value=-5)))
    span.links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    (read,) = read_protobuf(request.SerializeToString()).spans
    assert (read.trace_id, read.span_id) == ("000102030405060708090a0b0c0d0e0f", "0001020304050607")
    assert read.start_ns == 2**63 + 5
    assert read.attributes == {"raw": "AAH/", "far": "-Infinity", "low": -5}
    assert read.links == (Link("01" * 16, "02" * 8),)
    assert not read.failed


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=6,
)
ATTRIBUTES = st.dictionaries(TEXT, VALUES, max_size=4)
TIMES = st.integers(0, 2**64 - 1)
SPANS = st.builds(
    Span,
    trace_id=st.binary(min_size=16, max_size=16).map(bytes.hex),
    span_id=st.binary(min_size=8, max_size=8).map(bytes.hex),
    parent_id=st.binary(max_size=8).map(bytes.hex),
    name=TEXT,
    kind=st.integers(0, 5),
    start_ns=TIMES,
    end_ns=TIMES,
    attributes=ATTRIBUTES,
    events=st.lists(st.builds(Event, TEXT, TIMES, ATTRIBUTES), max_size=2).map(tuple),
    links=st.lists(st.builds(Link, st.just("0a" * 16), st.just("0b" * 8), ATTRIBUTES), max_size=2).map(tuple),
    failed=st.booleans(),
    message=TEXT,
    trace_state=TEXT,
    dropped=st.integers(0, 2**32 - 1),
    resource=ATTRIBUTES,
    scope=TEXT,
)


@given(st.lists(SPANS, max_size=4))
def test_what_is_written_reads_back_the_same_in_both(spans):
    assert read_protobuf(write_protobuf(spans)).spans == tuple(spans)
    assert read_json(write_json(spans)).spans == tuple(spans)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"traceId": "W47/95gDgQPSabYzgT/GDA=="}, "hex"),
        ({"startTimeUnixNano": "soon"}, "soon"),
        ({"startTimeUnixNano": str(2**70)}, "64 bits"),
        ({"status": {"code": "STATUS_CODE_ERROR"}}, "Expected `int`"),
        ({"attributes": [{"key": "a", "value": {"stringValue": 7}}]}, "stringValue"),
        ({"attributes": "none"}, "Expected `array`"),
    ],
)
def test_a_broken_span_in_json_is_rejected_and_the_others_are_taken(change, why):
    received = read_json(body(SPAN, SPAN | change, 3, SPAN))
    assert len(received.spans) == 2
    assert [each.where for each in received.rejected] == [f"resourceSpans[0].scopeSpans[0].spans[{k}]" for k in (1, 2)]
    assert why in received.rejected[0].why


def test_half_an_emoji_costs_no_span_and_no_text_at_all_one():
    """JavaScript cuts strings between the halves of a surrogate pair."""
    cut = body(SPAN | {"name": "HERE"})
    assert read_json(cut.replace(b"HERE", b"up \\ud83d")).spans[0].name == "up \ufffd"
    received = read_json(cut.replace(b"HERE", b"\xff"))
    assert (received.spans, len(received.rejected)) == ((), 1)


def test_a_broken_span_in_protobuf_is_rejected_and_the_others_are_taken(make_span):
    whole = write_protobuf([make_span(number, name="the name", resource={"service.name": "shop"}, scope="lib") for number in (1, 2, 3)])
    second = whole.index(b"the name", whole.index(b"the name") + 1)
    broken = whole[:second] + b"\xff" + whole[second + 1 :]  # no UTF-8
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(broken)
    received = read_protobuf(broken)
    assert [span.span_id[-1] for span in received.spans] == ["1", "3"]
    assert received.spans == tuple(span for span in read_protobuf(whole).spans if span.span_id[-1] != "2")
    assert [each.where for each in received.rejected] == ["resource_spans[0].scope_spans[0].spans[1]"]


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"resourceSpans": 3}', b'{"x":' * 5000])
def test_what_is_no_request_in_json_is_the_senders_mistake(broken):
    with pytest.raises(UserError, match="OTLP request in JSON"):
        read_json(broken)


@pytest.mark.parametrize("broken", [b"\x0a\xff", b"\x0f", b"{}", b"\xff" * 40, b"\x0a\x05\x12"])
def test_what_is_no_request_in_protobuf_is_the_senders_mistake(broken):
    with pytest.raises(UserError, match="OTLP request in protobuf"):
        read_protobuf(broken)


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_break_the_reader(noise, at, byte):
    """Whatever comes, either spans or one clear error."""
    whole = write_protobuf([Span(trace_id="01" * 16, span_id=f"{n:016x}", start_ns=5, attributes={"a": ["b", 1]}) for n in (1, 2)])
    at %= len(whole)
    for read, text in ((read_protobuf, noise), (read_protobuf, whole[:at] + bytes([byte]) + whole[at + 1 :]), (read_json, noise)):
        with contextlib.suppress(UserError):
            assert isinstance(read(text).spans, tuple)


def test_an_empty_request_is_a_request():
    assert read_protobuf(b"").spans == read_json(b"{}").spans == ()


def test_the_answer_names_what_was_rejected_and_is_empty_where_nothing_was():
    rejected = [Rejected(f"spans[{n}]", "no start") for n in range(7)]
    message = "; ".join(f"spans[{n}]: no start" for n in range(5)) + "; and 2 more"
    partial = ExportTraceServiceResponse.FromString(answer_protobuf(rejected)).partial_success
    assert (partial.rejected_spans, partial.error_message) == (7, message)
    assert msgspec.json.decode(answer_json(rejected)) == {"partialSuccess": {"rejectedSpans": "7", "errorMessage": message}}
    assert (answer_protobuf([]), answer_json([])) == (b"", b"{}")
