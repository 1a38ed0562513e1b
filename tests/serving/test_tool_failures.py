"""What is not the model's fault: tried again inside, then 503 with the tool's name."""

import asyncio
import time

import pytest

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.messages import ToolSpec
from serving.tool_calls import ToolRunner
from serving.tools.context import CallKey, current_call
from serving.tools.faults import FlakyTools


class Echo:
    """Answers its text; fails the first `failures` times; waits first if told to."""

    specs = (ToolSpec("echo", parameters={"type": "object", "required": ["text"]}),)
    version = "1"

    def __init__(self, failures=0, waits=0.0):
        self.calls, self._failures, self._waits, self.blocks = 0, failures, waits, waits > 0

    def call(self, name, arguments):
        self.calls += 1
        time.sleep(self._waits)
        if self.calls <= self._failures:
            raise OSError("disk on fire")
        return arguments["text"], None


async def test_a_tool_that_recovers_is_no_failure():
    tools = Echo(failures=2)
    assert await ToolRunner(tools, backoff_seconds=0).run("echo", {"text": "hi"}) == ("hi", None)
    assert tools.calls == 3


async def test_after_its_retries_the_failure_names_the_tool_and_the_trouble():
    tools = Echo(failures=3)
    with pytest.raises(InfraError, match=r"tool:echo: OSError\('disk on fire'\), 3 attempts"):
        await ToolRunner(tools, backoff_seconds=0).run("echo", {"text": "hi"})
    assert tools.calls == 3


async def test_a_tool_that_hangs_is_given_up_at_the_deadline():
    started = time.monotonic()
    with pytest.raises(InfraError, match=r"tool:echo: no answer within 0\.05 s, 2 attempts"):
        await ToolRunner(Echo(waits=30), deadline_seconds=0.1, attempts=2, backoff_seconds=0).run("echo", {"text": "hi"})
    assert time.monotonic() - started < 20


async def test_tools_that_wait_do_not_wait_for_each_other():
    runner = ToolRunner(Echo(waits=0.5))
    started = time.monotonic()
    answers = await asyncio.gather(*(runner.run("echo", {"text": str(i)}) for i in range(16)))
    assert answers == [(str(i), None) for i in range(16)]
    assert time.monotonic() - started < 6, "one after another: 8 s"


async def test_waiting_for_a_thread_is_not_counted_against_the_tool():
    runner = ToolRunner(Echo(waits=0.4), deadline_seconds=2.5, attempts=1, max_threads=2)
    answers = await asyncio.gather(*(runner.run("echo", {"text": str(i)}) for i in range(16)))  # eight rounds: 3.2 s
    assert answers == [(str(i), None) for i in range(16)]


async def test_calls_that_were_given_up_still_count_as_threads():
    tools = Echo(waits=0.3)
    runner = ToolRunner(tools, deadline_seconds=0.02, attempts=1, max_threads=2)
    calls = [asyncio.ensure_future(runner.run("echo", {"text": "hi"})) for _ in range(4)]
    await asyncio.wait(calls[:2])
    assert tools.calls == 2  # both were given up, both threads live on
    await asyncio.wait(calls)
    assert tools.calls == 4
    assert all(isinstance(call.exception(), InfraError) for call in calls)


def outcomes(tools, calls, attempts=1):
    """Per logical call: did it fail, over all its attempts?"""
    failed = []
    for number in range(calls):
        current_call.set(CallKey("rollout", f"call-{number}"))
        failed.append(all(not succeeds(tools) for _ in range(attempts)))
    current_call.set(None)
    return failed


def succeeds(tools):
    try:
        return tools.call("echo", {"text": "hi"}) == ("hi", None)
    except ConnectionError:
        return False


@pytest.mark.parametrize("attempts", [1, 4])
def test_the_failure_rate_is_of_calls_and_holds_whatever_the_retries(attempts):
    failed = sum(outcomes(FlakyTools(Echo(), failure_rate=0.03, seed=7), 5000, attempts))
    # Binomial(5000, .03): mean 150, standard deviation 12; independent retries would leave .03 ** 4 * 5000 = 0.004
    assert 150 - 4 * 12 < failed < 150 + 4 * 12


def test_the_same_seed_fails_the_same_calls():
    first, again, other = (outcomes(FlakyTools(Echo(), failure_rate=0.2, seed=seed), 200) for seed in (1, 1, 2))
    assert first == again != other


def test_no_rate_no_fault():
    tools = FlakyTools(Echo())
    assert not any(outcomes(tools, 500)) and not tools.blocks
