"""Redacts spans: all that a sender wrote in them, but for what names a thing: ids of spans, calls, rows and runs, names of tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from observability.otlp import names
from observability.otlp.spans import Event, Link, Span
from observability.redaction.redact import Redacting

OURS = ("rollout_id", "run_id", "row_id", "code", "checkpoint", "dataset", "tool_set", "grader", "kind", "ending", "seed", "rollout_seed")
STAYS = frozenset({*names.CALL_ID, *names.TOOL_NAME, *names.MODEL, names.OPERATION, *(names.OURS + name for name in OURS)})
"""Attributes that others point at."""


class RedactingSpans(Redacting):
    """Of one trace. A removal's path leads to its span by the span's id."""

    def spans(self, spans: Sequence[Span]) -> tuple[Span, ...]:
        if self.passes([list(_written_in(span)) for span in spans]):
            return tuple(spans)
        return tuple(map(self.span, spans))

    def span(self, span: Span) -> Span:
        if self.passes(list(_written_in(span))):
            return span
        path = f"/spans/{span.span_id}"
        events = tuple(self._event(event, f"{path}/events/{place}") for place, event in enumerate(span.events))
        links = tuple(self._link(link, f"{path}/links/{place}") for place, link in enumerate(span.links))
        return replace(
            span,
            name=self.value(span.name, f"{path}/name"),
            message=self.value(span.message, f"{path}/message"),
            attributes=self._attributes(span.attributes, f"{path}/attributes"),
            resource=self._attributes(span.resource, f"{path}/resource"),
            events=events,
            links=links,
        )

    def _event(self, event: Event, path: str) -> Event:
        name = self.value(event.name, f"{path}/name")
        return replace(event, name=name, attributes=self._attributes(event.attributes, f"{path}/attributes"))

    def _link(self, link: Link, path: str) -> Link:
        return replace(link, attributes=self._attributes(link.attributes, f"{path}/attributes"))

    def _attributes(self, attributes: Mapping[str, Any], path: str) -> dict[str, Any]:
        kept = {name: value for name, value in attributes.items() if name in STAYS}
        return kept | self.value(_told(attributes), path)


def _told(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in STAYS}


def _written_in(span: Span) -> Iterator[Any]:
    """All that is redacted."""
    yield from (span.name, span.message, _told(span.attributes), span.resource)
    for event in span.events:
        yield from (event.name, _told(event.attributes))
    yield from (_told(link.attributes) for link in span.links)
