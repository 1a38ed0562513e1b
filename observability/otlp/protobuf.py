"""OTLP in protobuf. The whole request is parsed at once, in C; only where that fails is it taken apart span by span, so
that a broken one costs nobody but itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as wire

from agent_rft.contracts.errors import UserError
from observability.otlp.spans import EMPTY, Event, Link, Received, Rejected, Span, finite, told

MOST_REASON = 200


def read_protobuf(body: bytes) -> Received:
    """The spans of an ExportTraceServiceRequest. Raises UserError only where the bytes are no such request at all."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        return _span_by_span(body)
    spans: list[Span] = []
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            scope = of_scope.scope.name
            spans += [_span(span, resource, scope) for span in of_scope.spans]
    return Received(tuple(spans), ())


def _span(span: wire.Span, resource: dict[str, Any], scope: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events),
        links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links),
        failed=span.status.code == wire.Status.STATUS_CODE_ERROR,
        message=span.status.message,
        trace_state=span.trace_state,
        dropped=span.dropped_attributes_count + span.dropped_events_count + span.dropped_links_count,
        resource=resource,
        scope=scope,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs} or EMPTY


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "bool_value":
            return value.bool_value
        case "double_value":
            return finite(value.double_value)
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case _:
            return None


# --- a request with something broken in it ------------------------------------------------------------------------------

RESOURCE, SCOPE = 1, 1  # the fields of ResourceSpans and of ScopeSpans that say whose the spans are
NESTED = 2  # the field of both that holds what is below
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


def _span_by_span(body: bytes) -> Received:
    spans: list[Span] = []
    rejected: list[Rejected] = []
    try:
        for where, raw, resource, scope in _raw_spans(body):
            try:
                owner, name = _attributes(Resource.FromString(resource).attributes), InstrumentationScope.FromString(scope).name
                spans.append(_span(wire.Span.FromString(raw), owner, name))
            except DecodeError as error:
                rejected.append(Rejected(where, str(error)[:MOST_REASON]))
    except (IndexError, ValueError) as error:
        raise UserError(f"the body is not an OTLP request in protobuf: {error}", "send an ExportTraceServiceRequest") from None
    if not spans and not rejected:
        raise UserError("the body is not an OTLP request in protobuf", "send an ExportTraceServiceRequest")
    return Received(tuple(spans), tuple(rejected))


def _raw_spans(body: bytes) -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """Each span's place and bytes, with the bytes of its resource and of its scope."""
    for i, of_resource in enumerate(value for number, value in _fields(body) if number == 1):
        under_resource = list(_fields(of_resource))
        resource = b"".join(value for number, value in under_resource if number == RESOURCE)
        for j, of_scope in enumerate(value for number, value in under_resource if number == NESTED):
            under_scope = list(_fields(of_scope))
            scope = b"".join(value for number, value in under_scope if number == SCOPE)
            for k, span in enumerate(value for number, value in under_scope if number == NESTED):
                yield f"resource_spans[{i}].scope_spans[{j}].spans[{k}]", span, resource, scope


def _fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that are messages themselves, by number; numbers beside them are passed over."""
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        wire_type = tag & 7
        if wire_type == VARINT:
            _, at = _varint(body, at)
            continue
        if wire_type == BYTES:
            length, at = _varint(body, at)
        elif wire_type in {EIGHT_BYTES, FOUR_BYTES}:
            length = 8 if wire_type == EIGHT_BYTES else 4
        else:
            raise ValueError(f"byte {at} starts no field")
        if at + length > len(body):
            raise ValueError("it ends in the middle of a field")
        if wire_type == BYTES:
            yield tag >> 3, body[at : at + length]
        at += length


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    number = shift = 0
    while True:
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError(f"byte {at} goes on a number that is too long")


# --- out ----------------------------------------------------------------------------------------------------------------


def write_protobuf(spans: Sequence[Span]) -> bytes:
    """An ExportTraceServiceRequest with these spans."""
    request = ExportTraceServiceRequest()
    for span in spans:
        last = request.resource_spans[-1] if request.resource_spans else None
        if last is None or _attributes(last.resource.attributes) != span.resource or last.scope_spans[-1].scope.name != span.scope:
            last = request.resource_spans.add(resource=Resource(attributes=_pairs(span.resource)))
            last.scope_spans.add(scope=InstrumentationScope(name=span.scope))
        last.scope_spans[-1].spans.append(_wire_span(span))
    return request.SerializeToString()


def _wire_span(span: Span) -> wire.Span:
    code = wire.Status.STATUS_CODE_ERROR if span.failed else wire.Status.STATUS_CODE_UNSET
    written = wire.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=_pairs(span.attributes),
        trace_state=span.trace_state,
        dropped_attributes_count=min(span.dropped, 2**32 - 1),
        status=wire.Status(code=code, message=span.message),
    )
    written.kind = wire.Span.SpanKind.ValueType(span.kind)
    for event in span.events:
        written.events.add(name=event.name, time_unix_nano=event.at_ns, attributes=_pairs(event.attributes))
    for link in span.links:
        written.links.add(trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id), attributes=_pairs(link.attributes))
    return written


def _pairs(attributes: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any(value)) for key, value in attributes.items()]


def _any(value: Any) -> AnyValue:
    written = AnyValue()
    match value:
        case bool():
            written.bool_value = value
        case int():
            written.int_value = value
        case float():
            written.double_value = value
        case str():
            written.string_value = value
        case list():
            written.array_value.SetInParent()
            written.array_value.values.extend(_any(each) for each in value)
        case dict():
            written.kvlist_value.SetInParent()
            written.kvlist_value.values.extend(_pairs(value))
        case _:
            pass
    return written


def status_protobuf(message: str) -> bytes:
    """A google.rpc.Status, which is what a request that failed is answered: its message alone, the second field. The code is
    HTTP's."""
    text = message.encode("utf-8", "replace")
    length, size = bytearray(), len(text)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([2 << 3 | BYTES, *length, size]) + text


def answer_protobuf(rejected: Sequence[Rejected]) -> bytes:
    """The ExportTraceServiceResponse: full success is an empty one."""
    answer = ExportTraceServiceResponse()
    if rejected:
        answer.partial_success.rejected_spans = len(rejected)
        answer.partial_success.error_message = told(rejected)
    return answer.SerializeToString()
