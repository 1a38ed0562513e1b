"""The rollouts' side of the wire, against real servers: ours, and ones that misbehave on purpose."""

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.messages import ToolCall
from agent_rft.rollouts.smoke import smoke
from agent_rft.rollouts.tool_client import HttpTools
from serving.server import free_port, running_server

TOY = str(Path(__file__).parents[1] / "serving" / "toy_server.py")
READ = ToolCall("c1", "read", {"path": "filings/atlas-10k-2024.html"})


def toy_server(*faults):
    return running_server(lambda port: [sys.executable, TOY, str(port), *faults])


@pytest.fixture(scope="module")
def server():
    with toy_server() as running:
        yield running


@contextlib.asynccontextmanager
async def misbehaving(handler):
    """A server whose every answer is the handler's."""
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_a_call_comes_back_with_its_output_time_and_attempts(server):
    async with HttpTools(server.base_url, server.bearer) as tools:
        result = await tools.call("r1", READ)
    assert result.output == "Atlas fiscal 2024\nrevenue: $400M\ngross margin: 28.7%"
    assert (result.call_id, result.error, result.attempts) == ("c1", None, 1)
    assert 0 < result.seconds < 5


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x?y#z", "%2e", "é\n", "n" * 300, "\ud800"])
async def test_any_name_a_model_makes_up_is_answered_as_its_mistake(server, name):
    async with HttpTools(server.base_url, server.bearer) as tools:
        result = await tools.call("r1", ToolCall("c1", name, {}))
    assert result.error == "model_error" and result.output.startswith("Error: ")


@pytest.mark.parametrize("arguments", [{"query": "\ud800"}, "not an object", [], {"query": {}}])
async def test_any_arguments_a_model_makes_up_are_answered_as_its_mistake(server, arguments):
    async with HttpTools(server.base_url, server.bearer) as tools:
        result = await tools.call("r1", ToolCall("c1", "search", arguments))
    assert result.error == "model_error" and result.output.startswith("Error: ")


@pytest.mark.parametrize("status", [404, 500])
async def test_a_tool_that_the_server_does_not_serve_is_the_models_mistake_whatever_the_server_would_say(status):
    """The router of any framework says 404 to a path that it has not, and a server that looks the name up in a dict falls over."""
    asked = []

    async def refuse(request):
        asked.append(request.path)
        return web.json_response({"detail": "Not Found"}, status=status)

    async with misbehaving(refuse) as url, HttpTools(url, "secret", retries=0, names=["convert", "units"]) as tools:
        made_up = await tools.call("r1", ToolCall("c1", "unit", {}))
        assert (made_up.error, made_up.output) == ("model_error", "Error: there is no tool named unit; did you mean 'units'?")
        with pytest.raises(InfraError):  # one that it says it serves is its own trouble
            await tools.call("r1", ToolCall("c2", "units", {}))
    assert asked == ["/tools/units"]


async def test_every_call_carries_its_rollout_and_call_id():
    seen = []

    async def keep(request):
        seen.append((request.path, request.headers["Authorization"], await request.json()))
        return web.json_response({"output": "ok", "call_id": "c1"})

    async with misbehaving(keep) as url, HttpTools(url, "secret") as tools:
        await tools.call("r1", READ)
    assert seen == [("/tools/read", "Bearer secret", {"arguments": READ.arguments, "call_id": "c1", "rollout_id": "r1"})]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_may_pass_is_tried_again(status):
    answers = iter([status, status, 200])

    async def recover(_):
        return web.json_response({"output": "ok", "call_id": "c1"}, status=next(answers))

    async with misbehaving(recover) as url, HttpTools(url, "secret", backoff_seconds=0.001) as tools:
        result = await tools.call("r1", READ)
        assert (result.output, result.attempts) == ("ok", 3)
        assert (tools.stats["read"].calls, tools.stats["read"].failed, tools.stats["read"].retried) == (1, 0, 1)


async def test_retry_after_is_respected():
    times = []

    async def busy_once(_):
        times.append(time.monotonic())
        return web.json_response({"output": "ok"}, status=200 if len(times) > 1 else 429, headers={"Retry-After": "1"})

    async with misbehaving(busy_once) as url, HttpTools(url, "secret", backoff_seconds=0.001) as tools:
        await tools.call("r1", READ)
    assert times[1] - times[0] >= 1.0


