"""The register of grader versions in the job-card store: what each is, what it has shown, who approved it, which one stands.

Every function adds rows and changes none. Who says who they are is believed: the store's own access rights are what keeps
others out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.errors import UserError, did_you_mean
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.people import PersonsLabel, person
from agent_rft.contracts.rollouts import Ending
from observability.book import Book
from observability.dossier import WITHDRAWN, NotThere
from observability.halves import label_halves
from observability.records import Values, grade_row
from observability.redaction.cards import redact_grade
from observability.redaction.detectors import BUILT_IN_ONLY, Detectors
from observability.redaction.redact import redact
from observability.states import refuse_sealed, sealed_among, sealed_error
from observability.store import Store, take_turns
from observability.tables import grader_approvals, grader_reports, grader_states, grader_versions, grades, human_labels, job_cards

State = Literal["registered", "active", "retired"]
LABELS = {"pass": 1.0, "fail": 0.0}
"""What a label is worth where no score was given."""


class GraderVersion(msgspec.Struct, frozen=True, kw_only=True):
    ref: GraderRef
    spec: dict[str, Any]
    """Its JSON, from which it is built again."""
    code: str
    """The code it was registered from."""
    created_by: str
    created_at: dt.datetime
    state: State


class StoredReport(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    passed: bool
    why: str
    figures: dict[str, Any]
    at: dt.datetime


def register(store: Store, ref: GraderRef, spec: Mapping[str, Any], code: str, by: str) -> bool:
    """False where this very version is there already. A version stands for one hash, for good."""
    at, key = _now(), {"name": ref.name, "version": ref.version}
    with store.writing() as connection:
        take_turns(connection, ref.name)
        found = connection.scalar(sa.select(grader_versions.c.hash).where(*_is(grader_versions, ref)))
        if found == ref.hash:
            return False
        if found is not None:
            raise UserError(
                f"{ref.name}@{ref.version} is registered with hash {found}; this one's is {ref.hash}",
                f"what it decides has changed: register it as another version, --as {ref.name}@VERSION",
            )
        values = {"hash": ref.hash, "spec": dict(spec), "code": code, "created_by": by, "created_at": at}
        connection.execute(sa.insert(grader_versions), [key | values])
        connection.execute(sa.insert(grader_states), [key | {"state": "registered", "by": by, "at": at}])
    return True


def grader_versions_of(store: Store, name: str | None = None) -> list[GraderVersion]:
    """In the order in which they were registered."""
    newest = sa.select(sa.func.max(grader_states.c.id)).group_by(grader_states.c.name, grader_states.c.version)
    joined = grader_versions.join(grader_states, sa.and_(*(grader_versions.c[key] == grader_states.c[key] for key in ("name", "version"))))
    select = sa.select(grader_versions, grader_states.c.state).select_from(joined).where(grader_states.c.id.in_(newest))
    if name is not None:
        select = select.where(grader_versions.c.name == name)
    with store.reading() as connection:
        return [
            _version(row) for row in connection.execute(select.order_by(grader_versions.c.created_at, grader_versions.c.version)).mappings()
        ]


def find_version(store: Store, name_at_version: str) -> GraderVersion:
    versions = {f"{one.ref.name}@{one.ref.version}": one for one in grader_versions_of(store)}
    if found := versions.get(name_at_version):
        return found
    cure = did_you_mean(name_at_version, versions) if versions else "register it first: rft grader register FILE.json --by WHO"
    raise UserError(f"no grader version {name_at_version} is registered in {store.name}", cure)


def active_version(store: Store, name: str) -> GraderVersion | None:
    return next((one for one in grader_versions_of(store, name) if one.state == "active"), None)


def activate(store: Store, ref: GraderRef, by: str) -> None:
    """It takes the place of the one that is active under its name. Whether it may is the caller's to judge."""
    at = _now()
    with store.writing() as connection:
        take_turns(connection, ref.name)
        states = connection.execute(
            sa.select(grader_states).where(grader_states.c.name == ref.name).order_by(grader_states.c.id)
        ).mappings()
        current = {row["version"]: row["state"] for row in states}
        changes = [(version, "retired") for version, state in current.items() if state == "active" and version != ref.version]
        changes += [(ref.version, "active")] if current.get(ref.version) != "active" else []
        for version, state in changes:
            values = {"name": ref.name, "version": version, "state": state, "by": by, "at": at}
            connection.execute(sa.insert(grader_states), [values])


def add_report(store: Store, ref: GraderRef, kind: str, passed: bool, why: str, figures: Mapping[str, Any]) -> None:
    values = {"kind": kind, "passed": passed, "why": why, "figures": dict(figures), "at": _now()}
    with store.writing() as connection:
        connection.execute(sa.insert(grader_reports), [{"name": ref.name, "version": ref.version} | values])


def newest_reports(store: Store, ref: GraderRef) -> dict[str, StoredReport]:
    """The newest of each kind."""
    select = sa.select(grader_reports).where(*_is(grader_reports, ref)).order_by(grader_reports.c.id)
    fields = StoredReport.__struct_fields__
    with store.reading() as connection:
        return {row["kind"]: StoredReport(**{name: row[name] for name in fields}) for row in connection.execute(select).mappings()}


