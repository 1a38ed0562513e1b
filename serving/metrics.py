"""What Prometheus reads at GET /metrics. Tenants' names stand in it, so it is shown to whoever has the server's own bearer."""

from __future__ import annotations

from litestar import MediaType, Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from serving.auth import Bearer

REGISTRY = CollectorRegistry()
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# --- the gateway -----------------------------------------------------------------------------------------------------------

REQUESTS = Counter("rft_requests", "Requests of the gateway that were answered", ["tenant", "service", "arm", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "rft_request_seconds", "From a request's arrival to its last byte", ["tenant", "service", "arm"], buckets=SECONDS, registry=REGISTRY
)
IN_SLO = Counter("rft_requests_within_slo", "Requests answered without error within their tenant's seconds", ["tenant"], registry=REGISTRY)
TOKENS = Counter("rft_tokens", "Tokens that models wrote", ["tenant", "service", "arm"], registry=REGISTRY)
REFUSED = Counter("rft_refused", "Requests that no model saw, by why", ["tenant", "why"], registry=REGISTRY)
FALLBACKS = Counter(
    "rft_fallbacks", "Requests that the live agent answered after a candidate failed", ["tenant", "service"], registry=REGISTRY
)
UPSTREAM_UP = Gauge("rft_upstream_up", "1 where an upstream is asked", ["upstream"], registry=REGISTRY)
UPSTREAM_IN_FLIGHT = Gauge("rft_upstream_in_flight", "Requests that an upstream has in hand", ["upstream"], registry=REGISTRY)
UPSTREAM_FAILURES = Counter("rft_upstream_failures", "Requests that an upstream failed", ["upstream"], registry=REGISTRY)
QUEUED = Gauge("rft_upstream_queued", "Requests that wait for a place at a checkpoint's upstreams", ["checkpoint"], registry=REGISTRY)

# --- tools in production ---------------------------------------------------------------------------------------------------

TOOL_CALLS = Counter("rft_tool_calls", "Tool calls, by what came of them", ["tenant", "tool", "outcome"], registry=REGISTRY)
TOOL_SECONDS = Histogram(
    "rft_tool_seconds", "From a tool call's arrival to its answer", ["tenant", "tool"], buckets=SECONDS, registry=REGISTRY
)

# --- runs of agents ---------------------------------------------------------------------------------------------------------

RUNS = Gauge("rft_runs_in_hand", "Runs of agents that this gateway drives", registry=REGISTRY)
RUNS_OVER = Counter("rft_runs_over", "Runs of agents that are over", ["tenant", "service", "arm", "ending"], registry=REGISTRY)
RUN_SECONDS = Histogram(
    "rft_run_seconds", "From a run's beginning to its end, without the time it waited for a person", ["tenant", "service", "arm"],
    buckets=SECONDS, registry=REGISTRY,
)  # fmt: skip
SHADOW_WAITING = Gauge("rft_shadow_waiting", "Mirrored runs that wait for the candidate", registry=REGISTRY)
SHADOW_DROPPED = Counter("rft_shadow_dropped", "Mirrored runs that were dropped since too many waited", registry=REGISTRY)

# --- job cards of what was answered -----------------------------------------------------------------------------------------

CARDS_WAITING_BYTES = Gauge("rft_cards_waiting_bytes", "Answered and not yet a card in the store", registry=REGISTRY)
CARDS_LAG_SECONDS = Gauge("rft_cards_lag_seconds", "Age of the oldest answer that is not yet a card in the store", registry=REGISTRY)
CARDS_LOST = Counter("rft_cards_lost", "Answers whose card could not be kept: the disk refused it", registry=REGISTRY)


def metrics_route(bearer: Bearer) -> HTTPRouteHandler:
    @get(
        "/metrics",
        summary="Figures for Prometheus",
        tags=["server"],
        guards=[bearer.guard],
        sync_to_thread=False,
        media_type=MediaType.TEXT,
    )
    def metrics() -> Response[bytes]:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return metrics
