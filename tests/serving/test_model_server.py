"""The model server: OpenAI's own client against it, how it gathers requests into batches, and its faults."""

import asyncio
import contextlib
import json
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from agent_rft.contracts.events import ModelSpoke
from agent_rft.rollouts.in_process import ScriptedSampler
from serving.model_server import Faults, model_app
from serving.server import running_server

openai = pytest.importorskip("openai")
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
USER = [{"role": "user", "content": "What was the revenue?"}]
CALL = '<tool_call>{"name": "search", "arguments": {"query": "revenue"}}</tool_call>'


class Heard:
    """A scripted model that remembers what it was asked."""

    def __init__(self, said="$12M", batches=None):
        self.said, self.asks, self.batches, self.temperatures = said, [], [], []
        self.go = threading.Event()
        self.go.set()

    def at(self, temperature):
        self.temperatures.append(temperature)
        inner = ScriptedSampler(lambda ask: self.said if self.said is not None else 1 / 0)
        heard = self

        class Sampler:
            batched, checkpoint = True, "scripted"

            async def sample(self, asks):
                heard.go.wait(10)
                heard.asks += asks
                heard.batches.append((temperature, len(asks)))
                return await inner.sample(asks)

        return Sampler()


@contextlib.contextmanager
def served(in_thread, heard, **given):
    with in_thread(model_app(heard.at, "tiny", **given)) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=10) as client:
            yield client


def chat(client, **more):
    return client.chat.completions.create(**{"model": "tiny", "messages": USER, **more})


def test_openais_client_gets_an_answer(in_thread):
    heard = Heard()
    with served(in_thread, heard) as client:
        told = chat(client, seed=7, max_tokens=5, tools=TOOLS)
        assert [model.id for model in client.models.list()] == ["tiny"]
    choice = told.choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("$12M", None, "stop")
    # the scripted model counts words: four heard; one said, and the end of its turn
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (4, 2, 6)
    ask = heard.asks[0]
    assert (ask.turn, ask.seed, ask.max_tokens, ask.tools[0].name) == (0, 7, 5, "search")
    assert ask.new_messages == ask.conversation and ask.conversation[0].content == "What was the revenue?"


def test_calls_are_told_as_calls_and_come_back_with_their_results(in_thread):
    heard = Heard(CALL)
    with served(in_thread, heard) as client:
        first = chat(client, tools=TOOLS).choices[0]
        call = first.message.tool_calls[0]
        assert (first.finish_reason, first.message.content) == ("tool_calls", None)
        assert (call.function.name, json.loads(call.function.arguments)) == ("search", {"query": "revenue"})
        heard.said = "$12M"
        spoken = first.message.model_dump(exclude_none=True, include={"role", "tool_calls"})
        result = {"role": "tool", "tool_call_id": call.id, "content": "revenue $12M"}
        chat(client, messages=[*USER, spoken, result], tools=TOOLS)
    asked = heard.asks[1].conversation
    assert [message.role for message in asked] == ["user", "assistant", "tool"]
    assert (asked[1].tool_calls[0].name, asked[1].tool_calls[0].arguments) == ("search", {"query": "revenue"})
    assert asked[2].call_id == asked[1].tool_calls[0].call_id == call.id


def test_a_stream_says_the_same_as_a_whole_answer(in_thread):
    heard = Heard("it was  $12M\n\nin 2024 ")
    with served(in_thread, heard) as client:
        chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
        heard.said = CALL
        calls = [chunk for chunk in chat(client, stream=True) if chunk.choices[0].delta.tool_calls]
        with client.chat.completions.with_streaming_response.create(model="tiny", messages=USER, stream=True) as raw:
            lines = [line for line in raw.iter_lines() if line]
    said = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == "it was  $12M\n\nin 2024 "
    assert len(said) > 5 and said[-1].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens == 6
    assert calls[0].choices[0].delta.tool_calls[0].function.arguments == '{"query":"revenue"}'
    assert lines[-1] == "data: [DONE]"


def test_a_turn_that_cannot_be_read_is_handed_on_as_it_was_written(in_thread):
    with served(in_thread, Heard("<tool_call>{broken</tool_call>")) as client:
        told = chat(client, tools=TOOLS).choices[0]
    assert (told.message.content, told.finish_reason) == ("<tool_call>{broken</tool_call>", "stop")


