"""What a grader version has to show before it may train or gate: four reports, each with its figures and a verdict.

The limits are where a person would object anyway; what lies on the right side of them is still looked at by a second person.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.people import same_person
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rows import Row
from agent_rft.graders.adversarial import LEANING, Ceiling, try_adversarial
from agent_rft.graders.agreement import SAME, Difference, cohen_kappa, difference, weighted_kappa
from agent_rft.graders.base import PASS_THRESHOLD
from agent_rft.graders.cases import grade_cases, worked_out

ReportKind = Literal["cases", "regrade", "adversarial", "kappa"]
KINDS: tuple[ReportKind, ...] = get_args(ReportKind)
MIN_RANK_CORRELATION = 0.5
"""A grader that ranks the rollouts otherwise than the active one measures something else: it is a new grader, not a version."""
MIN_KAPPA = 0.6
"""From here on agreement is commonly called substantial (Landis and Koch, 1977)."""
MIN_LABELS = 10
"""Of fewer samples neither kappa nor its interval means much."""
MORE_LABELS = "let people label more of the run's rollouts: rft label --run RUN --by WHO"
NAME_REFERENCE = "--reference KEY names the rows' key that holds it; --no-reference says that they have none"
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Graded scores are compared in quarters."""


class Report(msgspec.Struct, frozen=True):
    kind: ReportKind
    passed: bool
    why: str
    """The outcome in a line."""
    figures: dict[str, Any]
    cure: str = ""
    """What to do where it is not the grader that is to be mended."""


class Label(msgspec.Struct, frozen=True):
    """What people found of a rollout: their scores' mean, where several did."""

    rollout_id: str
    score: float


# --- cases --------------------------------------------------------------------------------------------------------------


def cases_report(lines: Sequence[str], grader: Grader, source: str) -> Report:
    """Every case gets the reward, or sets exactly the error flags, that were worked out by hand."""
    held, bare, wrong = worked_out(lines, grade_cases(lines, grader, source), source)
    if bare or not held:
        which = f"line {bare[0]} of {source} says" if bare else f"{source} holds no case, so nothing says"
        raise UserError(f"{which} not what is expected", 'add "reward": 1, or "errors": ["invalid_variable_error"]')
    figures = {"cases": len(held), "wrong": wrong, "source": source, "content": _content("\n".join(lines))}
    return Report("cases", not wrong, f"{len(held) - len(wrong)} of {len(held)} cases right", figures)


