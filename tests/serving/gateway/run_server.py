"""A whole server, in a process of its own: `run_server.py PORT STORE MODEL_URL FOLDER`. It ends with `kill -9` at the latest."""

import datetime as dt
import os
import sys
from contextlib import closing
from pathlib import Path

from agent_rft.datasets.filings import TOOLS
from observability.intake import Intake
from observability.redaction.detectors import detectors_of
from observability.store import open_store
from serving.app import create_app
from serving.gateway.agents import Agents, AgentsPlan
from serving.gateway.app import Gateway, GatewayPlan
from serving.gateway.driving import Pace
from serving.gateway.ending import ToolSet
from serving.gateway.upstreams import UpstreamSpec
from serving.gateway.writing import Plan
from serving.production_tools import Rules, changing
from serving.release.routing import Routing
from serving.server import serve
from serving.tools.corpus import CorpusTools
from serving.tools.joined import JoinedTools
from serving.tools.outbox import OutboxTools

FILINGS = {"filings/henderson-10q-2025-q3.html": "Henderson Q3 2025\nrevenue: $842M\noperating margin: 13.4%"}
PACE = Pace(lease_seconds=2.0, renew_seconds=0.3, look_seconds=0.1)

if __name__ == "__main__":
    port, url, model, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    bearer = os.environ["TOOL_BEARER"]
    store, detectors = open_store(url), detectors_of(True)
    tools = JoinedTools([CorpusTools(FILINGS, TOOLS), OutboxTools(folder / "outbox")])
    cards = Plan(
        store=store.address,
        folder=str(folder / str(port)),
        most_bytes=10**8,
        redact=True,
        patterns={},
        tenant_patterns={},
        code="c1",
        collector="",
    )
    upstreams = tuple(
        UpstreamSpec(name=name, url=f"{model}/{name}/v1", model="m", checkpoint=f"weights-{name}", connect_seconds=0.5)
        for name in ("live", "new")
    )
    with closing(store), closing(Intake(store, detectors)) as intake:
        with closing(Gateway(GatewayPlan(upstreams=upstreams, cards=cards), store, Routing(store, folder / "withdrawn"))) as gateway:
            tool_set = ToolSet(tools.specs, tools.version, changing(tools))
            plan = AgentsPlan(
                tools_url=f"http://127.0.0.1:{port}", tools_bearer=bearer, tool_set=tool_set, code="c1", pace=PACE, candidate_seconds=1.0
            )
            app = create_app(
                tools,
                {},
                bearer,
                store=store,
                intake=intake,
                gateway=gateway,
                agents=Agents(plan, gateway, store, intake),
                production=Rules(high_impact=frozenset({"publish"}), approval=dt.timedelta(minutes=5)),
            )
            serve(app, "127.0.0.1", port)
