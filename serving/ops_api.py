"""Drift and service levels, for programs."""

from __future__ import annotations

import datetime as dt
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler

from serving.gate import Gate, caller_of
from serving.openapi import BEARER
from serving.release.looking import Promises, ServiceDrift, ServiceLevels, drift_of, levels_of

Asking = Request[Any, Any, Any]


def ops_routes(gate: Gate, promises: Promises) -> list[HTTPRouteHandler]:
    told: dict[str, Any] = {"guards": [gate.needs("read")], "security": BEARER, "tags": ["releases"], "sync_to_thread": True}

    @get("/v1/drift", summary="What services live through, against their training and their last week", **told)
    def drift(request: Asking) -> list[ServiceDrift]:
        caller = caller_of(request)
        return drift_of(gate.store.of(caller.tenant), caller.tenant)

    @get("/v1/service-levels", summary="What users got in the last hour, day and week, beside what they were promised", **told)
    def service_levels(request: Asking) -> ServiceLevels:
        caller = caller_of(request)
        return levels_of(gate.store.of(caller.tenant), caller.tenant, promises, dt.datetime.now(dt.UTC))

    return [drift, service_levels]