def add_approval(store: Store, ref: GraderRef, by: str) -> None:
    with store.writing() as connection:
        connection.execute(sa.insert(grader_approvals), [{"name": ref.name, "version": ref.version, "by": by, "at": _now()}])


def approvals(store: Store, ref: GraderRef) -> list[tuple[str, dt.datetime]]:
    """Who, and when."""
    columns = grader_approvals.c
    with store.reading() as connection:
        select = sa.select(columns.by, columns.at).where(*_is(grader_approvals, ref)).order_by(columns.id)
        return [(row[0], row[1]) for row in connection.execute(select)]


# --- grades and labels of rollouts --------------------------------------------------------------------------------------


def append_grades(store: Store, given: Sequence[tuple[str, Grade]], tenant: str | None = None, detectors: Detectors = BUILT_IN_ONLY) -> int:
    """(rollout id, grade), of any tenant's cards or of one's; how many were added. What a rollout was given before stays; the newest
    grade is what lists show.

    A rollout that this very grader has scored meanwhile, by another regrade, keeps that score and gets no second one.
    """
    if not given:
        return 0
    at, among = _now(), grades.c.rollout_id.in_({rollout_id for rollout_id, _ in given})
    with store.writing() as connection:
        tenants = _tenants(connection, [rollout_id for rollout_id, _ in given], tenant)
        book = Book(connection, tenants.values())  # open, it lets no other regrade of these in between, and nobody seal them
        if sealed := sealed_among(connection, [*set(tenants.values())], [*tenants]):
            raise sealed_error(sealed)
        scored = sa.select(grades.c.rollout_id, grades.c.tenant, grades.c.hash).where(among, grades.c.reward.is_not(None))
        kept = {(row[0], row[2]) for row in connection.execute(scored) if tenants[row[0]] == row[1]}
        fresh = [(rollout_id, grade, tenants[rollout_id]) for rollout_id, grade in given if (rollout_id, grade.grader.hash) not in kept]
        rows = [grade_row(one, whose, redact_grade(grade, detectors.of(whose))[0], at) for one, grade, whose in fresh]
        for row in rows:
            book.grade(row)
        if rows:
            connection.execute(sa.insert(grades), rows)
        book.close()
    return len(rows)


class Broke(NamedTuple):
    """A try that a grader gave nothing."""

    run_id: str
    row_id: str
    number: int
    """Of the try, at its row."""
    seed: int
    parts: dict[str, Any]


def tries_given_nothing(store: Store, tenant: str, hash_: str) -> list[Broke]:
    """All tries of the tenant's that the grader of this hash gave no point, in the order of their grades."""
    its_card = sa.and_(grades.c.rollout_id == job_cards.c.rollout_id, grades.c.tenant == job_cards.c.tenant)
    columns = (job_cards.c.run_id, job_cards.c.row_id, job_cards.c.sample_index, job_cards.c.rollout_seed, grades.c.parts)
    given = (grades.c.tenant == tenant, grades.c.hash == hash_, grades.c.reward == 0)
    select = sa.select(*columns).select_from(grades.join(job_cards, its_card)).where(*given).order_by(grades.c.entry)
    with store.reading() as connection:
        return [Broke(*row) for row in connection.execute(select)]


def add_label(
    store: Store, labeller: str, *, rollout_id: str | None = None, row_id: str | None = None, score: float | None = None,
    label: str | None = None, note: str = "", tenant: str = "default"
) -> None:  # fmt: skip
    """About a rollout, or about a row of the tenant's. A score from 0 to 1, or a label: pass or fail."""
    if (rollout_id is None) == (row_id is None):
        raise UserError("a label is about a rollout or about a row", "name one of the two")
    if score is None and label not in LABELS:
        raise UserError(f"the label {label!r} says neither pass nor fail", "pass, fail, or a score from 0 to 1")
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"the score {score:g} is not from 0 to 1", "0 is all wrong, 1 all right")
    values = {"row_id": row_id, "labeller": labeller, "score": score, "label": label, "note": note}
    with store.writing() as connection:
        if rollout_id is not None:
            tenant = _tenants(connection, [rollout_id])[rollout_id]
        _insert_label(connection, values | {"rollout_id": rollout_id, "tenant": tenant})


def give_label_once(store: Store, labeller: str, rollout_id: str, score: float) -> bool:
    """False where this person's label of the rollout stands already: however many sessions they have open, they label it once."""
    with store.writing() as connection:
        take_turns(connection, f"label {rollout_id}")
        if _standing_label(connection, store.tenant, labeller, rollout_id):
            return False
        _write_label(connection, store.tenant, labeller, rollout_id, score, None)
    return True


def withdraw_label(store: Store, labeller: str, rollout_id: str) -> bool:
    """False where no label of this person stands."""
    with store.writing() as connection:
        take_turns(connection, f"label {rollout_id}")
        if not _standing_label(connection, store.tenant, labeller, rollout_id):
            return False
        _write_label(connection, store.tenant, labeller, rollout_id, None, WITHDRAWN)
    return True


