"""The last line of a run: what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePath

from agent_rft.evaluation.compare import Comparison, sign
from agent_rft.evaluation.slices import slice_rows

LOOKED_AT = 3
"""Rollouts or rows that the line names; the inspector lists them all."""


def found_by(run_dir: str) -> str:
    """What RUN= is, for a command that is to find this folder, as a shell takes it: by themselves they look in runs/."""
    folder = PurePath(run_dir)
    return shlex.quote(folder.name if folder.parent == PurePath("runs") else str(folder))


def next_step(
    run_dir: str,
    comparison: Comparison | None = None,
    *,
    halted: str = "",
    cure: str = "",
    look_at: Sequence[str] = (),
    guard: str = "",
    recipe: str = "",
) -> str:
    """One line that names what to do, the most pressing thing first. `look_at`: rollouts that show why a guard halted the run. `guard`:
    one that would end it again at once, since the same weights give the same tries. `recipe`: with whose tools and grader it is served;
    empty for the one that `make` takes by itself."""
    report, run = f"{run_dir}/report.html", found_by(run_dir)
    if halted and guard:
        look = f"`make inspect RUN={run}`, first {', '.join(look_at[:LOOKED_AT])}" if look_at else f"open {report}"
        return (
            f"Next: {look}: {cure}. Another grader or other rows are a new run, `make train`; where the guard is wrong: "
            f'`make resume RUN={run} ARGS="guards.watch.{guard}.action=warn"`'
        )
    if halted and look_at:
        return f"Next: `make inspect RUN={run}`, first {', '.join(look_at[:LOOKED_AT])}: {cure}; then `make resume RUN={run}`"
    if halted:
        return f"Next: {cure or f'see in {report} why training halted'}: `make resume RUN={run}`"
    if comparison is None:
        return f"Next: open {report}; then `make evaluate RUN={run}` compares base and tuned"
    if len(comparison.excluded) > comparison.compared:
        return (
            f"Next: mend the infrastructure, most rows have no score ({report} names the parts that failed); then `make evaluate RUN={run}`"
        )
    look = f"open {report}, then {_inspecting(run, comparison)}"
    if comparison.regressed > comparison.improved:
        return (
            f"Next: {look}: {comparison.regressed} got worse, {comparison.improved} better; "
            "if the grader is wrong there, mend it and evaluate again, do not retrain"
        )
    if comparison.mean_d_reward <= 0:
        return f"Next: {look}: the reward did not rise; more steps, more tries a prompt, or rows nearer to the middle of the prior"
    if worse := [f"{part.key}={part.value}" for part in slice_rows(comparison.rows) if part.verdict == "worse"]:
        return f"Next: {look}: the rows of {', '.join(worse)} got worse while the whole got better; do not serve it yet"
    if comparison.verdict != "better":
        return (
            f"Next: {look}: a rise like this may be luck on {comparison.compared} rows; train for more steps, or evaluate "
            f"on more rows or with a larger evaluation.samples_per_row: `make evaluate RUN={run}`"
        )
    return f"Next: {look}; then `make serve{f' CONF={shlex.quote(recipe)}' if recipe else ''}`"


def _inspecting(run: str, comparison: Comparison) -> str:
    """What a mean hides is read in single rows, whatever the mean says: those that got worse first, or else what was earned too easily."""
    worse = [row.row_id for row in comparison.rows if sign(row.d_reward) < 0]
    if not worse:
        return f"`make inspect RUN={run}` (no row got worse: what is suspiciously right)"
    first = ", ".join(worse[:LOOKED_AT])
    rows = "the row that got worse" if len(worse) == 1 else f"the {len(worse)} rows that got worse"
    return f"`make inspect RUN={run}` ({rows}, first {first})" if len(worse) > LOOKED_AT else f"`make inspect RUN={run}` ({rows}: {first})"
