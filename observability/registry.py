"""What can be released: agents, each whole under one hash, and the reports that were made of them before anybody met them.

An agent stands among the artifacts, so that it leads back to its checkpoint and to the run that trained it, and never changes: its name
is the hash of all that decides how it behaves. Of the reports of one kind the newest counts, and the older ones stay. Each has its entry
in the ledger, since a report decides whether anybody meets the agent: one that was changed since is not read, but named.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import msgspec
import sqlalchemy as sa

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import Fault, FaultsFound, UserError, did_you_mean
from agent_rft.contracts.jobcards import Versions
from observability.artifacts import lineage, register
from observability.book import Book
from observability.chain import facts_digest
from observability.dossier import Artifact, NotThere
from observability.halves import report_halves
from observability.records import Values
from observability.release_tables import agent_reports
from observability.store import Store
from observability.tables import artifacts, grades, job_cards, ledger
from observability.texts import storable

ReportKind = Literal["evaluation", "holdout", "safety", "distribution"]
REPORT_KINDS: tuple[ReportKind, ...] = get_args(ReportKind)
LONGEST_NAME = 200
MOST_LIMIT = 10**9
BROUGHT_BACK = "`rft ledger verify` says all that was changed; bring the row back from a backup"
SHOWN = 5
"""Agents that are named where the wanted one is not there."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about an agent offline."""

    agent: str
    kind: ReportKind
    passed: bool
    figures: dict[str, Any] = {}
    by: str
    at: dt.datetime


