"""OTLP in JSON: ids in hex, 64-bit numbers as decimal strings, enums as numbers, fields that nobody knows passed over.
Each span is left as it came until its own turn, so that a broken one costs nobody but itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from agent_rft.contracts.errors import UserError
from observability.otlp.spans import EMPTY, Event, Link, Received, Rejected, Span, finite, told
from observability.texts import without_halves

Number = int | str
Count = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
HEX = re.compile(r"[0-9a-fA-F]*\Z")
FAILED = 2  # the status code of an error


class _Any(msgspec.Struct, rename="camel", omit_defaults=True):
    string_value: str | None = None
    int_value: Number | None = None
    bool_value: bool | None = None
    double_value: float | str | None = None
    array_value: _Values | None = None
    kvlist_value: _Pairs | None = None
    bytes_value: str | None = None


class _Pair(msgspec.Struct):
    key: str
    value: _Any | None = None


class _Values(msgspec.Struct):
    values: list[_Any] = []


class _Pairs(msgspec.Struct):
    values: list[_Pair] = []


class _Event(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str = ""
    time_unix_nano: Number = 0
    attributes: list[_Pair] = []


class _Link(msgspec.Struct, rename="camel", omit_defaults=True):
    trace_id: str = ""
    span_id: str = ""
    attributes: list[_Pair] = []


class _Status(msgspec.Struct, omit_defaults=True):
    code: int = 0
    message: str = ""


class _Span(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = ""
    name: str = ""
    kind: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    start_time_unix_nano: Number = 0
    end_time_unix_nano: Number = 0
    attributes: list[_Pair] = []
    events: list[_Event] = []
    links: list[_Link] = []
    status: _Status | None = None
    trace_state: str = ""
    dropped_attributes_count: Count = 0
    dropped_events_count: Count = 0
    dropped_links_count: Count = 0


class _Resource(msgspec.Struct, omit_defaults=True):
    attributes: list[_Pair] = []


class _Scope(msgspec.Struct, omit_defaults=True):
    name: str = ""


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[msgspec.Raw] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


REQUEST = msgspec.json.Decoder(_Request)
SPAN = msgspec.json.Decoder(_Span)
BROKEN = (ValueError, RecursionError)  # msgspec's own errors are ValueErrors


def read_json(body: bytes) -> Received:
    """The spans of an ExportTraceServiceRequest. Raises UserError only where the bytes are no such request at all."""
    spans: list[Span] = []
    rejected: list[Rejected] = []
    try:
        request = _decoded(REQUEST, body)
        for i, of_resource in enumerate(request.resource_spans):
            resource = _attributes(of_resource.resource.attributes) if of_resource.resource else EMPTY
            for j, of_scope in enumerate(of_resource.scope_spans):
                scope = of_scope.scope.name if of_scope.scope else ""
                for k, raw in enumerate(of_scope.spans):
                    try:
                        spans.append(_span(_decoded(SPAN, raw), resource, scope))
                    except BROKEN as error:
                        rejected.append(Rejected(f"resourceSpans[{i}].scopeSpans[{j}].spans[{k}]", str(error)))
    except BROKEN as error:
        raise UserError(f"the body is not an OTLP request in JSON: {error}", "send an ExportTraceServiceRequest") from None
    return Received(tuple(spans), tuple(rejected))


Shape = TypeVar("Shape")


def _decoded(decoder: msgspec.json.Decoder[Shape], text: bytes | msgspec.Raw) -> Shape:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError:
        return decoder.decode(without_halves(json.dumps(json.loads(bytes(text)), ensure_ascii=False)))


def _span(span: _Span, resource: dict[str, Any], scope: str) -> Span:
    return Span(
        trace_id=_id(span.trace_id),
        span_id=_id(span.span_id),
        parent_id=_id(span.parent_span_id or ""),
        name=span.name,
        kind=span.kind,
        start_ns=_whole(span.start_time_unix_nano),
        end_ns=_whole(span.end_time_unix_nano),
        attributes=_attributes(span.attributes),
        events=tuple(Event(event.name, _whole(event.time_unix_nano), _attributes(event.attributes)) for event in span.events),
        links=tuple(Link(_id(link.trace_id), _id(link.span_id), _attributes(link.attributes)) for link in span.links),
        failed=span.status is not None and span.status.code == FAILED,
        message=span.status.message if span.status else "",
        trace_state=span.trace_state,
        dropped=span.dropped_attributes_count + span.dropped_events_count + span.dropped_links_count,
        resource=resource,
        scope=scope,
    )


def _id(text: str) -> str:
    if not HEX.match(text):
        raise ValueError(f"'{text[:40]}' is no id: OTLP's JSON writes ids in hex, not in base64")
    return text.lower()


def _whole(number: Number) -> int:
    whole = int(number)
    if not -(2**63) <= whole < 2**64:
        raise ValueError("a number of more than 64 bits")
    return whole


def _attributes(pairs: list[_Pair]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs} or EMPTY


def _value(value: _Any | None) -> Any:
    if value is None:
        return None
    if value.string_value is not None:
        return value.string_value
    if value.int_value is not None:
        return _whole(value.int_value)
    if value.bool_value is not None:
        return value.bool_value
    if value.double_value is not None:
        return finite(float(value.double_value))
    if value.array_value is not None:
        return [_value(each) for each in value.array_value.values]
    if value.kvlist_value is not None:
        return _attributes(value.kvlist_value.values)
    return value.bytes_value


# --- out ----------------------------------------------------------------------------------------------------------------


def write_json(spans: Sequence[Span]) -> bytes:
    """An ExportTraceServiceRequest with these spans."""
    groups: list[dict[str, Any]] = []
    last: tuple[dict[str, Any], str] | None = None
    for span in spans:
        if last != (span.resource, span.scope):
            last = (span.resource, span.scope)
            groups.append({"resource": _Resource(_pairs(span.resource)), "scopeSpans": [{"scope": _Scope(span.scope), "spans": []}]})
        groups[-1]["scopeSpans"][0]["spans"].append(_wire_span(span))
    return msgspec.json.encode({"resourceSpans": groups})


def _wire_span(span: Span) -> _Span:
    return _Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        name=span.name,
        kind=span.kind,
        start_time_unix_nano=str(span.start_ns),
        end_time_unix_nano=str(span.end_ns),
        attributes=_pairs(span.attributes),
        events=[_Event(event.name, str(event.at_ns), _pairs(event.attributes)) for event in span.events],
        links=[_Link(link.trace_id, link.span_id, _pairs(link.attributes)) for link in span.links],
        status=_Status(FAILED if span.failed else 0, span.message) if span.failed or span.message else None,
        trace_state=span.trace_state,
        dropped_attributes_count=min(span.dropped, 2**32 - 1),
    )


def _pairs(attributes: dict[str, Any]) -> list[_Pair]:
    return [_Pair(key, _any(value)) for key, value in attributes.items()]


def _any(value: Any) -> _Any:
    match value:
        case bool():
            return _Any(bool_value=value)
        case int():
            return _Any(int_value=str(value))
        case float():
            return _Any(double_value=value)
        case str():
            return _Any(string_value=value)
        case list():
            return _Any(array_value=_Values([_any(each) for each in value]))
        case dict():
            return _Any(kvlist_value=_Pairs(_pairs(value)))
        case _:
            return _Any()


def answer_json(rejected: Sequence[Rejected]) -> bytes:
    """The ExportTraceServiceResponse: full success is an empty one."""
    if not rejected:
        return b"{}"
    return msgspec.json.encode({"partialSuccess": {"rejectedSpans": str(len(rejected)), "errorMessage": told(rejected)}})