async def test_what_stays_broken_is_an_infrastructure_failure_that_names_the_tool():
    async def broken(_):
        return web.json_response({"infra_error": {"part": "tool:read", "what": "disk on fire"}}, status=503)

    async with misbehaving(broken) as url, HttpTools(url, "secret", retries=2, backoff_seconds=0.001) as tools:
        with pytest.raises(InfraError, match=r"answered 503: .*disk on fire.*, 3 attempts") as caught:
            await tools.call("r1", READ)
        assert caught.value.part == "tool:read"
        assert (tools.stats["read"].calls, tools.stats["read"].failed, tools.stats["read"].retried) == (1, 1, 1)


async def test_a_hanging_server_is_given_up_after_the_timeout():
    async def hang(_):
        await asyncio.sleep(60)
        return web.Response()

    async with misbehaving(hang) as url, HttpTools(url, "secret", timeout_seconds=0.1, retries=1, backoff_seconds=0.001) as tools:
        with pytest.raises(InfraError, match=r"tool:read: no answer from http://127\.0\.0\.1:\d+ within 0\.1 s, 2 attempts"):
            await tools.call("r1", READ)


async def test_a_refusal_with_an_output_is_shown_to_the_model():
    async def refuse(_):
        return web.json_response({"output": "Error: unknown field", "call_id": "c1", "error": "model_error"}, status=422)

    async with misbehaving(refuse) as url, HttpTools(url, "secret") as tools:
        result = await tools.call("r1", READ)
    assert (result.output, result.error, result.attempts) == ("Error: unknown field", "model_error", 1)


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b'{"detail": "no"}'])
async def test_an_answer_that_is_none_is_ours_and_not_tried_again(body):
    async def nonsense(_):
        return web.Response(status=404, body=body)

    async with misbehaving(nonsense) as url, HttpTools(url, "secret") as tools:
        with pytest.raises(InfraError, match=r"tool:read: not a tool server's answer: .* answered 404"):
            await tools.call("r1", READ)


async def test_the_answer_to_another_call_is_an_infrastructure_failure():
    async def swap(_):
        return web.json_response({"output": "what c2 asked for", "call_id": "c2"})

    async with misbehaving(swap) as url, HttpTools(url, "secret") as tools:
        with pytest.raises(InfraError, match=r"tool:read: answered another call, 'c2' instead of 'c1'"):
            await tools.call("r1", READ)


@pytest.mark.parametrize("echoed", [{}, {"call_id": None}])
async def test_a_server_need_not_echo_the_call_id(echoed):
    async def answer(_):
        return web.json_response({"output": "ok", **echoed})

    async with misbehaving(answer) as url, HttpTools(url, "secret") as tools:
        assert (await tools.call("r1", READ)).output == "ok"


async def test_a_wrong_bearer_is_the_users_mistake_and_says_so_at_once(server):
    async with HttpTools(server.base_url, "wrong") as tools:
        with pytest.raises(UserError, match=r"(?s)refuses our bearer.*cure: set TOOL_BEARER"):
            await tools.call("r1", READ)


async def test_nobody_listening_is_an_infrastructure_failure():
    async with HttpTools(f"http://127.0.0.1:{free_port()}", "x", retries=1, backoff_seconds=0.001) as tools:
        with pytest.raises(InfraError, match=r"tool:read: .*Connect call failed.*, 2 attempts"):
            await tools.call("r1", READ)


async def test_many_rollouts_at_once_lose_no_call(server):
    """128 rollouts, four calls each, one after another."""

    async def rollout(tools, number):
        return [await tools.call(f"r{number}", ToolCall(f"c{i}", "search", {"query": f"henderson {i}"})) for i in range(4)]

    async with HttpTools(server.base_url, server.bearer) as tools:
        results = await asyncio.gather(*(rollout(tools, number) for number in range(128)))
        assert [[result.call_id for result in calls] for calls in results] == [["c0", "c1", "c2", "c3"]] * 128
        assert (tools.stats["search"].calls, tools.stats["search"].failed) == (512, 0)