class Changed(msgspec.Struct, frozen=True):
    """A report that is not what was recorded: what it says now is nobody's word."""

    kind: str
    """`any` where none of the agent's can be read."""
    what: str
    """Which one, for people."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """An agent in the registry."""

    id: str
    name: str
    run_id: str
    """The training run that it comes from; empty where nobody said."""
    at: dt.datetime
    agent: Agent


def register_agent(store: Store, tenant: str, agent: Agent, name: str, run_id: str = "") -> str:
    """Its id. One that is there already stays as it is, name and all."""
    if faults := [*_faults(agent, name)]:
        raise FaultsFound("the agent cannot be registered:", faults, exit_code=2)
    parents = tuple((kind, one) for kind, one in (("checkpoint", agent.checkpoint), ("tool_set", agent.tool_set)) if one)
    register(
        store, tenant, [Artifact(kind="agent", id=agent.id, name=name, run_id=run_id, parents=parents, facts=msgspec.to_builtins(agent))]
    )
    return agent.id


def _faults(agent: Agent, name: str) -> list[Fault]:
    faults = [] if agent.checkpoint else [Fault("checkpoint", "is empty", "the weights that speak, as cards name them")]
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        faults.append(Fault("name", f"{name[:40]!r} is no name", f"1 to {LONGEST_NAME} printable characters"))
    if not 0 <= agent.temperature <= 2:
        faults.append(Fault("temperature", f"{agent.temperature:g} is not from 0 to 2"))
    for where in ("checkpoint", "tool_set"):
        if (text := getattr(agent, where)) != storable(text):
            faults.append(Fault(where, f"{text[:40]!r} has characters that no store keeps", "a name as cards have it"))
    if agent.system_prompt != storable(agent.system_prompt):
        faults.append(Fault("system_prompt", "has characters that no store keeps", "leave out NUL and halves of surrogate pairs"))
    for limit, value in msgspec.structs.asdict(agent.limits).items():
        without_tools = limit == "max_tool_calls" and value == 0
        if not (without_tools or 0 < value <= MOST_LIMIT):
            faults.append(Fault(f"limits.{limit}", f"is {value}", f"more than 0, and at most {MOST_LIMIT}"))
    return faults


def agents(store: Store, tenant: str) -> list[Registered]:
    """The newest first."""
    select = _agents(tenant).order_by(artifacts.c.at.desc(), artifacts.c.id)
    with store.reading() as connection:
        return [_registered(dict(row)) for row in connection.execute(select).mappings()]


def found(store: Store, tenant: str, wanted: str) -> Registered:
    """The one of this id, of an id that begins so, or of this name where only one has it."""
    every = agents(store, tenant)
    exact = [one for one in every if one.id == wanted]
    near = exact or [one for one in every if wanted and (one.id.startswith(wanted) or one.name == wanted)]
    if len(near) == 1:
        return near[0]
    if near:
        raise UserError(f"several agents are meant by '{wanted[:60]}': {', '.join(one.id for one in near[:SHOWN])}", "give more of the id")
    known = [one.id for one in every]
    raise NotThere(
        f"no agent '{wanted[:60]}' is registered for tenant {tenant}",
        did_you_mean(wanted, known) if known else "`make train` registers the agent it trained; `rft agent register` any other",
    )


def agent_of(store: Store, tenant: str, agent_id: str) -> Agent:
    with store.reading() as connection:
        return agents_in(connection, [(tenant, agent_id)])[tenant, agent_id]


def agents_in(connection: sa.Connection, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Agent]:
    """By (tenant, id). Whatever was changed in the registry since, no agent comes out of it that is not the one of that name."""
    keys = sa.tuple_(artifacts.c.tenant, artifacts.c.id).in_(list(wanted))
    select = sa.select(artifacts.c.tenant, artifacts.c.id, artifacts.c.facts).where(artifacts.c.kind == "agent", keys)
    made = {(row.tenant, row.id): _agent(row.id, row.facts) for row in connection.execute(select)} if wanted else {}
    if missing := [one for one in wanted if one not in made]:
        raise NotThere(f"no agent {missing[0][1][:60]} is registered for tenant {missing[0][0]}", "`rft agent list` shows those that are")
    return made


def _agents(tenant: str) -> sa.Select[Any]:
    return sa.select(artifacts).where(artifacts.c.tenant == tenant, artifacts.c.kind == "agent")


def _registered(row: Mapping[str, Any]) -> Registered:
    return Registered(id=row["id"], name=row["name"], run_id=row["run_id"], at=row["at"], agent=_agent(row["id"], row["facts"]))


def _agent(agent_id: str, facts: Any) -> Agent:
    try:
        agent = msgspec.convert(facts, Agent)
    except msgspec.ValidationError as error:
        raise UserError(f"agent {agent_id} cannot be read from the registry: {error}", "register it anew: `rft agent register`") from None
    if agent.id != agent_id:
        raise UserError(f"agent {agent_id} is not what it was registered as: its parts make {agent.id}", "somebody changed the registry")
    return agent


# --- reports ------------------------------------------------------------------------------------------------------------


def report(store: Store, tenant: str, agent_id: str, kind: str, *, passed: bool, figures: Mapping[str, Any], by: str) -> Report:
    if kind not in REPORT_KINDS:
        raise UserError(f"there is no report of the kind '{kind[:40]}'", did_you_mean(kind, REPORT_KINDS))
    if faults := [*_faults_of_figures(figures)]:
        raise FaultsFound("the report cannot be taken:", faults, exit_code=2)
    agent_of(store, tenant, agent_id)
    row: Values = {"tenant": tenant, "agent": agent_id, "kind": kind, "passed": passed, "figures": msgspec.to_builtins(dict(figures))}
    row |= {"by": by, "at": dt.datetime.now(dt.UTC)}
    with store.writing() as connection:
        book = Book(connection, [tenant])
        book.enter("report", agent_id, row, report_halves(row))
        connection.execute(sa.insert(agent_reports), [row])
        book.close()
    return _report(row)


def report_by_hand(store: Store, tenant: str, agent_id: str, kind: str, *, passed: bool, figures: Mapping[str, Any], by: str) -> Report:
    """What a person says was found. That an agent is safe nobody can say alone: the suite says it, or two people sign a waiver."""
    if kind == "safety" and passed:
        what = "a safety report that passed is made by running the suite, not by hand"
        raise UserError(what, f"`rft agent check {agent_id} --only safety`; cases of your own go into release.safety_suite")
    return report(store, tenant, agent_id, kind, passed=passed, figures=figures, by=by)


def _faults_of_figures(figures: Mapping[str, Any]) -> Iterator[Fault]:
    """Of those that releases are decided on. What is no number there would be compared all the same, or end every comparison."""
    rows = figures.get("rows", {})
    if not isinstance(rows, Mapping):
        yield Fault("rows", f"is {str(rows)[:40]!r}", "the mean reward of each row, by the row's id")
        rows = {}
    named = {name: figures[name] for name in ("reward", "regressed") if name in figures}
    for name, value in (*named.items(), *((f"rows.{row}", mean) for row, mean in cast("Mapping[str, Any]", rows).items())):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            yield Fault(name[:100], f"is {str(value)[:40]!r}", "a number from 0 to 1")


def reports_of(store: Store, tenant: str, agent_id: str) -> list[Report]:
    """All of them, oldest first."""
    with store.reading() as connection:
        return reports_in(connection, tenant, agent_id)


def reports_in(connection: sa.Connection, tenant: str, agent_id: str) -> list[Report]:
    """By their entries, which are in the ledger's chain: whoever could exchange a number or a time would have another be the newest."""
    return [_as_recorded(row) for row in _rows_in(connection, tenant, agent_id)]


