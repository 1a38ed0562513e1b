"""Graders by name, or from their JSON: the one place that names the classes, and what they wait for."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.ports import Grader
from agent_rft.graders import spec as specs
from agent_rft.graders.code_run import CodeRunGrader
from agent_rft.graders.endpoint import EndpointGrader
from agent_rft.graders.judge import LabelModelGrader, ScoreModelGrader
from agent_rft.graders.judge_server import JudgeServer, Price
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.pure import build_pure
from agent_rft.graders.python_grader import PythonGrader
from agent_rft.graders.reply_cache import Replies
from agent_rft.graders.sandbox import Sandbox, SandboxLimits
from agent_rft.graders.spec import GraderSpec
from agent_rft.graders.text import Embed
from agent_rft.graders.wire import Pace, Wire
from agent_rft.graders.wordnet import installed_wordnet

GRADERS: dict[str, Callable[..., Grader]] = {"numeric": NumericGrader}


class Judges(msgspec.Struct, frozen=True):
    """Where judges answer."""

    url: str
    """Up to /v1, of an OpenAI-compatible server."""
    key: str = ""
    models: Mapping[str, str] = {}
    """A grader's model, and what the server calls the one that stands in for it."""
    prices: Mapping[str, Price] = {}
    cache: str | None = None
    """A folder that keeps replies."""


class Services:
    """What graders wait for: judges and endpoints over HTTP, the sandbox. Each is opened when the first grader needs it."""

    def __init__(self, judges: Judges | None = None, embed: Embed | None = None, *, endpoints: bool = True) -> None:
        """`endpoints`: whoever names the grader may have any address asked; not for strangers."""
        self._judges, self.embed, self.endpoints = judges, embed, endpoints
        self.wire = Wire()
        self._judge: JudgeServer | None = None
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()
        """Many threads may be the first to need one."""

    def judge_of(self, grader: str, model: str) -> tuple[JudgeServer, str]:
        """The server, and what it calls the model."""
        judges = self._judges
        if judges is None:
            what = f"grader '{grader}' asks the judge {model}, and no judge server is named"
            raise UserError(what, "grader.judge.url=http://HOST:PORT/v1, of an OpenAI-compatible server; `rft judge` is one for trying")
        with self._lock:
            if self._judge is None:
                cache = Replies(folder=Path(judges.cache) if judges.cache else None)
                self._judge = JudgeServer(judges.url, self.wire, api_key=judges.key, cache=cache, prices=judges.prices)
            return self._judge, judges.models.get(model, model)

    @property
    def sandbox(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                self._sandbox = Sandbox()
            return self._sandbox

    def close(self) -> None:
        """Whoever waits for an answer gets none."""
        self.wire.close()
        if self._sandbox:
            self._sandbox.close()


def load_grader(name: str, **options: object) -> Grader:
    make = GRADERS.get(name)
    if make is None:
        raise UserError(f"no grader named '{name}'", did_you_mean(name, GRADERS))
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UserError(f"grader '{name}' has no option '{option}'", did_you_mean(option, known) if known else "it takes none")
    return make(**options)


def build_grader(spec: GraderSpec, services: Services) -> Grader:
    def build(part: GraderSpec) -> Grader:
        return build_grader(part, services)

    knows_synonyms = isinstance(spec, specs.TextSimilarity) and spec.evaluation_metric == "meteor"
    if pure := build_pure(spec, build, services.embed, installed_wordnet() if knows_synonyms else None):
        return pure
    match spec:
        case specs.ScoreModel() | specs.LabelModel():
            return _judge(spec, services)
        case specs.Endpoint():
            if not services.endpoints:
                raise UserError(f"endpoint '{spec.name}' is not asked for callers", "name the grader in grader.file, on the server")
            pace = Pace(spec.rate_limit) if spec.rate_limit else None
            options: dict[str, Any] = {"headers": spec.headers, "pace": pace, "pass_threshold": spec.pass_threshold}
            return EndpointGrader(spec.name, spec.url, services.wire, score_range=(spec.range[0], spec.range[1]), **options)
        case specs.Python():
            return PythonGrader(spec.source, services.sandbox, spec.name, pass_threshold=spec.pass_threshold)
        case specs.CodeRun():
            return CodeRunGrader(
                services.sandbox,
                spec.language,
                spec.tests_key,
                SandboxLimits(seconds=spec.timeout),
                spec.seconds_in_all,
                spec.pass_threshold,
                name=spec.name,
            )
        case _:
            raise UserError(f"a grader of type {type(spec).__name__} cannot be built")


def _judge(spec: specs.ScoreModel | specs.LabelModel, services: Services) -> Grader:
    server, model = services.judge_of(spec.name, spec.model)
    if isinstance(spec, specs.LabelModel):
        labels: dict[str, Any] = {"labels": spec.labels, "passing_labels": spec.passing_labels}
        return LabelModelGrader(spec.name, model, spec.input, server, samples=spec.samples, **labels)
    return ScoreModelGrader(
        spec.name,
        model,
        spec.input,
        server,
        score_range=(spec.range[0], spec.range[1]),
        sampling=spec.sampling_params,
        samples=spec.samples,
        pass_threshold=spec.pass_threshold,
    )
