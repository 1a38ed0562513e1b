"""One span for each finished request, sent to an OpenTelemetry collector where one is named. Figures only: no word of what was said.

A collector that is slow or away loses spans, and delays nothing.
"""

from __future__ import annotations

import datetime as dt
import re
import threading
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from agent_rft.contracts.jobcards import JobCard
from observability.otlp import names
from observability.otlp.cards import nanoseconds
from observability.otlp.ids import span_id_of, trace_id_of
from observability.otlp.protobuf import write_protobuf
from observability.otlp.spans import Span
from serving.gateway.cardmaking import Kept

ENDPOINT_VARIABLE, TRACES_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
SERVER = 2
MOST_WAITING = 4096
EVERY_SECONDS, TIMEOUT_SECONDS = 1.0, 5.0
RESOURCE = {"service.name": "agent-rft-gateway"}
log = structlog.get_logger("serving.gateway")


def endpoint_of(environment: Mapping[str, str]) -> str:
    """Where traces go, as OpenTelemetry's variables say; empty for nowhere."""
    if exact := environment.get(TRACES_VARIABLE):
        return exact
    base = environment.get(ENDPOINT_VARIABLE)
    return f"{base.rstrip('/')}/v1/traces" if base else ""


def span_of(kept: Kept, card: JobCard) -> Span:
    """In the caller's own trace, where the request named it."""
    parent = PARENT.fullmatch(kept.parent)
    start = nanoseconds(dt.datetime.fromisoformat(kept.started_at))
    told: dict[str, Any] = {
        names.OPERATION: "chat",
        "gen_ai.request.model": kept.service,
        "gen_ai.response.model": kept.checkpoint,
        "gen_ai.usage.input_tokens": card.cost.context_tokens,
        "gen_ai.usage.output_tokens": card.cost.sampled_tokens,
        "gen_ai.conversation.id": kept.session,
        "http.response.status_code": kept.status,
        **{names.OURS + name: getattr(kept, name) for name in ("rollout_id", "tenant", "arm", "agent", "release")},
    }
    return Span(
        trace_id=parent[1] if parent else trace_id_of(kept.rollout_id),
        span_id=span_id_of(kept.rollout_id, "request"),
        parent_id=parent[2] if parent else "",
        name=f"chat {kept.service}",
        kind=SERVER,
        start_ns=start,
        end_ns=start + round(kept.seconds * 1e9),
        attributes=told,
        failed=bool(kept.trouble),
        message=kept.trouble,
        resource=RESOURCE,
        scope="agent_rft.gateway",
    )


class Exporter:
    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: deque[Span] = deque(maxlen=MOST_WAITING)
        self._away = False
        if url:
            threading.Thread(target=self._send_forever, name="spans-out", daemon=True).start()

    def add(self, kept: Kept, card: JobCard) -> None:
        if self._url:
            self._waiting.append(span_of(kept, card))

    def _send_forever(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(EVERY_SECONDS)
            spans = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if spans:
                self._send(spans)

    def _send(self, spans: Sequence[Span]) -> None:
        request = urllib.request.Request(self._url, write_protobuf(spans), {"content-type": "application/x-protobuf"})
        try:
            urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
            self._away = False
        except (OSError, ValueError) as error:
            if not self._away:
                log.warning("spans_not_taken", collector=self._url, spans=len(spans), why=str(error)[:200])
            self._away = True
