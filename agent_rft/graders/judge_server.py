"""A judge's server: any OpenAI-compatible /v1/chat/completions. Asks, reads the reply, counts what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import msgspec

from agent_rft.contracts.errors import InfraError


class Poster(Protocol):
    """How graders reach other servers: Wire, or what stands in for it."""

    def post(self, url: str, payload: object, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> bytes: ...


class ReplyCache(Protocol):
    """Keeps replies by the hash of everything that was asked."""

    def get(self, key: str) -> str | None: ...

    def put(self, key: str, reply: str) -> None: ...

    def asking(self, key: str) -> AbstractContextManager[None]:
        """Around asking and keeping: who has the same question meanwhile waits, and finds what was kept."""
        ...


class Price(msgspec.Struct, frozen=True):
    """US dollars for a million tokens."""

    prompt: float
    completion: float


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those that the server had at hand."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )

    def as_openai(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
        }


class Reply(msgspec.Struct, frozen=True):
    """What came back for one question: a content, or the flags that say why there is none."""

    content: str = ""
    errors: dict[str, str] = {}
    usage: Usage = Usage()
    model: str = ""
    """As the server calls what answered."""
    from_cache: bool = False
    cut_off: bool = False
    """The server stopped the reply at its limit of tokens."""


class JudgeServer:
    """Knows where the judges are, how to get in, and what they cost. Thread-safe, where its poster and cache are."""

    def __init__(
        self,
        base_url: str,
        poster: Poster,
        *,
        api_key: str = "",
        timeout_seconds: float = 120.0,
        cache: ReplyCache | None = None,
        prices: Mapping[str, Price] | None = None,
    ) -> None:
        """`base_url` ends where /chat/completions begins, which is mostly at /v1."""
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._poster, self._timeout_seconds, self._cache = poster, timeout_seconds, cache
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._prices = dict(prices or {})

    def asking(self, key: str) -> AbstractContextManager[None]:
        """Around `ask` and `keep`: of several that have the same question at once, one asks."""
        return self._cache.asking(key) if self._cache else nullcontext()

    def ask(self, request: Mapping[str, Any], key: str) -> Reply:
        """`key` names the question in the cache. Only a content is kept there: what failed is asked anew next time."""
        kept = self._cache.get(key) if self._cache else None
        if kept is not None:
            return Reply(kept, model=str(request["model"]), from_cache=True)
        try:
            reply = _read(self._poster.post(self._url, request, self._headers, self._timeout_seconds))
        except InfraError as error:
            return _failed_server(f"{error.part} gave no answer", error.what)
        return reply

    def keep(self, key: str, reply: Reply) -> None:
        """For a reply that could be read as a verdict."""
        if self._cache and not reply.from_cache:
            self._cache.put(key, reply.content)

    def cost(self, model: str, usage: Usage) -> float | None:
        """In US dollars; None where no price is known."""
        price = self._prices.get(model)
        return (usage.prompt_tokens * price.prompt + usage.completion_tokens * price.completion) / 1e6 if price else None


# --- the reply's shape -----------------------------------------------------------------------------------------------


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Tokens(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""
    usage: _Tokens | None = None


def _read(body: bytes) -> Reply:
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _failed_server("no chat completion came back", f"{error}: {body[:300].decode(errors='replace')}")
    if not completion.choices:
        return _failed_server("no chat completion came back", "it has no choices")
    usage, choice = _usage(completion.usage), completion.choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        refused = choice.message.refusal or "stopped by the server's content filter"
        return Reply(errors={"model_grader_refusal_error": refused}, usage=usage, model=completion.model)
    return Reply(choice.message.content or "", usage=usage, model=completion.model, cut_off=choice.finish_reason == "length")


def _usage(tokens: _Tokens | None) -> Usage:
    if tokens is None:
        return Usage()
    details = tokens.prompt_tokens_details
    return Usage(tokens.prompt_tokens, tokens.completion_tokens, (details.cached_tokens or 0) if details else 0)


def _failed_server(what: str, details: str) -> Reply:
    return Reply(errors={"model_grader_server_error": what, "model_grader_server_error_details": details})
