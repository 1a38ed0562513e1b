"""What cards were made with, by the names that they give it: runs, checkpoints, base models, data sets, tool sets, graders."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from agent_rft.contracts.jobcards import Versions
from observability.dossier import Artifact
from observability.store import Store
from observability.tables import artifacts

DEEPEST = 10
"""Generations that a lineage goes back."""
STEP = "/step-"
"""Of a checkpoint's name, RUN/step-N: most steps of a run are never saved and so never registered, and their run is."""
Named = tuple[str, str]


def register(store: Store, tenant: str, made: Sequence[Artifact]) -> None:
    """What is there already stays as it is: a name stands for one thing, for good."""
    at = dt.datetime.now(dt.UTC)
    rows = [
        {name: value for name, value in msgspec.structs.asdict(one).items() if name != "known"} | {"tenant": tenant, "at": at}
        for one in made
        if one.id
    ]
    if not rows:
        return
    with store.writing() as connection:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(insert(artifacts).on_conflict_do_nothing(), rows)


def lineage(store: Store, tenant: str, versions: Versions) -> tuple[Artifact, ...]:
    """What made a card and what that was made from, nearest first. What nobody registered is there by its name alone."""
    wanted: list[Named] = [(kind, getattr(versions, kind)) for kind in ("checkpoint", "dataset", "tool_set", "grader")]
    found: dict[Named, Artifact] = {}
    with store.reading() as connection:
        for _ in range(DEEPEST):
            wanted = [one for one in dict.fromkeys(wanted) if one[1] and one not in found]
            if not wanted:
                break
            known = _registered(connection, tenant, wanted)
            found |= {one: known.get(one) or _unregistered(*one) for one in wanted}
            wanted = [parent for one in wanted for parent in found[one].parents]
    return tuple(found.values())


def _registered(connection: sa.Connection, tenant: str, wanted: Iterable[Named]) -> dict[Named, Artifact]:
    columns = [artifacts.c[name] for name in Artifact.__struct_fields__ if name != "known"]
    select = sa.select(*columns).where(artifacts.c.tenant == tenant, sa.tuple_(artifacts.c.kind, artifacts.c.id).in_(list(wanted)))
    names = [str(column.name) for column in columns]
    made = [msgspec.convert(dict(zip(names, row, strict=True)), Artifact) for row in connection.execute(select)]
    return {(one.kind, one.id): one for one in made}


def _unregistered(kind: str, name: str) -> Artifact:
    run, step, _ = name.rpartition(STEP)
    parents: tuple[Named, ...] = (("run", run),) if kind == "checkpoint" and step else ()
    return Artifact(kind=kind, id=name, name=name, parents=parents, known=False)
