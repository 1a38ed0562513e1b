"""A model behind OpenAI's chat API, held to what every sampler promises: the machine ends the same by it as by a scripted one."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.retries import TryAgain
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, ToolResult
from agent_rft.rollouts.chat_sampler import ChatSampler, Reply, as_openai, heard, posting_to
from agent_rft.rollouts.driver import run_one
from agent_rft.rollouts.in_process import ScriptedSampler
from serving.server import free_port

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
ASK = AskModel("r-1", 0, 7, (), (Message("user", "Q?"),), (ToolSpec("search", "Find."),), 64, 4096)


class Tools:
    async def call(self, rollout_id, call):
        return ToolResult(call.call_id, f"found {call.arguments}")


def completion(content, calls=(), finish="stop", prompt=20, written=5):
    said = {"role": "assistant", "content": content}
    if calls:
        said["tool_calls"] = [
            {"id": f"x{n}", "type": "function", "function": {"name": name, "arguments": text}} for n, (name, text) in enumerate(calls)
        ]
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {"choices": [{"index": 0, "message": said, "finish_reason": finish}], "usage": usage}


def sampler_of(*answers, seen=None, **more):
    """Says one after the other; a number is a status without a body."""
    waiting = iter(answers)

    async def post(body):
        if seen is not None:
            seen.append(body)
        answer = next(waiting)
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer, b"busy") if isinstance(answer, int) else Reply(200, json.dumps(answer).encode())

    return ChatSampler(post, model="m", checkpoint="w", **{"backoff_seconds": 0.001, **more})


def rollout(**limits):
    return Rollout("r-1", (Message("user", "Q?"),), (ToolSpec("search"),), Limits(**limits), 7)


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        (["13.4%"], [completion("13.4%")]),
        ([CALL, "13.4%"], [completion(None, [("search", '{"query": "x"}')]), completion("13.4%")]),
        ([CALL, "13.4%"], [completion(CALL), completion("13.4%")]),
        ([""], [completion("")]),
        (["<tool_call>{"], [completion("<tool_call>{")]),
        ([ModelSpoke("half a", "length", sampled_tokens=5)], [completion("half a", finish="length")]),
        ([CALL] * 9, [completion(None, [("search", '{"query": "x"}')])] * 9),
        (['<tool_call>{"name": "search", "arguments": "{\\"query\\": "}</tool_call>'], [completion(None, [("search", '{"query": ')])]),
        (['<tool_call>{"name": "search", "arguments": "[1]"}</tool_call>'], [completion("so", [("search", "[1]")])]),
        ([InfraFailed("model", "busy")], [503, 503]),
    ],
)
async def test_the_machine_ends_the_same_by_it_as_by_a_scripted_sampler(script, answers):
    scripted, chatted = rollout(max_turns=4), rollout(max_turns=4)
    await run_one(scripted, ScriptedSampler(lambda ask: script[ask.turn]), Tools())
    await run_one(chatted, sampler_of(*answers, retries=1), Tools())
    assert (chatted.ending, chatted.answer, chatted.failed_part) == (scripted.ending, scripted.answer, scripted.failed_part)
    assert [turn.calls for turn in chatted.turns] == [turn.calls for turn in scripted.turns]


async def test_a_conversation_is_sent_as_openai_has_it():
    seen = []
    calls = [("search", '{"query": "a"}'), ("search", '{"query": "b"}')]
    await run_one(rollout(), sampler_of(completion("First.", calls), completion("42"), seen=seen, temperature=0.5), Tools())
    first, second = seen
    assert (first["model"], first["temperature"], first["max_tokens"], first["seed"]) == ("m", 0.5, 512, 7)
    assert first["tools"] == [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    assert second["messages"][1] == {
        "role": "assistant",
        "content": "First.",
        "tool_calls": [
            {"id": "call-1-1", "type": "function", "function": {"name": "search", "arguments": '{"query":"a"}'}},
            {"id": "call-1-2", "type": "function", "function": {"name": "search", "arguments": '{"query":"b"}'}},
        ],
    }
    assert second["messages"][2] == {"role": "tool", "tool_call_id": "call-1-1", "content": "found {'query': 'a'}"}


def test_calls_that_stood_in_the_text_are_sent_once():
    call = ToolCall("call-1-1", "search", {"query": "x"})
    assert as_openai(Message("assistant", f"So.\n{CALL}", (call,)))["content"] == "So."
    assert as_openai(Message("assistant", '{"name": "search", "parameters": {"query": "x"}}', (call,)))["content"] is None


async def test_tokens_that_an_endpoint_counts_again_count_once():
    """20 + 5, then a context of 40 of which 25 were there: 15 + 7."""
    ended = rollout()
    answers = completion(None, [("search", "{}")], prompt=20, written=5), completion("42", prompt=40, written=7)
    await run_one(ended, sampler_of(*answers), Tools())
    assert [(turn.context_tokens, turn.sampled_tokens) for turn in ended.turns] == [(20, 5), (15, 7)] and ended.total_tokens == 47


async def test_what_may_pass_is_tried_again_and_then_is_the_infrastructures_failure():
    assert isinstance((await sampler_of(503, 429, TimeoutError(), completion("42")).sample([ASK]))[0], ModelSpoke)
    (failed,) = await sampler_of(*[500] * 3, retries=2).sample([ASK])
    assert failed == InfraFailed("model", "the model's server answered 500: busy, 3 attempts")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(401, b"no key"), "401: no key"),
        (Reply(404, b"no model"), "404: no model"),
        (Reply(200, b"<html>"), "not a chat completion"),
        (Reply(200, b'{"choices": []}'), "not a chat completion"),
    ],
)
def test_what_is_no_answer_is_the_infrastructures_failure_and_not_tried_again(reply, said):
    failed = heard(reply, 0)
    assert isinstance(failed, InfraFailed) and failed.part == "model" and said in failed.what


def test_a_conversation_that_has_outgrown_the_model_is_no_failure_of_the_server():
    assert heard(Reply(400, b'{"error": {"code": "context_length_exceeded"}}'), 0) == ModelSpoke("", "no_room")


async def test_a_conversation_that_cannot_be_written_as_json_is_told():
    ask = AskModel("r", 0, 0, (), (Message("user", "\ud800"),), (), 64, 4096)

    async def post(body):
        json.dumps(body).encode()
        return Reply(200, body["messages"][0]["content"].encode())

    (failed,) = await ChatSampler(post, model="m", checkpoint="w").sample([ask])
    assert isinstance(failed, InfraFailed) and "cannot be sent" in failed.what


@contextlib.asynccontextmanager
async def serving(handler):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


async def test_many_are_in_flight_at_once_over_one_session():
    now = most = 0

    async def answer(request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        assert request.headers["Authorization"] == "Bearer secret"
        await asyncio.sleep(0.2)
        now -= 1
        return web.json_response(completion("42"))

    async with serving(answer) as url, posting_to(url, "secret") as post:
        spoke = await ChatSampler(post, model="m", checkpoint="w").sample([ASK] * 200)
    assert [said.text for said in spoke] == ["42"] * 200 and most > 100


async def test_a_server_that_hangs_or_is_gone_fails_in_time():
    async def hang(_):
        await asyncio.sleep(5)

    async with serving(hang) as url, posting_to(url, timeout_seconds=0.1) as post:
        (failed,) = await ChatSampler(post, model="m", checkpoint="w", retries=0).sample([ASK])
        assert failed.what.endswith("within 0.1 s, 1 attempt")
    async with posting_to(f"http://127.0.0.1:{free_port()}/v1") as post:
        ended = rollout()
        await run_one(ended, ChatSampler(post, model="m", checkpoint="w", retries=1, backoff_seconds=0.01), Tools())
    assert (ended.ending, ended.failed_part) == (Ending.INFRA_FAILED, "model")


async def test_time_that_a_servers_trouble_took_is_not_the_models():
    """Each turn loses 0.4 s of the 0.7 that the whole may take: to the model's own time they would leave nothing for the second."""
    busy = TryAgain("busy", pause_seconds=0.4)
    recovers = sampler_of(busy, completion(None, [("search", '{"query": "x"}')]), busy, completion("13.4%"))
    answered = rollout(max_seconds=0.7)
    await run_one(answered, recovers, Tools())
    assert (answered.ending, answered.answer) == (Ending.ANSWERED, "13.4%") and answered.seconds > 0.8


async def test_a_server_that_is_in_trouble_until_the_time_is_up_has_failed_and_not_the_model():
    ended = rollout(max_seconds=0.2)
    await run_one(ended, sampler_of(429, 429, 429, backoff_seconds=1.0), Tools())
    assert (ended.ending, ended.failed_part) == (Ending.INFRA_FAILED, "model")
    assert ended.reason == "model: the model's server answered 429: busy; then the time was up"


@pytest.mark.parametrize(("longest", "waited"), [(10.0, 10.0), (60.0, 42.0)])
async def test_a_server_is_given_the_time_that_it_asks_for_but_not_any(monkeypatch, longest, waited):
    pauses = list[float]()

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr("agent_rft.rollouts.chat_sampler.asyncio.sleep", sleep)
    sampler = sampler_of(TryAgain("busy", pause_seconds=42.0), completion("13.4%"), longest_pause_seconds=longest)
    assert (await sampler.sample([ASK]))[0].text == "13.4%" and pauses == [waited]
