"""Is there something to learn? Training moves only rows that the base model solves sometimes: never and always give no signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.failures import failures
from agent_rft.evaluation.tries import mean, tries_by_row

TOO_FLAT, COMFORTABLE = 0.15, 0.30
"""The rule of thumb: below 15% of rows solved sometimes training has nothing to climb, above 30% it has plenty."""
ROUNDING = 1e-9
SHOWN = 400
"""Characters of a failure's reason."""
OVERRIDE = "prior.override=true trains all the same"
OTHER_BASE = (
    "most of what the base says is neither an answer nor a tool call: name one that speaks the language of your rows and calls tools, "
    "model.path=FOLDER or a Hugging Face id (the shipped models/research-tiny knows its own questions and tools, and nothing else; "
    "`rft tiny-base --examples` makes one for your task)"
)
KINDS_SHOWN = 3
"""Of what went wrong; the rest is on the job cards."""

Bucket = Literal["never", "sometimes", "always", "unmeasured"]
Verdict = Literal["go", "go with caution", "no go"]


class RowPrior(msgspec.Struct, frozen=True, kw_only=True):
    row_id: str
    bucket: Bucket
    tries: int
    """With a score; infrastructure failures are not tries."""
    successes: int
    infra_failures: int
    success_rate: float | None
    mean_reward: float | None
    reward_variance: float | None
    """Over the row's tries, as the group baseline sees it: divided by their number."""


