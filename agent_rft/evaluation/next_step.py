"""The last line of a run: what to do next."""

from __future__ import annotations

from pathlib import PurePath

from agent_rft.evaluation.compare import Comparison


def next_step(run_dir: str, comparison: Comparison | None = None, *, halted: str = "", cure: str = "") -> str:
    """One line that names what to do, the most pressing thing first."""
    report, run = f"{run_dir}/report.html", PurePath(run_dir).name
    if halted:
        return f"Next: {cure or f'see in {report} why training halted'}: `make resume RUN={run}`"
    if comparison is None:
        return f"Next: open {report}; then `make evaluate RUN={run}` compares base and tuned"
    if len(comparison.excluded) > comparison.compared:
        return (
            f"Next: mend the infrastructure, most rows have no score ({report} names the parts that failed); then `make evaluate RUN={run}`"
        )
    if comparison.regressed > comparison.improved:
        return (
            f"Next: open {report}, worst rows first: {comparison.regressed} got worse, {comparison.improved} better; "
            "if the grader is wrong there, mend it and evaluate again, do not retrain"
        )
    if comparison.mean_d_reward <= 0:
        return f"Next: open {report}: the reward did not rise; more steps, more tries a prompt, or rows nearer to the middle of the prior"
    if comparison.regressed:
        return f"Next: open {report} and read the {comparison.regressed} rows that got worse; then `make serve`"
    return f"Next: open {report}; then `make serve`"
