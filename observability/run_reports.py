"""What runs of training came to, as their reports tell it: kept beside the cards, so that who reads a store needs no run's folder.

A report may be made again, after another evaluation say: each is kept under a name of its own, and the newest is shown.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec
import sqlalchemy as sa

from observability.artifacts import register
from observability.dossier import Artifact
from observability.redaction.detector import Detector
from observability.redaction.redact import redact
from observability.store import Store
from observability.tables import artifacts

KIND = "report"
NEWEST = 500
"""Runs that are listed."""


class RunLine(NamedTuple):
    run_id: str
    recipe: str
    at: dt.datetime
    """When it began."""
    headline: str
    """Empty where no report was made yet."""


class Made(NamedTuple):
    run_id: str
    recipe: str
    headline: str
    report: dict[str, Any]
    """As plain data."""


def keep(store: Store, tenant: str, made: Made, detectors: Sequence[Detector]) -> None:
    """The same report again changes nothing. The run itself is registered with it, where it is not yet: it may have had another store."""
    run_id, report = made.run_id, made.report
    clean = _redacted(report, detectors)
    digest = hashlib.sha256(msgspec.json.encode(clean, order="deterministic")).hexdigest()[:16]
    told = redact(made.headline, detectors).text
    run = Artifact(kind="run", id=run_id, name=made.recipe, run_id=run_id)
    register(
        store,
        tenant,
        [run, Artifact(kind=KIND, id=f"{run_id}/{digest}", name=told, run_id=run_id, parents=(("run", run_id),), facts=clean)],
    )


def _redacted(value: Any, detectors: Sequence[Detector]) -> Any:
    """Sentences may hold what a model or a user said; a single word is a name of ours, a version or a hash."""
    if isinstance(value, str):
        return redact(value, detectors).text if " " in value else value
    if isinstance(value, dict):
        pairs = cast(dict[str, Any], value).items()
        return {str(_redacted(name, detectors)): _redacted(inner, detectors) for name, inner in pairs}
    if isinstance(value, list):
        return [_redacted(inner, detectors) for inner in cast(list[Any], value)]
    return value


def newest(store: Store, tenant: str, run_id: str) -> dict[str, Any] | None:
    """None where none was made."""
    wanted = _of(tenant, KIND), artifacts.c.run_id == run_id
    with store.reading() as connection:
        return connection.scalar(sa.select(artifacts.c.facts).where(*wanted).order_by(artifacts.c.at.desc(), artifacts.c.id).limit(1))


def runs(store: Store, tenant: str) -> list[RunLine]:
    """The newest first."""
    columns = (artifacts.c.run_id, artifacts.c.name, artifacts.c.at)
    with store.reading() as connection:
        begun = connection.execute(sa.select(*columns).where(_of(tenant, "run")).order_by(artifacts.c.at.desc()).limit(NEWEST)).all()
        told = connection.execute(sa.select(*columns).where(_of(tenant, KIND)).order_by(artifacts.c.at)).all()
    headlines = {run_id: name for run_id, name, _ in told}
    return [RunLine(run_id, recipe, at, headlines.get(run_id, "")) for run_id, recipe, at in begun]


def run_of(store: Store, tenant: str, run_id: str) -> RunLine | None:
    """None where no run of that name is this tenant's."""
    with store.reading() as connection:
        wanted = sa.select(artifacts.c.name, artifacts.c.at).where(_of(tenant, "run"), artifacts.c.id == run_id)
        row = connection.execute(wanted).first()
    return RunLine(run_id, row.name, row.at, "") if row else None


def _of(tenant: str, kind: str) -> sa.ColumnElement[bool]:
    return sa.and_(artifacts.c.tenant == tenant, artifacts.c.kind == kind)
