"""`rft grader ...`: how a grader version comes to train and gate.

A version is registered under a hash over all that decides its score, shows what it does (`check`), is approved by a second
person and activated. Only then does it train or gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agent_rft.commands.grading import case_lines, spec_in
from agent_rft.commands.parts import code_version, console
from agent_rft.commands.registered import (
    GIVEN,
    Build,
    against,
    built,
    next_version,
    refuse_secrets_in_addresses,
    refuse_shipped,
    shipped,
    split,
    standing_grader,
    without_secrets,
)
from agent_rft.commands.regrade import SHOWN, rescored, rows_of, show_difference, tell_partial
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.people import same_person
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rows import Row
from agent_rft.graders.agreement import difference
from agent_rft.graders.labelling import asked_by
from agent_rft.graders.registry import GRADERS
from agent_rft.graders.reports import (
    Label,
    Report,
    ReportKind,
    Standing,
    adversarial_report,
    cases_report,
    checked_on,
    kappa_report,
    missing_for_activation,
    missing_reports,
    regrade_report,
)
from agent_rft.graders.right_answers import reference_at, references_of
from agent_rft.graders.spec import read_spec
from observability import graders as register_of_graders
from observability.cards import card_ids, of_one_tenant
from observability.graders import GraderVersion, active_version, find_version, grader_versions_of, labelled_scores
from observability.store import Store, open_store

TRIED_ROWS = 50
"""Rows that adversarial answers are made for: seven a row, and a judge is paid for each."""


# --- the life of a version ----------------------------------------------------------------------------------------------


def register(url: str, source: str, by: str, build: Build, wanted: str | None = None) -> None:
    """`source`: a JSON file, or the name of one of ours. `wanted`: NAME@VERSION; left out, the next number under its name."""
    who = asked_by(by)
    spec = read_spec({"type": source, "name": source}) if source in GRADERS else spec_in(Path(source))
    refuse_secrets_in_addresses(msgspec.to_builtins(spec), source)
    with closing(open_store(url)) as store:
        hash_ = build(spec).ref.hash
        name, version = split(wanted) if wanted else (spec.name, "")
        same = [one for one in grader_versions_of(store, name) if one.ref.hash == hash_]
        if same and not version:
            console.print(f"{name}@{same[0].ref.version} is this grader already, hash {hash_}")
            return
        ref = GraderRef(name, version or next_version(store, name, hash_), hash_)
        split(f"{ref.name}@{ref.version}")
        refuse_shipped(ref)
        if (ships := shipped(name)) and ships.ref == ref and not active_version(store, name):
            console.print(f"{name}@{ref.version} ships with the code and stands as it is, hash {hash_}: nothing to register")
            return
        body = without_secrets(msgspec.to_builtins(spec))
        new = register_of_graders.register(store, ref, cast(dict[str, Any], body), code_version(), who)
        console.print(f"{ref.name}@{ref.version} is registered{'' if new else ' already'}, hash {ref.hash}")
    console.print(f"next: rft grader check {ref.name}@{ref.version} --cases FILE.jsonl --run RUN")


def check(
    url: str,
    name: str,
    build: Build,
    *,
    tenant: str = "default",
    cases: str | None,
    run_id: str | None,
    labels: bool = False,
    rows: Sequence[str] = (),
    reference: str | None = None,
    without_reference: bool = False,
) -> None:
    """The reports that can be made from what is given, each kept. Exit code 1 where one does not pass.

    `reference`: the rows' key that holds the right answer, where the grader's JSON does not tell; `without_reference`: there is none.
    """
    if not cases and not run_id:
        raise UserError("nothing to check the grader on", "--cases FILE.jsonl, --run RUN, or both")
    named_key = [reference_at(reference)] if reference else []
    with closing(open_store(url)) as store:
        version = find_version(store, name)
        grader = built(version, build)
        made = [cases_report(case_lines(cases), grader, cases)] if cases else []
        if run_id:
            theirs = of_one_tenant(store, tenant, run_id)
            regraded, tried, agreed = _reports_on_run(theirs, version, grader, build, run_id, rows_of(run_id, rows), labels)
            references = [*named_key, *references_of(read_spec(version.spec, name))]
            made += [regraded, adversarial_report(tried, grader, None, references, without_reference=without_reference), *agreed]
        for report in made:
            register_of_graders.add_report(store, version.ref, report.kind, report.passed, report.why, report.figures)
        _show_reports(name, made)
        console.print(_next_step(name, missing_for_activation(_standing(store, version))))
    if failed := [report for report in made if not report.passed]:
        cures = dict.fromkeys(report.cure or "mend it and register it as another version" for report in failed)
        raise UserError(f"{name} does not pass: {', '.join(report.kind for report in failed)}", "; ".join(cures), exit_code=1)


def approve(url: str, name: str, by: str) -> None:
    """Of the reports that are the newest now: a newer one wants another approval."""
    who = asked_by(by)
    with closing(open_store(url)) as store:
        version = find_version(store, name)
        if same_person(who, version.created_by):
            raise UserError(f"{who} registered {name} and cannot approve it too", "a second person approves: --by OTHER")
        standing = _standing(store, version)
        _refuse_where(missing_reports(standing), f"there is not enough to approve {name} on:", name)
        register_of_graders.add_approval(store, version.ref, who)
        _show_reports(name, list(standing.reports.values()))
        console.print(f"{who} approves {name}\nnext: rft grader activate {name} --by WHO")


def activate(url: str, name: str, by: str) -> None:
    who = asked_by(by)
    with closing(open_store(url)) as store:
        version = find_version(store, name)
        if version.state == "active":
            console.print(f"{name} is active already")
            return
        _refuse_where(missing_for_activation(_standing(store, version)), f"{name} cannot be activated; missing:", name)
        before = against(store, version.ref.name)
        register_of_graders.activate(store, version.ref, who)
        console.print(f"{name} is active now, in place of {before}")


def list_graders(url: str) -> None:
    with closing(open_store(url)) as store:
        versions = grader_versions_of(store)
        table = Table("grader", "state", "hash", "by", "passed", "approved", box=SIMPLE_HEAD)
        for name in sorted(set(GRADERS) - {one.ref.name for one in versions if one.state == "active"}):
            if ships := shipped(name):
                table.add_row(f"{name}@{ships.ref.version}", "ships, stands", ships.ref.hash, "-", "-", "-")
                versions = [one for one in versions if one.ref != ships.ref]
        for one in versions:
            passed = [kind for kind, report in register_of_graders.newest_reports(store, one.ref).items() if report.passed]
            approved = ", ".join(dict.fromkeys(who for who, _ in register_of_graders.approvals(store, one.ref)))
            row = (f"{one.ref.name}@{one.ref.version}", one.state, one.ref.hash, one.created_by, " ".join(passed), approved)
            table.add_row(*(cell or "-" for cell in row))
    console.print(table, soft_wrap=False)


# --- reports ------------------------------------------------------------------------------------------------------------


def _reports_on_run(
    store: Store, version: GraderVersion, grader: Grader, build: Build, run_id: str, rows: Mapping[str, Row], labels: bool
) -> tuple[Report, list[Row], list[Report]]:
    """The regrade report, the rows to try the grader on, and the report on people's labels, where there are any.

    The run's rollouts as they lie in the store: the same for the version that stands and for the one that would.
    """
    ids, people = card_ids(store, run_id), labelled_scores(store, run_id)
    if not ids:
        raise UserError(f"no card of run {run_id} is in {store.name}", "`rft card list` shows runs")
    if labels and not people:
        raise UserError(f"nobody has labelled a rollout of run {run_id}", "`rft label`, or leave --labels out")
    tried, after, before, partial = dict[str, Row](), dict[str, Grade](), dict[str, Grade](), 0
    for one in rescored(store, ids, grader, rows, "grading with the new version"):
        after[one.rollout_id], before[one.rollout_id] = one.grade, one.first
        partial += not one.whole_row
        if len(tried) < TRIED_ROWS:
            tried[one.row.id] = one.row
    tell_partial(partial)
    stands, standing = against(store, version.ref.name), standing_grader(store, version.ref.name, build)
    if standing:
        again = rescored(store, ids, standing, rows, "grading with the active version")
        before = {one.rollout_id: one.grade for one in again}
    else:
        why = f": this code does not build {stands}" if stands != GIVEN else ""
        console.print(f"compared with each rollout's first grade{why}")
    show_difference(difference(before, after))
    agreed = [kappa_report([Label(key, score) for key, score in people.items()], after)] if people else []
    return regrade_report(before, after, stands, run_id), list(tried.values()), agreed


def _standing(store: Store, version: GraderVersion) -> Standing:
    stored, given = register_of_graders.newest_reports(store, version.ref), register_of_graders.approvals(store, version.ref)
    reports = {kind: Report(cast(ReportKind, kind), one.passed, one.why, one.figures) for kind, one in stored.items()}
    newest = max((one.at for one in stored.values()), default=None)
    run_id = reports["regrade"].figures["run"] if "regrade" in reports else None
    return Standing(
        registered_by=version.created_by,
        reports=reports,
        approved_by=tuple(who for who, at in given if newest and at > newest),
        approved_before=tuple(who for who, at in given if not newest or at <= newest),
        against=against(store, version.ref.name),
        labelled=bool(run_id and labelled_scores(store, run_id)),
    )


def _refuse_where(missing: Sequence[str], title: str, name: str) -> None:
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        raise UserError(
            f"{title}\n{lines}", f"rft grader check {name} --cases FILE.jsonl --run RUN, then rft grader approve {name} --by OTHER"
        )


def _next_step(name: str, missing: Sequence[str]) -> str:
    if not missing:
        return f"next: rft grader activate {name} --by WHO"
    return "missing before it can be active:\n" + "\n".join(f"  {line}" for line in missing)


# --- what is shown ------------------------------------------------------------------------------------------------------


def _show_reports(name: str, reports: Sequence[Report]) -> None:
    table = Table("report", "outcome", "why", title=name, title_justify="left", box=SIMPLE_HEAD)
    for report in reports:
        table.add_row(report.kind, "passes" if report.passed else "fails", report.why)
    console.print(table, soft_wrap=False)
    for told in (checked_on(report) for report in reports):
        if told:
            console.print(f"  {told}", soft_wrap=True)
    for wrong in next((report.figures["wrong"] for report in reports if report.kind == "cases"), [])[:SHOWN]:
        console.print(f"  {wrong}")
