"""A real gateway in a process of its own: `gateway_server.py PORT STORE LIVE FOLDER [CANDIDATE]`, LIVE and CANDIDATE being upstreams. It
ends with `kill -9` at the latest."""

import sys
from pathlib import Path

from litestar import Litestar, get

from observability.store import open_store
from serving.gateway.app import Gateway, GatewayPlan
from serving.gateway.upstreams import UpstreamSpec
from serving.gateway.writing import Plan
from serving.release.routing import Routing
from serving.server import serve


@get("/health")
async def health() -> str:
    return "ok"


if __name__ == "__main__":
    port, url, live, folder, *candidate = sys.argv[1:]
    store = open_store(url)
    cards = Plan(
        store=store.address,
        folder=f"{folder}/spool",
        most_bytes=10**8,
        redact=True,
        patterns={},
        tenant_patterns={},
        code="c1",
        collector="",
    )
    upstreams = [UpstreamSpec(name="live", url=live, model="m", checkpoint="weights-live")]
    upstreams += [UpstreamSpec(name="new", url=each, model="m", checkpoint="weights-new") for each in candidate]
    plan = GatewayPlan(upstreams=tuple(upstreams), cards=cards)
    gateway = Gateway(plan, store, Routing(store, Path(folder, "withdrawn")))
    serve(Litestar([*gateway.routes(), health], lifespan=[gateway.running], logging_config=None), "127.0.0.1", int(port))