async def test_no_more_calls_are_in_flight_than_allowed():
    in_flight, most = 0, 0

    async def count(_):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        in_flight -= 1
        return web.json_response({"output": "ok"})

    async with misbehaving(count) as url, HttpTools(url, "secret", concurrency=3) as tools:
        await asyncio.gather(*(tools.call("r1", READ) for _ in range(20)))
    assert most == 3


def started_on(port):
    return subprocess.Popen([sys.executable, TOY, str(port)], env={**os.environ, "TOOL_BEARER": "secret"}, stderr=subprocess.DEVNULL)


async def test_a_server_killed_in_a_burst_and_started_again_costs_no_call():
    port = free_port()
    first = started_on(port)
    second = None
    async with HttpTools(f"http://127.0.0.1:{port}", "secret", retries=12, backoff_seconds=0.1) as tools:
        try:
            await tools.call("warm", READ)  # retries until it is up
            burst = [asyncio.create_task(tools.call(f"r{i}", READ)) for i in range(2000)]
            await asyncio.sleep(0.1)
            first.send_signal(signal.SIGKILL)
            first.wait()
            assert any(not task.done() for task in burst)
            second = started_on(port)
            results = await asyncio.gather(*burst)
        finally:
            for process in (first, second):
                if process:
                    process.kill()
                    process.wait()
    assert {result.output.partition("\n")[0] for result in results} == {"Atlas fiscal 2024"}
    assert max(result.attempts for result in results) > 1


async def test_a_share_of_calls_fails_after_all_retries_as_the_server_was_told():
    with toy_server("failure_rate=0.1", "seed=3") as flaky:
        async with HttpTools(flaky.base_url, flaky.bearer, retries=2, backoff_seconds=0.001) as tools:
            calls = (tools.call(f"r{i}", ToolCall("c1", "list", {"prefix": ""})) for i in range(400))
            results = await asyncio.gather(*calls, return_exceptions=True)
    failed = [result for result in results if isinstance(result, InfraError)]
    assert 400 * 0.1 - 4 * 6 < len(failed) < 400 * 0.1 + 4 * 6  # binomial: mean 40, standard deviation 6
    assert {failure.part for failure in failed} == {"tool:list"}


async def test_a_hang_inside_the_server_becomes_a_503_at_its_deadline():
    with toy_server("hang_rate=1", "deadline=0.2") as hanging:
        async with HttpTools(hanging.base_url, hanging.bearer, retries=0) as tools:
            with pytest.raises(InfraError, match=r"tool:read: .* answered 503: .*no answer within 0\.0666667 s, 3 attempts"):
                await tools.call("r1", READ)


async def test_the_smoke_test_passes_on_a_healthy_server_and_says_what_each_call_gave(server):
    async with HttpTools(server.base_url, server.bearer) as tools, HttpTools(server.base_url, "wrong") as stranger:
        checks = await smoke(tools, stranger)
    assert [(check.what, check.ok) for check in checks] == [
        ('list {"prefix": ""}', True),
        ("read filings/atlas-10k-2024.html", True),
        ("search Atlas fiscal 2024", True),
        ("search without a query", True),
        ("a tool that does not exist", True),
        ("a wrong bearer", True),
    ]
    assert checks[1].said == "Atlas fiscal 2024"


async def test_the_smoke_test_fails_where_anybody_is_let_in_or_nobody_answers(server):
    async with HttpTools(server.base_url, server.bearer) as tools, HttpTools(f"http://127.0.0.1:{free_port()}", "x", retries=0) as nobody:
        assert [check.ok for check in await smoke(tools, stranger=tools)] == [True] * 5 + [False]
        assert [check.ok for check in await smoke(nobody, nobody)] == [False] * 6


async def test_a_client_sent_to_another_process_calls_the_same_server(server):
    async with HttpTools(server.base_url, server.bearer) as here:
        sent = pickle.dumps(here)
    async with pickle.loads(sent) as there:
        assert (await there.call("r-1", ToolCall("call-1-1", "list", {}))).error is None