def _content(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def checked_on(report: Report) -> str:
    """What the report is about, so that the same can be looked at again. Empty where it says nothing beyond its run."""
    told = report.figures
    if "content" not in told:
        return ""
    if report.kind == "cases":
        return f"{told['cases']} cases of {told['source']}, sha256 {told['content']}"
    return f"{told['samples']} rollouts of run {told['run']}, sha256 of their ids {told['content']}"


# --- the same rollouts under two graders --------------------------------------------------------------------------------


def regrade_report(before: Mapping[str, Grade], after: Mapping[str, Grade], against: str, run_id: str) -> Report:
    """`against`: the grader that stands now, as its reference reads; `before` are its grades."""
    found = difference(before, after)
    told = {"against": against, "run": run_id, "content": _content("\n".join(sorted(before.keys() & after.keys())))}
    return Report("regrade", not (why := _objection(found)), why or _outcome(found), {**figures_of(found), **told})


def _objection(found: Difference) -> str:
    if not found.scored_by_both:
        return "no rollout was scored by both graders"
    if lost := found.count("lost its score"):
        return f"{lost} of {found.samples} rollouts get no score any more"
    if found.spearman is not None and found.spearman < MIN_RANK_CORRELATION:
        return f"rank correlation {found.spearman:.2f}, below {MIN_RANK_CORRELATION}: it measures something else"
    return ""


def _outcome(found: Difference) -> str:
    ranks = "not defined" if found.spearman is None else f"{found.spearman:.2f}"
    return f"{len(found.changed)} of {found.samples} rollouts change, rank correlation {ranks}"


def figures_of(found: Difference) -> dict[str, Any]:
    return cast(dict[str, Any], msgspec.to_builtins(found))


# --- answers that earn nothing ------------------------------------------------------------------------------------------


def adversarial_report(
    rows: Sequence[Row], grader: Grader, ceiling: Ceiling | None = None, references: Sequence[str] = (), *, without_reference: bool = False
) -> Report:
    result = try_adversarial(rows, grader, ceiling, references, without_reference=without_reference)
    figures = {**cast(dict[str, Any], msgspec.to_builtins(result)), "references": list(references)}
    if not result.kinds:
        return Report("adversarial", False, "no row to try", figures)
    above = [kind.kind for kind in result.kinds if not kind.below_ceiling and not kind.untried]
    untried = [kind.kind for kind in result.kinds if not kind.below_ceiling and kind.untried]
    left_out = [kind for kind in LEANING if kind not in {one.kind for one in result.kinds}]
    whys = [f"too much, or no score, for: {', '.join(above)}"] if above else []
    whys += [f"the right answer of rows is not known, so not enough was tried of: {', '.join(untried)}"] if untried else []
    whys = whys or [f"{len(result.kinds)} kinds of answers on {len(rows)} rows earn nothing"]
    whys += [f"without a right answer not tried: {', '.join(left_out)}"] if left_out else []
    return Report("adversarial", result.passed, "; ".join(whys), figures, NAME_REFERENCE if untried and not above else "")


# --- people -------------------------------------------------------------------------------------------------------------


def kappa_report(labels: Sequence[Label], grades: Mapping[str, Grade]) -> Report:
    """Pass or fail by kappa, which decides, and the graded scores by weighted kappa, for who looks."""
    scored = [(label.score, reward, bool(grades[label.rollout_id].passed)) for label, reward in _scored(labels, grades)]
    passing = cohen_kappa([(score >= PASS_THRESHOLD, passed) for score, _, passed in scored])
    graded = [(_quarter(score), _quarter(reward)) for score, reward, _ in scored]
    figures = {
        "labels": len(labels),
        "pass or fail": msgspec.to_builtins(passing),
        "linear": msgspec.to_builtins(weighted_kappa(graded, LEVELS, "linear")),
        "quadratic": msgspec.to_builtins(weighted_kappa(graded, LEVELS, "quadratic")),
    }
    if len(scored) < MIN_LABELS:
        why = f"{len(scored)} labelled rollouts with a score, {MIN_LABELS} at least are needed"
        return Report("kappa", False, why, figures, MORE_LABELS)
    if passing.kappa is None or passing.low is None or passing.high is None:
        return Report("kappa", False, "all pass, or all fail, with people and grader alike: label others too", figures, MORE_LABELS)
    told = f"kappa {passing.kappa:.2f} (95%: {passing.low:.2f} to {passing.high:.2f}) on {len(scored)} rollouts"
    if passing.kappa < MIN_KAPPA or passing.low <= 0:
        return Report("kappa", False, f"{told}; at least {MIN_KAPPA} is needed, and an interval above 0", figures)
    return Report("kappa", True, told, figures)


def _scored(labels: Sequence[Label], grades: Mapping[str, Grade]) -> Iterable[tuple[Label, float]]:
    for label in labels:
        grade = grades.get(label.rollout_id)
        if grade is not None and grade.reward is not None:
            yield label, grade.reward


def _quarter(score: float) -> float:
    """The nearest level; halfway counts upwards."""
    return LEVELS[min(int(score * 4 + 0.5 + SAME), 4)]


# --- the gate -----------------------------------------------------------------------------------------------------------


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version stands on its way to being active."""

    registered_by: str
    reports: dict[str, Report]
    """The newest of each kind."""
    approved_by: tuple[str, ...] = ()
    approved_before: tuple[str, ...] = ()
    """Whose approval is older than one of the reports: it was of what was there then."""
    against: str
    """The grader that it would take the place of, now."""
    labelled: bool
    """People have labelled rollouts of the run that it was re-graded on."""


def missing_reports(standing: Standing) -> list[str]:
    """What keeps the version from being approved, in words."""
    needed: Collection[ReportKind] = KINDS if standing.labelled else KINDS[:-1]
    lines = [line for kind in needed if (line := _missing(kind, standing.reports.get(kind)))]
    regraded = standing.reports.get("regrade")
    if regraded and regraded.passed and regraded.figures["against"] != standing.against:
        lines.append(f"the regrade report compares with {regraded.figures['against']}, but {standing.against} is active now")
    return lines


def missing_for_activation(standing: Standing) -> list[str]:
    second = [who for who in standing.approved_by if not same_person(who, standing.registered_by)]
    lines = missing_reports(standing)
    if second:
        return lines
    before = [who for who in dict.fromkeys(standing.approved_before) if not same_person(who, standing.registered_by)]
    outdated = f"; there are reports since the approval of {', '.join(before)}, which was of others" if before else ""
    return [*lines, f"the approval of a second person, other than {standing.registered_by}{outdated}"]


def _missing(kind: ReportKind, report: Report | None) -> str:
    if report is None:
        return f"the {kind} report"
    return "" if report.passed else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} report that passes: {report.why}"


def named(ref: GraderRef) -> str:
    """As runs and cards name a grader."""
    return f"{ref.name}@{ref.version}#{ref.hash}"
