"""A model as judge: score_model and label_model, over any OpenAI-compatible endpoint.

The rubric is the template's; the graded text is fenced off as data. Where the judge is asked several times, the reward is the
mean, and one sample without a verdict leaves no score: a mean of those that came through would be another grader's.

The address of the server is not part of the hash, so that a judge may move: name its weights, revision included, in `model`,
and serve nothing else under that name.
"""

from __future__ import annotations

import contextvars
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import msgspec

from agent_rft.contracts.grades import Grade
from agent_rft.graders import fence, judge_server, templating
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.fence import fenced
from agent_rft.graders.judge_server import JudgeServer, Reply, Usage
from agent_rft.graders.spec import JudgeMessage, SamplingParams
from agent_rft.graders.templating import MissingVariable, without_value

VERSION = "1"
SHOWN = 300
"""Characters of an unreadable reply that its error shows."""


class Step(msgspec.Struct, frozen=True):
    """A step of the judge's reasoning."""

    description: str
    conclusion: str


class Verdict(msgspec.Struct, frozen=True):
    """One sample's, as the judge said it."""

    result: Any
    steps: tuple[Step, ...] = ()


class Judged(msgspec.Struct, frozen=True):
    """What all samples come to."""

    reward: float
    passed: bool
    parts: dict[str, Any]


DEFAULTS = SamplingParams()
"""The server's own."""


class Unreadable(ValueError):
    """The reply is no verdict."""


