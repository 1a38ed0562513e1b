"""A model behind OpenAI's chat API, as the rollouts' machine asks for it: any number of rollouts at once, over one session."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import msgspec
from yarl import URL

from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.contracts.messages import Message
from agent_rft.contracts.retries import TryAgain, may_pass, pause_before_next, seconds_asked_for
from agent_rft.rollouts.parsing import BLOCK, CLOSE, OPEN, Calls, parse_turn

TOO_LONG = ("context_length_exceeded", "maximum context length", "max_model_len")
"""How servers say that the conversation leaves the model no room."""


class Reply(NamedTuple):
    status: int
    body: bytes
    retry_after: str = ""


Post = Callable[[dict[str, Any]], Awaitable[Reply]]
"""Sends a request to some model's /chat/completions. Raises TimeoutError, OSError or TryAgain where no reply comes."""


@asynccontextmanager
async def posting_to(base_url: str, key: str = "", timeout_seconds: float = 120.0, in_flight: int = 4096) -> AsyncGenerator[Post]:
    """`base_url` as OpenAI's clients take it: http://host/v1."""
    url, places = URL(f"{base_url.rstrip('/')}/chat/completions"), asyncio.Semaphore(in_flight)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # the semaphore is the limit
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:

        async def post(body: dict[str, Any]) -> Reply:
            data = msgspec.json.encode(body)
            try:
                async with places, session.post(url, data=data, allow_redirects=False) as response:
                    return Reply(response.status, await response.read(), response.headers.get("Retry-After", ""))
            except TimeoutError:
                raise TryAgain(f"no answer from {url} within {timeout_seconds:g} s") from None
            except aiohttp.ClientError as error:
                raise TryAgain(f"{url}: {error or type(error).__name__}") from error

        yield post


# --- what the endpoint answers, as far as it matters here -----------------------------------------------------------


class _Function(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Function


class _Said(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    """Without it a turn counts as no tokens, and only turns, calls and seconds bound the rollout."""


class ChatSampler:
    """A Sampler over `post`. What may pass is asked for again after a pause that doubles; then it is an infrastructure failure."""

    batched = False

    def __init__(
        self,
        post: Post,
        *,
        model: str,
        checkpoint: str,
        temperature: float = 1.0,
        retries: int = 5,
        backoff_seconds: float = 0.2,
        longest_pause_seconds: float = 10.0,
    ) -> None:
        """`longest_pause_seconds`: what a server may ask us to wait, too; it is asked again after that."""
        self.checkpoint = checkpoint
        self._post, self._model, self._temperature = post, model, temperature
        self._retries, self._backoff_seconds, self._longest_pause = retries, backoff_seconds, longest_pause_seconds

    async def sample(self, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        if len(asks) == 1:  # as a driver asks that runs rollouts side by side; a task more for each costs it a tenth
            return [await self._speak(asks[0])]
        return await asyncio.gather(*(self._speak(ask) for ask in asks))

    async def _speak(self, ask: AskModel) -> ModelSpoke | InfraFailed:
        body, began, met = request_of(ask, self._model, self._temperature), time.monotonic(), list[TryAgain]()
        try:
            while True:
                lost = time.monotonic() - began
                try:
                    said = heard(await self._attempt(body), ask.used)
                except TryAgain as trouble:
                    met.append(trouble)
                    if len(met) > self._retries:
                        return InfraFailed("model", f"{trouble}, {len(met)} attempt{'s' * (len(met) > 1)}")
                    await asyncio.sleep(self._pause(trouble, len(met)))
                else:
                    return msgspec.structs.replace(said, lost_seconds=lost) if met and isinstance(said, ModelSpoke) else said
        except (ValueError, OverflowError, RecursionError) as error:  # half a surrogate pair in a tool's output
            return InfraFailed("model", f"this conversation cannot be sent: {error}")
        except asyncio.CancelledError as called_off:
            if met:  # whoever called it off must not take the server's trouble for a slow model
                called_off.add_note(str(met[-1]))
            raise

    def _pause(self, trouble: TryAgain, attempt: int) -> float:
        asked = min(trouble.pause_seconds, self._longest_pause)
        return pause_before_next(attempt, asked, self._backoff_seconds, self._longest_pause, random.uniform(0.5, 1.5))

    async def _attempt(self, body: dict[str, Any]) -> Reply:
        try:
            reply = await self._post(body)
        except TimeoutError:
            raise TryAgain("the model gave no answer in time") from None
        except OSError as error:
            raise TryAgain(f"the model cannot be reached: {error or type(error).__name__}") from error
        if may_pass(reply.status):
            raise TryAgain(f"the model's server answered {_shown(reply)}", seconds_asked_for(reply.retry_after, time.time()))
        return reply


# --- both ways ------------------------------------------------------------------------------------------------------


def request_of(ask: AskModel, model: str, temperature: float) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [as_openai(message) for message in ask.conversation],
        "max_tokens": ask.max_tokens,
        "temperature": temperature,
        "seed": (ask.seed + ask.turn) % 2**31,
    }
    return body | ({"tools": [tool.as_openai() for tool in ask.tools]} if ask.tools else {})


def as_openai(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.content}
    if not message.tool_calls:
        return {"role": message.role, "content": message.content}
    calls = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": msgspec.json.encode(call.arguments).decode()},
        }
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": _without_calls(message.content) or None, "tool_calls": calls}


def _without_calls(text: str) -> str:
    """Calls that the machine read from the text stand beside it when it is sent on; twice would be two turns in one."""
    if OPEN in text:
        return BLOCK.sub("", text).strip()
    return "" if isinstance(parse_turn(text), Calls) else text


def heard(reply: Reply, used: int) -> ModelSpoke | InfraFailed:
    """`used`: the tokens that the trajectory had already, which the endpoint has counted again."""
    if reply.status != 200:
        said = reply.body.decode(errors="replace")
        if reply.status == 400 and any(words in said for words in TOO_LONG):
            return ModelSpoke("", "no_room")
        return InfraFailed("model", f"its server answered {_shown(reply)}")
    try:
        completion = msgspec.json.decode(reply.body, type=_Completion)
        choice = completion.choices[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
        return InfraFailed("model", f"not a chat completion: {_shown(reply)}")
    usage, text = completion.usage or _Usage(), choice.message.content or ""
    calls = _calls(choice.message.tool_calls or [])
    if calls is None:
        text, calls = _as_written(text, choice.message.tool_calls or []), ()
    return ModelSpoke(
        text,
        "length" if choice.finish_reason == "length" else "stop",
        context_tokens=max(0, usage.prompt_tokens - used),
        sampled_tokens=usage.completion_tokens,
        calls=calls or None,  # an endpoint that does not read calls leaves them in the text, for the machine
    )


def _calls(said: Sequence[_Call]) -> tuple[tuple[str, dict[str, object]], ...] | None:
    """None where one cannot be read: half of a parallel turn would be a turn that the model did not take."""
    read = list[tuple[str, dict[str, object]]]()
    for call in said:
        arguments = call.function.arguments or {}
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return None
        if not isinstance(arguments, dict) or not call.function.name:
            return None
        read.append((call.function.name, arguments))
    return tuple(read)


def _as_written(text: str, said: Sequence[_Call]) -> str:
    """The turn as the model wrote it, for the machine to say what is wrong with it."""
    blocks = [f"{OPEN}{msgspec.json.encode(call.function).decode()}{CLOSE}" for call in said]
    return "\n".join([text, *blocks]).strip()


def _shown(reply: Reply) -> str:
    return f"{reply.status}: {reply.body[:300].decode(errors='replace')}"
