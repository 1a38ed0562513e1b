"""`rft data`, `rft validate`, `rft grade`: what a run stands on, looked at before it is trained on."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from rich.table import Table

from agent_rft.commands.grading import case_lines, grader_named, grader_of, services_of
from agent_rft.commands.parts import console, known_tools
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.datasets.rows_io import validate_files, write_research
from agent_rft.datasets.validate import Report
from agent_rft.graders.cases import grade_cases, worked_out

RESEARCH = Path("data/research")


def make_data(keep_rows: bool) -> None:
    write_research(RESEARCH, keep_rows=keep_rows)
    rows = "rows left as they were" if keep_rows else "rows in train.jsonl and val.jsonl"
    console.print(f"{RESEARCH}: corpus in {RESEARCH}/filings, {rows}")


def validate(recipe: str, overrides: list[str], files: list[str]) -> None:
    settings = settings_for(recipe, overrides)
    paths = {"files": [Path(file) for file in files]} if files else {"train": Path(settings.task.train), "val": Path(settings.task.val)}
    report = validate_files(paths, known_tools(settings), grader_of(settings))
    _show(report)
    if report.faults:
        raise FaultsFound(f"{len(report.faults)} faults:", report.faults)
    console.print("no faults", style="green")


def _show(report: Report) -> None:
    table = Table("split", "task_type", "difficulty", title=f"{sum(report.sizes.values())} rows", title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for count in report.counts:
        table.add_row(count.split, count.task_type, count.difficulty, str(count.rows), f"{count.share:.0%}")
    console.print(table)
    if report.shared_evidence:
        console.print(f"{report.shared_evidence} validation rows ask for the same figure of the same document as a training row")
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow")


def grade(name: str, cases: str, recipe: str, overrides: list[str]) -> None:
    """`recipe` and overrides say where judges (grader.judge.url=...) and registered graders (store.url=...) are."""
    lines, settings = case_lines(cases), settings_for(recipe, overrides)
    with closing(services_of(settings.grader)) as services:
        graded = grade_cases(lines, grader_named(name, services, settings.store.url), cases)
    for line in graded:
        print(line)
    held, _, wrong = worked_out(lines, graded, cases)
    if wrong:
        listed = "\n  ".join(wrong)
        raise UserError(f"{len(wrong)} of {len(held)} cases are not graded as worked out:\n  {listed}", "mend the grader, or the case", 1)
    if held:
        print(f"{len(held)} of {len(held)} cases as worked out", file=sys.stderr)