class PriorCheck(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Verdict
    why: str
    cure: str
    """What to do about it, empty where there is nothing to do."""
    pass_at: float
    """A try succeeds from this reward on."""
    never: int
    sometimes: int
    always: int
    unmeasured: int
    """Rows on which every try failed from infrastructure. In no share."""
    share_sometimes: float
    """Of the measured rows."""
    mean_reward: float | None
    mean_tool_calls: float | None
    infra_failures: int
    infra_said: str = ""
    """What the last of them failed with."""
    unsolved: dict[str, int] = {}
    """Tries by what went wrong, the most frequent first. Older checks have neither this nor `infra_said`."""
    rows: tuple[RowPrior, ...]

    @property
    def measured(self) -> int:
        return self.never + self.sometimes + self.always


def check_prior(graded: Iterable[GradedRollout], pass_at: float = 1.0) -> PriorCheck:
    graded = list(graded)
    by_row = tries_by_row(graded)
    rows = tuple(row_prior(row_id, tries.rewards, tries.failed, pass_at) for row_id, tries in by_row.items())
    counts = {bucket: sum(row.bucket == bucket for row in rows) for bucket in ("never", "sometimes", "always", "unmeasured")}
    measured = len(rows) - counts["unmeasured"]
    share = counts["sometimes"] / measured if measured else 0.0
    most_tries = max((row.tries for row in rows), default=0)
    verdict, why, cure = _judge(counts["never"], counts["always"], measured, share, most_tries)
    infra_said = _infra_said(graded)
    if not measured and infra_said:
        why += f"; the last one, {infra_said}"
    if counts["never"] > counts["always"] and verdict == "no go" and _mostly_unreadable(graded):
        cure = f"{OTHER_BASE}; {OVERRIDE}"
    scored = [(one, reward) for tries in by_row.values() for one, reward in zip(tries.scored, tries.rewards, strict=True)]
    return PriorCheck(
        verdict=verdict,
        why=why,
        cure=cure,
        pass_at=pass_at,
        **counts,
        share_sometimes=share,
        mean_reward=mean([reward for _, reward in scored]) if scored else None,
        mean_tool_calls=mean([one.rollout.tool_calls for one, _ in scored]) if scored else None,
        infra_failures=sum(tries.failed for tries in by_row.values()),
        infra_said=infra_said,
        unsolved=failures(graded, pass_at).kinds,
        rows=rows,
    )


def _infra_said(graded: Sequence[GradedRollout]) -> str:
    failed = [one.rollout for one in graded if one.infra_failed and one.rollout.reason]
    if not failed:
        return ""
    part, reason = failed[-1].failed_part, failed[-1].reason
    return f"of {part}, said: {reason.removeprefix(f'{part}: ')[:SHOWN]}"


def _mostly_unreadable(graded: Sequence[GradedRollout]) -> bool:
    """Neither an answer nor a call: such a model does not know the language of the task, and easier rows would not help it."""
    scored = [one for one in graded if not one.infra_failed]
    return 2 * sum(one.rollout.ending is Ending.MALFORMED for one in scored) > len(scored)


def row_prior(row_id: str, rewards: Sequence[float], failed: int, pass_at: float = 1.0) -> RowPrior:
    """`rewards` of the tries that have one; infrastructure spoilt `failed` others."""
    successes = sum(reward >= pass_at - ROUNDING for reward in rewards)
    average = mean(rewards) if rewards else None
    return RowPrior(
        row_id=row_id,
        bucket=_bucket(successes, len(rewards)),
        tries=len(rewards),
        successes=successes,
        infra_failures=failed,
        success_rate=successes / len(rewards) if rewards else None,
        mean_reward=average,
        reward_variance=mean([(reward - average) ** 2 for reward in rewards]) if average is not None else None,
    )


def _bucket(successes: int, tries: int) -> Bucket:
    if not tries:
        return "unmeasured"
    if not successes:
        return "never"
    return "always" if successes == tries else "sometimes"


def _judge(never: int, always: int, measured: int, share: float, most_tries: int) -> tuple[Verdict, str, str]:
    """Verdict, why, cure."""
    if not measured:
        return "no go", "no try has a score: infrastructure failed on all of them", "mend the tools or the grader, then check again"
    if most_tries < 2:
        return "no go", "one try a row cannot tell sometimes from always", "give each row at least 2 tries, better 5"
    band = f"{share:.0%} of the rows are solved sometimes"
    if share < TOO_FLAT:
        return "no go", f"{band}, below {TOO_FLAT:.0%}: {_flatness(never, always, measured)}", _cure(never, always)
    if share <= COMFORTABLE:
        cure = "watch that val_reward moves in the first steps; more rows of middling difficulty, or more tries a prompt, give more signal"
        return "go with caution", f"{band}, within the {TOO_FLAT:.0%}-{COMFORTABLE:.0%} that is just enough", cure
    return "go", f"{band}, above the {TOO_FLAT:.0%}-{COMFORTABLE:.0%} rule of thumb: there is something to learn", ""


def _flatness(never: int, always: int, measured: int) -> str:
    if always == measured:
        return "every row is solved always, so there is nothing to learn"
    if never == measured:
        return "every row fails always, so there is no slope to climb"
    return f"{never} rows never, {always} always, so there is hardly a slope to climb"


def _cure(never: int, always: int) -> str:
    """Which way out: the rows are too easy, or too hard."""
    way_out = "add harder rows" if always > never else "simpler tools, better prompts, easier rows or a stronger base model"
    return f"{way_out}; {OVERRIDE}"


def describe_prior(check: PriorCheck) -> str:
    """What is printed."""
    lines = [f"prior: sometimes {check.sometimes}, never {check.never}, always {check.always}, of {check.measured} rows"]
    if check.mean_reward is not None and check.mean_tool_calls is not None:
        lines.append(f"  mean reward {check.mean_reward:.2f}, {check.mean_tool_calls:.1f} tool calls a try")
    if check.infra_failures:
        said = f" (the last one, {check.infra_said})" if check.infra_said and check.measured else ""
        lines.append(f"  left out: {check.infra_failures} tries that infrastructure spoilt{said}; {check.unmeasured} rows unmeasured")
    if check.unsolved and check.verdict != "go":
        kinds = [f"{count} {kind}" for kind, count in list(check.unsolved.items())[:KINDS_SHOWN]]
        lines.append(f"  tries that solved nothing: {'; '.join(kinds)}")
    lines.append(f"  {check.verdict.upper()}: {check.why}")
    if check.cure:
        lines.append(f"  cure: {check.cure}")
    return "\n".join(lines)


def histogram(check: PriorCheck) -> str:
    """How many rows are solved how often, as bars for a terminal; the spread of the rewards is in prior.png."""
    counts = Counter(row.success_rate for row in check.rows if row.success_rate is not None)
    return "\n".join(f"  solved {rate:>4.0%} of the tries: {'█' * counts[rate]} {counts[rate]} rows" for rate in sorted(counts))