def test_a_turn_that_was_cut_says_so(in_thread):
    with served(in_thread, Heard(ModelSpoke("half a", "length"))) as client:
        assert chat(client).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("temperature", {"temperature": 3}),
        ("messages", {"messages": []}),
        ("messages[0].role", {"messages": [{"role": "robot", "content": "x"}]}),
        ("n", {"n": 2}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("messages[1].tool_calls[0].function.arguments", {"messages": [*USER, {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{"}}]}]}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(in_thread, field, given):
    with served(in_thread, Heard()) as client, pytest.raises(openai.BadRequestError) as caught:
        chat(client, **given)
    assert (caught.value.param, caught.value.type, caught.value.code) == (field, "invalid_request_error", "invalid_value")


def test_another_model_is_not_there(in_thread):
    with served(in_thread, Heard()) as client, pytest.raises(openai.NotFoundError, match="no model 'huge' here; name 'tiny'"):
        chat(client, model="huge")


def test_a_conversation_without_room_is_said_as_servers_say_it(in_thread):
    with served(in_thread, Heard(ModelSpoke("", "no_room"))) as client, pytest.raises(openai.BadRequestError) as caught:
        chat(client)
    assert caught.value.code == "context_length_exceeded"


def test_what_arrives_during_a_batch_is_the_next_one(in_thread):
    """The first is decoded alone. Seven come meanwhile, of two temperatures: two goes, and none for the one that hung up."""
    heard = Heard()
    heard.go.clear()
    with served(in_thread, heard, temperature=0.5) as client:
        asked = [threading.Thread(target=chat, args=(client,), kwargs=more) for more in [{}, *[{}] * 4, *[{"temperature": 1.0}] * 2]]
        asked[0].start()
        time.sleep(0.3)
        for thread in asked[1:]:
            thread.start()
        with contextlib.suppress(openai.APITimeoutError):
            chat(client, timeout=0.3)
        time.sleep(0.2)
        heard.go.set()
        for thread in asked:
            thread.join(10)
    assert heard.batches == [(0.5, 1), (0.5, 4), (1.0, 2)]
    assert heard.temperatures == [0.5, 1.0]  # one sampler a temperature, made once


def test_more_than_may_wait_are_told_to_come_back(in_thread):
    heard = Heard()
    heard.go.clear()
    with served(in_thread, heard, waiting=2) as client:
        asked = [threading.Thread(target=chat, args=(client,)) for _ in range(3)]
        for thread in asked:  # one is decoded, two wait
            thread.start()
            time.sleep(0.2)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        heard.go.set()
        for thread in asked:
            thread.join(10)
    assert caught.value.response.headers["retry-after"] == "1" and sum(size for _, size in heard.batches) == 3


def test_a_sampler_that_fails_fails_its_batch_and_no_other(in_thread):
    heard = Heard()
    with served(in_thread, heard) as client:
        heard.said = None  # the scripted model divides by zero
        with pytest.raises(openai.InternalServerError, match="the model could not speak"):
            chat(client)
        heard.said = "$12M"
        assert chat(client).choices[0].message.content == "$12M"


def test_faults_befall_their_share_of_requests(in_thread):
    with served(in_thread, Heard(), faults=Faults(failure_rate=0.3, leak_rate=0.5), seed=5) as client:
        answers = []
        for _ in range(60):
            with contextlib.suppress(openai.InternalServerError):
                answers.append(chat(client).choices[0].message.content)
    assert 30 <= len(answers) <= 54  # 42 are expected, and all but one in 2,000 draws are in between
    assert 8 <= sum("api_key=sk-" in answer for answer in answers) <= 0.8 * len(answers)


def test_a_hanging_request_is_never_answered_and_a_slow_one_late(in_thread):
    with served(in_thread, Heard(), faults=Faults(hang_rate=1.0)) as client:
        with pytest.raises(openai.APITimeoutError):
            chat(client, timeout=0.3)
        assert json.load(urllib.request.urlopen(f"{client.base_url}".replace("/v1/", "/health")))["status"] == "ok"
    with served(in_thread, Heard(), faults=Faults(latency_seconds=0.3)) as client:
        began = time.monotonic()
        chat(client)
        assert 0.3 <= time.monotonic() - began < 3


def test_the_command_serves_a_checkpoint_and_says_its_faults_aloud():
    """The tiny model as a process: the same seed is the same turn, beside whoever it is decoded; it crashes when it is told to."""
    faults = ["--crash-after", "9", "--leak-rate", "0"]

    def command(port):
        given = ["--checkpoint", "models/research-tiny", "--name", "tiny", "--port", str(port), "--threads", "1"]
        return [sys.executable, "-m", "agent_rft", "model-server", *given, *faults]

    with running_server(command) as server:
        log = server.log.read_text()

        async def ask():
            async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="x", max_retries=0) as client:
                asked = {"model": "tiny", "messages": [{"role": "user", "content": "Crown Optics: revenue Q3 2025?"}], "max_tokens": 40}
                alone = await client.chat.completions.create(**asked, seed=1)
                together = await asyncio.gather(*(client.chat.completions.create(**asked, seed=seed) for seed in [1, *range(2, 9)]))
                assert told(together[0]) == told(alone)
                assert alone.choices[0].finish_reason == "tool_calls" and alone.usage.prompt_tokens > 5
                with pytest.raises(openai.APIConnectionError):
                    await client.chat.completions.create(**asked)

        asyncio.run(ask())
    assert "models/research-tiny@" in log and "ON PURPOSE: the process ends at request 10" in log


def told(completion):
    message = completion.choices[0].message
    return message.content, [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]