def _standing_label(connection: sa.Connection, tenant: str | None, labeller: str, rollout_id: str) -> bool:
    select = sa.select(human_labels).where(human_labels.c.rollout_id == rollout_id).order_by(human_labels.c.entry)
    if tenant is not None:
        select = select.where(human_labels.c.tenant == tenant)
    said = [row["label"] for row in connection.execute(select).mappings() if person(row["labeller"]) == person(labeller)]
    return bool(said) and said[-1] != WITHDRAWN


def _write_label(
    connection: sa.Connection, tenant: str | None, labeller: str, rollout_id: str, score: float | None, label: str | None
) -> None:  # fmt: skip
    values = {"rollout_id": rollout_id, "row_id": None, "labeller": labeller, "score": score, "label": label, "note": ""}
    _insert_label(connection, values | {"tenant": _tenants(connection, [rollout_id], tenant)[rollout_id]})


def _insert_label(connection: sa.Connection, values: Values) -> None:
    row: Values = values | {"at": _now(), "note": redact(values["note"]).text}
    book = Book(connection, [row["tenant"]])
    if row["rollout_id"] is not None:
        refuse_sealed(connection, row["tenant"], [row["rollout_id"]])
    book.enter("label", row["rollout_id"] or row["row_id"], row, label_halves(row))
    connection.execute(sa.insert(human_labels), [row])
    book.close()


def _tenants(connection: sa.Connection, rollout_ids: Sequence[str], tenant: str | None = None) -> dict[str, str]:
    """Whose cards they are; where a tenant is named, no other's."""
    select = sa.select(job_cards.c.rollout_id, job_cards.c.tenant).where(job_cards.c.rollout_id.in_(rollout_ids))
    if tenant is not None:
        select = select.where(job_cards.c.tenant == tenant)
    every = [(row[0], row[1]) for row in connection.execute(select)]
    found = dict(every)
    if len(found) < len(every):
        twice = next(one for one, tenant in every if found[one] != tenant)
        raise UserError(f"several tenants have a card with the id {twice}", "a grade or a label by id alone cannot tell which is meant")
    if missing := [one for one in rollout_ids if one not in found]:
        raise NotThere(f"no card has the id {missing[0]}", "`rft card list` shows those that are there")
    return found


def labels_of(store: Store, run_id: str) -> list[PersonsLabel]:
    """The labels of the run's rollouts that stand: each person's newest."""
    its_own = sa.and_(human_labels.c.rollout_id == job_cards.c.rollout_id, human_labels.c.tenant == job_cards.c.tenant)
    joined = human_labels.join(job_cards, its_own)
    select = sa.select(human_labels).select_from(joined).where(job_cards.c.run_id == run_id).order_by(human_labels.c.entry)
    newest: dict[tuple[str, str], sa.RowMapping] = {}
    with store.reading() as connection:
        for row in connection.execute(select).mappings():
            newest[row["rollout_id"], person(row["labeller"])] = row
    return [PersonsLabel(row["rollout_id"], row["labeller"], _score(row)) for row in newest.values() if row["label"] != WITHDRAWN]


def _score(row: sa.RowMapping) -> float:
    return LABELS[row["label"]] if row["score"] is None else row["score"]


def labelled_scores(store: Store, run_id: str) -> dict[str, float]:
    """What people found of the run's rollouts, by rollout id: the mean over them, each with their newest label."""
    said: dict[str, list[float]] = {}
    for one in labels_of(store, run_id):
        said.setdefault(one.rollout_id, []).append(one.score)
    return {rollout_id: sum(scores) / len(scores) for rollout_id, scores in said.items()}


def runs_to_label(store: Store) -> list[tuple[str, int]]:
    """The run that started a rollout last comes first."""
    count, newest = sa.func.count(), sa.func.max(job_cards.c.started_at)
    select = sa.select(job_cards.c.run_id, count).where(*_judgeable()).group_by(job_cards.c.run_id).order_by(newest.desc())
    with store.reading() as connection:
        return [(row[0], row[1]) for row in connection.execute(select)]


def rollouts_to_label(store: Store, run_id: str, kind: str | None = None) -> list[str]:
    """Their ids. Where infrastructure failed there is nothing to judge."""
    of_kind = [] if kind is None else [job_cards.c.kind == kind]
    with store.reading() as connection:
        return list(connection.scalars(sa.select(job_cards.c.rollout_id).where(job_cards.c.run_id == run_id, *_judgeable(), *of_kind)))


def _judgeable() -> tuple[sa.ColumnElement[bool], ...]:
    """It ended by itself, and its words are there."""
    return job_cards.c.ending.is_not(None), job_cards.c.ending != Ending.INFRA_FAILED.value, job_cards.c.salt.is_not(None)


def _version(row: sa.RowMapping) -> GraderVersion:
    rest = {name: row[name] for name in ("spec", "code", "created_by", "created_at")}
    return GraderVersion(ref=GraderRef(row["name"], row["version"], row["hash"]), state=cast(State, row["state"]), **rest)


def _is(table: sa.Table, ref: GraderRef) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.name == ref.name, table.c.version == ref.version


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
