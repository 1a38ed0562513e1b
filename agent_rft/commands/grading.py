"""The grader that a recipe or a command names, and the services it waits for."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from agent_rft.commands.registered import registered_grader
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.ports import Grader
from agent_rft.graders.registry import GRADERS, Judges, Services, build_grader, load_grader
from agent_rft.graders.spec import GraderSpec, read_spec
from agent_rft.graders.wording import texts_of
from agent_rft.settings import EmbeddingSettings, GraderSettings, Settings, StoreSettings
from observability.graders import grader_versions_of
from observability.store import open_store
from serving.tools.embeddings import EndpointEmbedder, LocalEmbedder

JUDGE_KEY, EMBEDDINGS_KEY = "JUDGE_API_KEY", "EMBEDDINGS_API_KEY"
"""Environment variables: a key stands in no settings file."""


def grader_of(settings: Settings, services: Services | None = None) -> Grader:
    """The recipe's: `grader.file` holds its JSON; else `grader.name` is one of ours, or a version that is registered in the
    recipe's store, like numeric@2. Without services it has its own, which end with it."""
    wanted, registered = settings.grader, "@" in settings.grader.name
    if registered and (beside := wanted.file or wanted.options):
        key = "grader.file" if wanted.file else "grader.options"
        raise UserError(f"{wanted.name} is a whole grader, and {key}={beside} would be another", f"leave {key} or the version out")
    if not wanted.file and not registered:
        return load_grader(wanted.name, **wanted.options)
    ready = services or services_of(wanted)
    if wanted.file:
        return build_grader(spec_in(Path(wanted.file)), ready)
    with closing(open_store(settings.store.url)) as store:
        return registered_grader(store, wanted.name, lambda spec: build_grader(spec, ready))


def grader_named(name: str, services: Services, store_url: str) -> Grader:
    """As a command line says it: the name of one of ours, a JSON file, or a registered version, like numeric@2."""
    if name not in GRADERS and name.endswith(".json"):
        return build_grader(spec_in(Path(name)), services)
    if "@" not in name:
        return load_grader(name)
    with closing(open_store(store_url)) as store:
        return registered_grader(store, name, lambda spec: build_grader(spec, services))


def holdouts_named(key: str, names: Sequence[str], climbed: Grader, services: Services, store_url: str) -> tuple[Grader, ...]:
    """Graders that are held back, as the setting `key` names them. `climbed` is the one that training climbs."""
    graders = tuple(grader_named(name, services, store_url) for name in names)
    if same := [one.ref.name for one in graders if one.ref.hash == climbed.ref.hash]:
        what = f"{key} names {same[0]}, which the agent is graded by anyway"
        raise UserError(what, "a holdout grader is one that training never saw")
    return graders


def grader_texts(settings: Settings) -> tuple[str, ...]:
    """The words in the grader's own file, or in the version that is registered; ours have none."""
    wanted = settings.grader
    if wanted.file:
        return texts_of(spec_in(Path(wanted.file)))
    if "@" not in wanted.name:
        return ()
    with closing(open_store(settings.store.url)) as store:
        known = {f"{one.ref.name}@{one.ref.version}": one.spec for one in grader_versions_of(store)}
    return texts_of(read_spec(known[wanted.name], wanted.name)) if wanted.name in known else ()


def spec_in(path: Path) -> GraderSpec:
    """OpenAI's file is the grader, or what a job is made with: the grader under "grader", "reinforcement" or "method". The rest of
    a job is named as not read: some of it, such as Azure's tools, its author will have counted on."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", "name a grader's JSON file") from None
    except (ValueError, RecursionError) as error:
        raise FaultsFound(f"{path} holds no grader", [Fault(str(path), f"broken JSON: {error}")], exit_code=2) from None
    unread = list[str]()
    for within in ("method", "reinforcement", "grader"):
        held = cast(dict[str, Any], value) if isinstance(value, dict) else {}
        if isinstance(inner := held.get(within), dict):
            unread += [key for key in held if key not in (within, "type")]
            value = cast(Any, inner)
    if unread:
        _tell(f"{path}: not read from this job: {', '.join(unread)}")
    return read_spec(value, str(path))


@functools.cache
def _tell(line: str) -> None:
    """Once: a training reads its grader to look at the rows, and again to grade."""
    print(line, file=sys.stderr)


def case_lines(cases: str) -> list[str]:
    try:
        return Path(cases).read_text(encoding="utf-8").split("\n")  # splitlines would also split at U+2028, which JSON may hold
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {cases}: {error}", "name a UTF-8 JSONL file of cases: --cases FILE.jsonl") from None


@contextmanager
def building(recipe: str, overrides: list[str]) -> Generator[tuple[StoreSettings, Callable[[GraderSpec], Grader]]]:
    """The store of a recipe, and how graders are built with its services, which end with the block."""
    settings = settings_for(recipe, overrides)
    with closing(services_of(settings.grader)) as services:
        yield settings.store, lambda spec: build_grader(spec, services)


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
