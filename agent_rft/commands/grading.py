"""The grader that a recipe or a command names, and the services it waits for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from agent_rft.compose import settings_for
from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.ports import Grader
from agent_rft.graders.registry import GRADERS, Judges, Services, build_grader, load_grader
from agent_rft.graders.spec import GraderSpec, read_spec
from agent_rft.settings import EmbeddingSettings, GraderSettings
from serving.tools.embeddings import EndpointEmbedder, LocalEmbedder

JUDGE_KEY, EMBEDDINGS_KEY = "JUDGE_API_KEY", "EMBEDDINGS_API_KEY"
"""Environment variables: a key stands in no settings file."""


def grader_of(settings: GraderSettings, services: Services | None = None) -> Grader:
    """`grader.file` holds its JSON; else `grader.name` is one of ours. Without services it has its own, which end with it."""
    if settings.file:
        return build_grader(spec_in(Path(settings.file)), services or services_of(settings))
    return load_grader(settings.name, **settings.options)


def grader_named(name: str, services: Services) -> Grader:
    """As a command line says it: the name of one of ours, or a JSON file."""
    return load_grader(name) if name in GRADERS or not name.endswith(".json") else build_grader(spec_in(Path(name)), services)


def spec_in(path: Path) -> GraderSpec:
    """OpenAI's file is the grader, or a request with the grader under "grader"."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", "name a grader's JSON file") from None
    except (ValueError, RecursionError) as error:
        raise FaultsFound(f"{path} holds no grader", [Fault(str(path), f"broken JSON: {error}")], exit_code=2) from None
    inner = value.get("grader") if isinstance(value, dict) and "type" not in value else None  # pyright: ignore[reportUnknownMemberType]
    return read_spec(value if inner is None else inner, str(path))


def case_lines(cases: str) -> list[str]:
    try:
        return Path(cases).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {cases}: {error}", "name a UTF-8 JSONL file of cases: --cases FILE.jsonl") from None


@contextmanager
def building(recipe: str, overrides: list[str]) -> Generator[tuple[str, Callable[[GraderSpec], Grader]]]:
    """The store of a recipe, and how graders are built with its services, which end with the block."""
    settings = settings_for(recipe, overrides)
    with closing(services_of(settings.grader)) as services:
        yield settings.store.url, lambda spec: build_grader(spec, services)


def services_of(settings: GraderSettings, *, endpoints: bool = True) -> Services:
    judge = settings.judge
    judges = Judges(judge.url, os.environ.get(JUDGE_KEY, ""), judge.models, cache=judge.cache) if judge.url else None
    embeddings = settings.embeddings
    return Services(judges, _Embed(embedder_of(embeddings)) if embeddings.url or embeddings.model else None, endpoints=endpoints)


def embedder_of(embeddings: EmbeddingSettings) -> EndpointEmbedder | LocalEmbedder:
    if embeddings.url:
        return EndpointEmbedder(embeddings.url, embeddings.url_model, os.environ.get(EMBEDDINGS_KEY, ""))
    if embeddings.model:
        return LocalEmbedder(embeddings.model)
    raise UserError(
        "tools.retriever=embeddings names no embeddings", "set tools.embeddings.model=FOLDER or tools.embeddings.url=http://..."
    )


class _Embed:
    def __init__(self, embedder: EndpointEmbedder | LocalEmbedder) -> None:
        self._embedder, self.model = embedder, embedder.name

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        return self._embedder.embed(texts).tolist()
