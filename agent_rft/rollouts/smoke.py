"""One call to each tool of a server, the wrong calls included: does it do what a training run will ask of it?"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.ports import ToolBox
from agent_rft.contracts.rollouts import ToolResult

Judge = Callable[[ToolResult], bool]


class SmokeCheck(msgspec.Struct, frozen=True):
    what: str
    """The call, or what was tried."""
    ok: bool
    seconds: float
    said: str
    """The first line of the output, or of the trouble."""


async def smoke(tools: ToolBox, stranger: ToolBox) -> list[SmokeCheck]:
    """`stranger` calls the same server with a wrong bearer. What is asked comes from the corpus itself: its first path, its title."""
    listing = await _output_of(tools, "list", {"prefix": ""})
    path = listing.partition("\n")[0]
    title = (await _output_of(tools, "read", {"path": path})).partition("\n")[0]
    return [
        await _check('list {"prefix": ""}', lambda: _call(tools, "list", {"prefix": ""}), _answered),
        await _check(f"read {path}", lambda: _call(tools, "read", {"path": path}), _answered),
        await _check(f"search {title}", lambda: _call(tools, "search", {"query": title}), lambda result: path in result.output),
        await _check("search without a query", lambda: _call(tools, "search", {}), _corrected),
        await _check("a tool that does not exist", lambda: _call(tools, "no_such_tool", {}), _corrected),
        await _refusal(stranger),
    ]


def _answered(result: ToolResult) -> bool:
    return result.error is None and bool(result.output)


def _corrected(result: ToolResult) -> bool:
    """The model is told what to change: an output, and no failure."""
    return result.error == "model_error" and bool(result.output)


def _call(tools: ToolBox, name: str, arguments: dict[str, Any]) -> Awaitable[ToolResult]:
    return tools.call("smoke-test", ToolCall(f"smoke-{name}", name, arguments))


async def _output_of(tools: ToolBox, name: str, arguments: dict[str, Any]) -> str:
    try:
        result = await _call(tools, name, arguments)
    except InfraError:
        return ""  # the check of this very call will say so
    return result.output if result.error is None else ""


async def _check(what: str, call: Callable[[], Awaitable[ToolResult]], judge: Judge) -> SmokeCheck:
    started = time.perf_counter()
    try:
        result = await call()
        ok, said = judge(result), result.output
    except InfraError as failure:
        ok, said = False, str(failure)
    return SmokeCheck(what, ok, time.perf_counter() - started, said.partition("\n")[0])


async def _refusal(stranger: ToolBox) -> SmokeCheck:
    started, what = time.perf_counter(), "a wrong bearer"
    try:
        await _call(stranger, "list", {"prefix": ""})
        ok, said = False, "it was let in: start the server with TOOL_BEARER set"
    except UserError:
        ok, said = True, "refused, as it should be"
    except InfraError as failure:
        ok, said = False, str(failure)
    return SmokeCheck(what, ok, time.perf_counter() - started, said)
