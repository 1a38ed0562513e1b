"""A run that was halted by a guard, made by hand, with something for every section of a report to tell."""

import runpy
from pathlib import Path

from agent_rft.contracts.guards import Finding
from agent_rft.contracts.jobcards import Versions
from agent_rft.contracts.training import GuardLimits, StepMetrics
from agent_rft.evaluation.compare import compare
from agent_rft.evaluation.distribution import DistributionCheck, Part
from agent_rft.evaluation.figures import watched_by
from agent_rft.evaluation.prior import check_prior
from agent_rft.evaluation.report.contents import RunReport, with_tries
from agent_rft.evaluation.report.suite import render_suite
from agent_rft.evaluation.scoreboard import scoreboard

one_try = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["one_try"]
STEPS, ROWS = 40, 30
GRADER = "numeric@1#abc"


def finding(step: int, guard: str = "holdout_divergence", action: str = "warn", what: str = "", **rest) -> Finding:
    told = {"figure": 0.28, "limit": 0.1, "cure": "read the rollouts named here", "rollouts": ("0198-a", "0198-b")} | rest
    return Finding(guard=guard, step=step, action=action, what=what or f"{guard} at step {step}", **told)


def lines() -> tuple[StepMetrics, ...]:
    """Reward climbs from 0.40 to 0.78 while the held-out grader's stays; a guard warns twice and then stops the run."""
    made = []
    for step in range(STEPS):
        validated = step % 10 == 0 or step == STEPS - 1
        made.append(
            StepMetrics(
                step=step,
                val_reward=round(0.4 + step * 0.01, 4) if validated else None,
                val_tool_calls=round(6 - step * 0.1, 4) if validated else None,
                train_reward=0.35 + (step % 7) * 0.05,
                tool_calls=6 - step * 0.1,
                kl_to_ref=0.004 * step,
                entropy=0.5 - step * 0.01,
                flat_groups=0.25,
                infra_failures=int(step == 5),
                infra_failure_rate=0.002 if step >= 5 else 0.0,
                figures={"reward_spread": 0.3 - step * 0.005, "tokens_a_try": 45.0, "parallel_share": 0.2, "unsafe": 0.0},
                holdout={"strict@2": 0.41, "judge@1": 0.38} if validated else {},
                rollouts=64,
                tokens=9000,
                seconds=2.0,
            )
        )
    made[20].findings.append(finding(20))
    made[30].findings.append(finding(30))
    made[30].findings.append(finding(30, "reward_spread_collapse", figure=4.2, limit=4.0))
    made[39].findings.append(finding(39, action="stop"))
    return tuple(made)


def tries(better: float, calls: int, sample: float = 0.5):
    """Of ROWS rows two tries each: the first earns `better` where the row's number allows it."""
    return [
        one_try(
            f"row-{number:02}",
            (better if number % 3 else 0.0) if index else sample,
            calls + number % 3,
            index,
            metadata={"difficulty": ("easy", "medium", "hard")[number % 3], "task_type": "numerical_qa", "note": "said by a user"},
            prompt=f"What was the revenue of company {number} in the second quarter of the year before last?",
        )
        for number in range(ROWS)
        for index in range(2)
    ]


def alike(name: str, verdict: str) -> DistributionCheck:
    part = Part(
        what="length", statistic="Kolmogorov-Smirnov", figure=0.077, by_chance=0.085, limit=0.15, p=0.55, verdict=verdict,
        words="half of train from 8 to 11 words, half of it from 8 to 12",
    )  # fmt: skip
    return DistributionCheck(name_a="train", name_b=name, n_a=400, n_b=100, parts=(part,), verdict=verdict)


def make_report(run_id: str = "r1", tuned_earns: float = 1.0, **rest) -> RunReport:
    base, tuned = tries(0.5, 5), tries(tuned_earns, 2)
    checkpoint = Versions(code="0.1.0+abc", checkpoint=f"{run_id}/40", dataset="d4ta", tool_set="t00l", grader=GRADER, seed=42)
    given = {
        "run_id": run_id,
        "recipe": "research_tiny",
        "finished_at": "2026-11-22T05:41:00+00:00",
        "seconds": 180.0,
        "versions": checkpoint,
        "settings": {"seed": 42, "store": {"url": "postgresql://u:(hidden)@h/d"}},
        "prior": check_prior(base, 0.5),
        "distribution": (alike("val", "alike"), alike("production of research", "differ")),
        "metrics": lines(),
        "watched": watched_by(GuardLimits(max_infra_rate=0.01, infra_window_calls=1000, max_kl=0.5, human_ceiling=0.9)),
        "comparison": compare(base, tuned),
        "next_step": "Next: read it",
    }
    return with_tries(RunReport(**given | rest), base, tuned, 1.0)


LONG = "http://inference.internal.example:8000/v1#Qwen/Qwen2.5-7B-Instruct-tuned-on-filings-2026-11-21"


def make_suite() -> str:
    """Four models: the base, one that is better, one whose name is long and that a row in five was lost for, one that got worse."""
    base, worse = tries(0.5, 5), tries(0.0, 7, sample=0.25)
    spoilt = [
        one_try(one.row.id, None, 1, one.sample_index, metadata=one.row.metadata) if number % 10 < 2 else one
        for number, one in enumerate(tries(0.75, 3))
    ]
    graded = {"base": base, "research-7b-2026-11-21": tries(1.0, 2), LONG: spoilt, "research-7b-2026-11-21/step-000040": worse}
    return render_suite("suite-2026-11-22-0541", scoreboard(graded), graded)


def make_lone_suite() -> str:
    """One model, beside nothing."""
    graded = {"base": tries(0.5, 5)}
    return render_suite("suite-of-one", scoreboard(graded), graded)
