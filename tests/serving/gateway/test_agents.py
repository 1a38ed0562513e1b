"""Agents' runs, put together."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from agent_rft.contracts.messages import ToolCall, ToolSpec
from observability.store import Store
from serving.gateway.agents import Agents, AgentsPlan
from serving.gateway.app import Gateway
from serving.gateway.ending import ToolSet


async def test_a_call_of_a_tool_that_the_server_does_not_serve_is_the_agents_mistake_and_is_not_sent(tmp_path: Path):
    """Nothing listens at that address, and the client is not even open: what would be sent would be trouble of ours."""
    plan = AgentsPlan(
        tools_url="http://127.0.0.1:9", tools_bearer="b", tool_set=ToolSet((ToolSpec("search"), ToolSpec("read")), "tools-1"), code="c1"
    )
    gateway = SimpleNamespace(upstreams=None, routing=None)
    agents = Agents(plan, cast(Gateway, gateway), cast(Store, SimpleNamespace(name="none")), cast(Any, None))
    result = await agents.tools.on_behalf_of("acme", "ann").call("r1", ToolCall("c1", "serch", {"query": "x"}))
    assert (result.error, result.output) == ("model_error", "Error: there is no tool named serch; did you mean 'search'?")