class _ModelGrader:
    """What both judges share: asking, counting, averaging. Thread-safe."""

    waits: ClassVar = True
    """It waits for another server: drivers call it in a thread."""

    def __init__(
        self,
        kind: str,
        name: str,
        model: str,
        messages: Sequence[JudgeMessage],
        server: JudgeServer,
        sampling: SamplingParams,
        samples: int,
        deciding: Mapping[str, Any],
    ) -> None:
        self._model, self._messages, self._server, self._sampling, self._samples = model, tuple(messages), server, sampling, samples
        parameters = {
            "type": kind,
            "model": model,
            "input": msgspec.to_builtins(self._messages),
            "sampling_params": msgspec.to_builtins(sampling),
            "samples": samples,
            **deciding,
        }
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], fence, judge_server, templating), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        try:
            messages = fenced(self._messages, item, sample)
        except MissingVariable as missing:
            return without_value(self.ref, missing)
        if self._samples == 1:
            tried = [self._ask(messages, 0)]
        else:
            with ThreadPoolExecutor(self._samples) as pool:
                # each in a copy of this context, which says by when the grade is due
                asked = [pool.submit(contextvars.copy_context().run, self._ask, messages, number) for number in range(self._samples)]
                tried = [one.result() for one in asked]
        replies = [reply for reply, _ in tried]
        verdicts = [verdict for _, verdict in tried if verdict]
        if len(verdicts) < self._samples:
            return Grade(self.ref, None, parts=self._counted(replies), errors=_errors_of(replies))
        judged = self._judged([verdict.result for verdict in verdicts])
        steps = [[msgspec.to_builtins(step) for step in verdict.steps] for verdict in verdicts]
        parts = {**judged.parts, "steps": steps, **self._counted(replies)}
        return Grade(self.ref, judged.reward, judged.passed, parts)

    def _ask(self, messages: list[dict[str, str]], number: int) -> tuple[Reply, Verdict | None]:
        asked = json.dumps([self.ref.hash, messages, number], sort_keys=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        schema = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": self._schema()}}
        request = {"model": self._model, "messages": messages, **_sampling(self._sampling, number), "response_format": schema}
        with self._server.asking(key):
            reply = self._server.ask(request, key)
            if reply.errors:
                return reply, None
            try:
                verdict = self._read(reply.content)
            except (Unreadable, msgspec.MsgspecError, RecursionError) as error:
                return msgspec.structs.replace(reply, errors=_unreadable(reply, error)), None
            self._server.keep(key, reply)
            return reply, verdict

    def _counted(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """Tokens and cost, under the name of what answered; a failed grade is paid for too."""
        usage: dict[str, Usage] = {}
        for reply in replies:
            if not reply.from_cache and reply.model:
                usage[reply.model] = usage.get(reply.model, Usage()) + reply.usage
        costs = [self._server.cost(self._model, used) for used in usage.values()]
        return {
            "model_grader_token_usage_per_model": {model: used.as_openai() for model, used in usage.items()},
            "cost_usd": None if None in costs else math.fsum(cost for cost in costs if cost is not None),
            "samples_from_cache": sum(reply.from_cache for reply in replies),
        }

    def _schema(self) -> dict[str, Any]:
        raise NotImplementedError

    def _read(self, content: str) -> Verdict:
        raise NotImplementedError

    def _judged(self, results: Sequence[Any]) -> Judged:
        raise NotImplementedError


class _Score(Verdict, frozen=True):
    result: float


class ScoreModelGrader(_ModelGrader):
    """The judge gives a number. It is cut to `score_range` and mapped onto 0 to 1; parts hold it as it was given.

    `pass_threshold` is on the judge's own scale.
    """

    def __init__(
        self,
        name: str,
        model: str,
        messages: Sequence[JudgeMessage],
        server: JudgeServer,
        *,
        score_range: tuple[float, float] = (0.0, 1.0),
        sampling: SamplingParams = DEFAULTS,
        samples: int = 1,
        pass_threshold: float | None = None,
    ) -> None:
        self._low, self._high = score_range
        self._threshold = self._low + PASS_THRESHOLD * (self._high - self._low) if pass_threshold is None else pass_threshold
        deciding = {"range": list(score_range), "pass_threshold": self._threshold}
        super().__init__("score_model", name, model, messages, server, sampling, samples, deciding)

    def _schema(self) -> dict[str, Any]:
        return _verdict_schema({"type": "number"})

    def _read(self, content: str) -> Verdict:
        score = msgspec.json.decode(content, type=_Score)
        if not math.isfinite(score.result):
            raise Unreadable("the result is not a finite number")
        return score

    def _judged(self, results: Sequence[Any]) -> Judged:
        cut = [min(max(result, self._low), self._high) for result in results]
        score = statistics.fmean(cut)
        parts = {"score": score, "scores": list(results), "spread": statistics.pstdev(cut)}
        return Judged((score - self._low) / (self._high - self._low), score >= self._threshold, parts)


class _Label(Verdict, frozen=True):
    result: str


class LabelModelGrader(_ModelGrader):
    """The judge chooses a label; 1 for a passing one, 0 for another. Asked several times, the share of passing ones."""

    def __init__(
        self,
        name: str,
        model: str,
        messages: Sequence[JudgeMessage],
        server: JudgeServer,
        *,
        labels: Sequence[str],
        passing_labels: Sequence[str],
        sampling: SamplingParams = DEFAULTS,
        samples: int = 1,
    ) -> None:
        self._labels, self._passing = tuple(labels), frozenset(passing_labels)
        deciding = {"labels": list(labels), "passing_labels": sorted(self._passing), "pass_threshold": PASS_THRESHOLD}
        super().__init__("label_model", name, model, messages, server, sampling, samples, deciding)

    def _schema(self) -> dict[str, Any]:
        return _verdict_schema({"type": "string", "enum": list(self._labels)})

    def _read(self, content: str) -> Verdict:
        label = msgspec.json.decode(content, type=_Label)
        if label.result not in self._labels:
            raise Unreadable(f"{label.result!r:.80} is none of the labels: {', '.join(self._labels)}")
        return label

    def _judged(self, results: Sequence[Any]) -> Judged:
        passing = [float(label in self._passing) for label in results]
        reward = statistics.fmean(passing)
        parts = {"label": statistics.mode(results), "labels": list(results), "spread": statistics.pstdev(passing)}
        return Judged(reward, reward >= PASS_THRESHOLD, parts)


def _verdict_schema(result: Mapping[str, Any]) -> dict[str, Any]:
    """The steps first: a judge that is held to the schema then reasons before it decides."""
    text = {"type": "string"}
    step = _object({"description": text, "conclusion": text})
    return _object({"steps": {"type": "array", "items": step}, "result": dict(result)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _sampling(params: SamplingParams, number: int) -> dict[str, Any]:
    """Each further sample takes the next seed: with one seed, all would be the same."""
    told = {
        "seed": None if params.seed is None else params.seed + number,
        "top_p": params.top_p,
        "temperature": params.temperature,
        "max_completion_tokens": params.max_completions_tokens,  # the endpoint's name for it
        "reasoning_effort": params.reasoning_effort,
    }
    return {name: value for name, value in told.items() if value is not None}


def _unreadable(reply: Reply, error: Exception) -> dict[str, str]:
    told = {"model_grader_parse_error": f"{error}: {reply.content[:SHOWN]!r}"}
    cut = "the judge's reply was cut off at its limit of tokens: allow more with max_completions_tokens"
    return {**told, "truncated_observation_error": cut} if reply.cut_off else told


def _errors_of(replies: Sequence[Reply]) -> dict[str, Any]:
    """The first failure of each kind."""
    errors: dict[str, Any] = {}
    for reply in replies:
        errors = {**reply.errors, **errors}
    return errors
