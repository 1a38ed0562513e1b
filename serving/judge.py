"""A scripted judge over HTTP, where an OpenAI-compatible model or somebody's endpoint grader would be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Generator
from typing import Annotated, Any

import uvicorn
from litestar import Litestar, Response, get, post
from litestar.params import Body

from agent_rft.graders.scripted_judge import Said, Script, ScriptedJudge


def judge_app(judge: ScriptedJudge) -> Litestar:
    @post("/v1/chat/completions", summary="Ask the judge", tags=["judge"])
    async def completions(data: Annotated[dict[str, Any], Body()]) -> Response[dict[str, Any]]:
        return await _sent(judge.complete(data))

    @post("/grade", summary="Ask it as an endpoint grader does", tags=["judge"])
    async def grade(data: Annotated[dict[str, Any], Body()]) -> Response[dict[str, Any]]:
        return await _sent(judge.score(data))

    @get("/health", summary="Whether it is up, and how often it was asked", tags=["judge"])
    async def health() -> dict[str, Any]:
        return {"status": "ok", "asked": judge.asked}

    return Litestar([completions, grade, health], logging_config=None)


async def _sent(said: Said) -> Response[dict[str, Any]]:
    await asyncio.sleep(said.delay)
    headers = {} if said.retry_after is None else {"Retry-After": str(said.retry_after)}
    return Response(said.body, status_code=said.status, headers=headers)


@contextlib.contextmanager
def running_judge(script: Script) -> Generator[str]:
    """A judge on a free port of this machine, in a thread of this process; yields the address up to /v1."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    config = uvicorn.Config(judge_app(ScriptedJudge(script)), log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # who asks before the loop runs waits in the socket's queue
    thread = threading.Thread(target=server.run, args=([listening],), name="scripted-judge", daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join()
