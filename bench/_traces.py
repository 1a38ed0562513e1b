"""OpenTelemetry traces of agents at work: 10 spans of 2 KB each, 50 traces a request, the same bytes for everybody."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

SPANS, OF_REQUEST = 10, 50
LONG = 850
"""Characters of what goes into a span and of what comes out of it: with names, ids and times it is 2 KB on the wire."""
WORDS = (
    "revenue filing quarter income cash assets debt report segment outlook guidance interest tax equity lease goodwill inventory"
    " backlog dividend currency pension covenant audit revision estimate reserve impairment supplier customer region margin".split()
)


class Sent(NamedTuple):
    """The last trace of a request."""

    trace_id: str
    start_ns: int
    word: str
    """That stands in it alone."""


def requests(traces: int, seed: int, began_ns: int) -> Iterator[tuple[bytes, Sent]]:
    luck = random.Random(seed)
    for first in range(0, traces, OF_REQUEST):
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "agent"
        scope = resource.scope_spans.add()
        sent = Sent("", 0, "")
        for number in range(first, min(traces, first + OF_REQUEST)):
            sent = Sent(luck.randbytes(16).hex(), began_ns + number * 10_000_000, f"zebra{seed}x{number}")
            _trace(scope, sent, luck)
        yield request.SerializeToString(), sent


def _trace(scope: ScopeSpans, sent: Sent, luck: random.Random) -> None:
    trace_id, start_ns, root = bytes.fromhex(sent.trace_id), sent.start_ns, luck.randbytes(8)
    for position in range(SPANS):
        span = scope.spans.add(trace_id=trace_id, span_id=root if position == 0 else luck.randbytes(8), kind=Span.SPAN_KIND_INTERNAL)
        span.parent_span_id = b"" if position == 0 else root
        span.start_time_unix_nano = start_ns + position * 1_000_000
        span.end_time_unix_nano = start_ns + (position + 1) * 1_000_000 if position else start_ns + SPANS * 1_000_000
        if position == 0:
            _agent(span, luck, sent.word)
        elif position % 2:
            _chat(span, luck)
        else:
            _tool(span, luck, position)


def _agent(span: Span, luck: random.Random, word: str) -> None:
    asked, answered = f"{word} {_text(luck)}", f"{word} {_text(luck)}"
    _say(
        span, "invoke_agent analyst", "AGENT", asked, answered,
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "analyst",
         "gen_ai.input.messages": _messages("user", asked[:200]), "gen_ai.output.messages": _messages("assistant", answered[:200])},
    )  # fmt: skip


def _chat(span: Span, luck: random.Random) -> None:
    asked, answered = _text(luck), _text(luck)
    _say(
        span, "chat tiny", "LLM", asked, answered,
        {"gen_ai.operation.name": "chat", "gen_ai.request.model": "tiny", "gen_ai.output.messages": _messages("assistant", answered[:200])},
    )  # fmt: skip
    for name, count in (("input_tokens", 200), ("output_tokens", 180)):
        span.attributes.add(key=f"gen_ai.usage.{name}").value.int_value = count


def _tool(span: Span, luck: random.Random, position: int) -> None:
    _say(
        span, "execute_tool search", "TOOL", json.dumps({"query": _text(luck)}), _text(luck),
        {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search", "gen_ai.tool.call.id": f"call-{position}"},
    )  # fmt: skip


def _say(span: Span, name: str, kind: str, asked: str, answered: str, more: dict[str, str]) -> None:
    span.name = name
    for key, value in {"openinference.span.kind": kind, "input.value": asked, "output.value": answered, **more}.items():
        span.attributes.add(key=key).value.string_value = value


def _messages(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


def _text(luck: random.Random) -> str:
    words = [*luck.choices(WORDS, k=LONG // 7), f"{luck.getrandbits(40):x}"]
    return " ".join(words)[:LONG]
