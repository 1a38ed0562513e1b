"""Azure's endpoint grader: somebody's own server that answers {"score"} to {sample, item, trace_id}.

`trace_id` is the rollout's id, so that the server can keep together what the rollout's tools and its grade told it.

The address is the grader's author's, and this process goes there: only http and https, no redirects, no link-local address.
Its headers and the secrets in them are not part of the hash, and errors show only the address's origin.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.grades import Grade
from agent_rft.contracts.retries import NoAnswer
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref

VERSION = "1"
TIMEOUT_SECONDS = 600.0
"""As long as Azure waits."""


class Paced(Protocol):
    def wait(self) -> None: ...


class PacedPoster(Protocol):
    """How this grader reaches its server: Wire, or what stands in for it."""

    def post(
        self, url: str, payload: object, headers: Mapping[str, str] | None = None, timeout: float = 60.0, pace: Any = None
    ) -> bytes: ...


class _Answer(msgspec.Struct):
    score: float


class EndpointGrader:
    """A score outside `score_range` is no score; inside, it is mapped onto 0 to 1 as a model's is. Thread-safe.

    `pass_threshold` is on the server's own scale, as in Azure's files. `pace` holds the requests to the file's `rate_limit`.
    """

    waits: ClassVar = True

    def __init__(
        self,
        name: str,
        url: str,
        poster: PacedPoster,
        *,
        headers: Mapping[str, str] | None = None,
        pace: Paced | None = None,
        pass_threshold: float | None = None,
        score_range: tuple[float, float] = (0.0, 1.0),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._url, self._poster, self._headers, self._pace, self._timeout_seconds = url, poster, dict(headers or {}), pace, timeout_seconds
        self._low, self._high = score_range
        self._threshold = self._low + PASS_THRESHOLD * (self._high - self._low) if pass_threshold is None else pass_threshold
        parameters = {"url": url, "range": list(score_range), "pass_threshold": self._threshold}
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__],), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        payload = {"sample": sample, "item": item, "trace_id": str(sample.get("rollout_id", ""))}
        try:
            body = self._poster.post(self._url, payload, self._headers, self._timeout_seconds, self._pace)
            score = msgspec.json.decode(body, type=_Answer).score
        except NoAnswer as error:
            return Grade(self.ref, None, errors={"unresponsive_reward_error": str(error)})
        except InfraError as error:
            return self._failed(str(error))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._failed(f'its answer is not {{"score": number}}: {error}')
        if not (math.isfinite(score) and self._low <= score <= self._high):
            return self._failed(f"its score {score:g} is not from {self._low:g} to {self._high:g}: give the grader the range of its scores")
        reward = (score - self._low) / (self._high - self._low)
        return Grade(self.ref, reward, score >= self._threshold, {"score": score})

    def _failed(self, what: str) -> Grade:
        return Grade(self.ref, None, errors={"other_error": what})