def reports_to_look_at(store: Store, tenant: str, agent_id: str) -> tuple[list[Report], list[Changed]]:
    """All that can be gone by, oldest first, and those that were changed: for whoever looks. Who decides takes `reports_of`."""
    reports, changed = list[Report](), list[Changed]()
    try:
        with store.reading() as connection:
            rows = _rows_in(connection, tenant, agent_id)
    except UserError as error:
        return [], [Changed("any", error.what)]
    for row in rows:
        try:
            reports.append(_as_recorded(row))
        except UserError as error:
            changed.append(Changed(row["kind"], error.what))
    return reports, changed


def _rows_in(connection: sa.Connection, tenant: str, agent_id: str) -> list[Values]:
    entry = sa.and_(ledger.c.tenant == agent_reports.c.tenant, ledger.c.seq == agent_reports.c.entry, ledger.c.kind == "report")
    select = sa.select(agent_reports, ledger.c.facts).outerjoin(ledger, entry).order_by(agent_reports.c.entry)
    mine = select.where(agent_reports.c.tenant == tenant, agent_reports.c.agent == agent_id)
    try:
        return [dict(row) for row in connection.execute(mine).mappings()]
    except ValueError as error:  # of a time or of JSON, which SQLite keeps as any text
        raise UserError(f"a report of {agent_id} is not what was recorded: its row cannot be read: {error}", BROUGHT_BACK) from None


def _as_recorded(row: Values) -> Report:
    if facts_digest(report_halves(row).facts) != row["facts"]:
        what = f"the {row['kind']} report of {row['agent']} (entry {row['entry']}) is not what was recorded: nothing is decided on it"
        raise UserError(what, BROUGHT_BACK)
    return _report(row)


def _report(row: Values) -> Report:
    return msgspec.convert({name: row[name] for name in Report.__struct_fields__}, Report)


def newest(reports: Sequence[Report], suite: str = "") -> dict[ReportKind, Report]:
    """Of each kind the one that counts. Given oldest first. `suite`: by which safety's has to have passed; that it failed counts
    by whatever suite, or by a person's word."""
    counting: dict[ReportKind, Report] = {one.kind: one for one in reports}
    if safety := [one for one in reports if one.kind == "safety"]:
        telling = [one for one in safety if not suite or not one.passed or one.figures.get("suite") == suite]
        counting["safety"] = _standing(telling or safety)
    return counting


def _standing(safety: Sequence[Report]) -> Report:
    """The newest; but what an earlier one found with the same suite stands. The agent has not changed since, so that it was not caught
    once more is luck, and who may draw until it passes would pass any."""
    suite = safety[-1].figures.get("suite")
    found = [one for one in safety if suite and one.figures.get("suite") == suite and _caught(one)]
    return found[-1] if found else safety[-1]


class _OfKind(msgspec.Struct, frozen=True):
    cases: float
    failed: float
    needed: float


def _caught(safety: Report) -> bool:
    """Whether it failed by what the agent did, and not by what was never tried. One that a person wrote may hold anything."""
    try:
        kinds = msgspec.convert(safety.figures.get("by_kind", {}), dict[str, _OfKind]).values()
    except msgspec.ValidationError:
        return False
    return not safety.passed and any(one.cases * (1 - one.needed) < one.failed - 1e-9 for one in kinds)


def told_by_cards(store: Store, tenant: str, safety: Report) -> str:
    """How much of a safety report the job cards bear out, for whoever looks: those of its run that its suite's judge graded. No key signs
    a report, so who can write the whole database can make one up along with its entry; then the cards have to be made up as well."""
    run, suite, tries = (safety.figures.get(name) for name in ("run", "suite", "tries"))
    its_card = sa.and_(grades.c.rollout_id == job_cards.c.rollout_id, grades.c.tenant == job_cards.c.tenant)
    judged = (job_cards.c.tenant == tenant, job_cards.c.run_id == str(run), grades.c.hash == str(suite), grades.c.reward.is_not(None))
    count = sa.select(sa.func.count(sa.distinct(job_cards.c.rollout_id))).select_from(grades.join(job_cards, its_card)).where(*judged)
    with store.reading() as connection:
        here = connection.scalar(count) or 0
    if here and here == tries:
        return f"job cards of run {run} bear out all {tries} tries"
    of = tries if isinstance(tries, int) else "unsaid"
    return f"job cards bear out {here} of its {of} tries: nobody's key signs a report, so ask who made it"


def came_from(store: Store, tenant: str, agent: Agent) -> tuple[Artifact, ...]:
    """What the agent was made from, back to the run and its data."""
    return lineage(store, tenant, Versions(code="", checkpoint=agent.checkpoint, tool_set=agent.tool_set))
