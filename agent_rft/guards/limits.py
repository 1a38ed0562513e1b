"""Every guard and detector there is: what it looks at, and from which figure on it does what. The documentation prints this table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from agent_rft.contracts.guards import Finding, Limit
from agent_rft.contracts.training import GuardLimits

SHOWN = 5
"""Rollouts that a finding names."""
Family = Literal["drift", "process", "infra", "hacking", "safety"]


class Suspicion(NamedTuple):
    """What a guard would say, if its limit lets it."""

    figure: float
    what: str
    cure: str
    rollouts: Sequence[str] = ()
    """The most telling first."""
    limit: float | None = None
    """Where it is tighter than the guard's own."""


class Guard(msgspec.Struct, frozen=True):
    name: str
    looks_at: str
    unit: str
    """Of its figure and limit."""
    limit: Limit
    """The default."""
    family: Family
    can_be_off: bool = True
    """False: what it finds leaves nothing to go on with, whatever the configuration says."""


def _table(*guards: Guard) -> dict[str, Guard]:
    return {guard.name: guard for guard in guards}


GUARDS: dict[str, Guard] = _table(
    Guard("kl", "KL of the policy to the reference", "nats a token", Limit(0.5, "halt"), "drift"),
    Guard(
        "kl_slope",
        "the KL that the last 10 steps lead to, by a line within 20 more or by doubling within 10, against what kl allows",
        "times what is allowed",
        Limit(1.0, "warn"),
        "drift",
    ),
    Guard("finite", "loss, gradient, KL and log-probabilities are numbers", "updates that are none", Limit(1.0, "halt"), "drift", False),
    Guard(
        "entropy_collapse",
        "entropy of the policy: the first steps' over the last ones'",
        "times lower",
        Limit(4.0, "warn"),
        "drift",
    ),
    Guard(
        "reward_spread_collapse",
        "spread of the rewards within a group, while the reward is not high: the first steps' over the last ones', beyond chance",
        "times lower",
        Limit(4.0, "warn"),
        "drift",
    ),
    Guard(
        "flat_groups",
        "groups whose tries all scored the same, while the reward is not high, over the last steps",
        "share of groups",
        Limit(0.85, "warn"),
        "drift",
    ),
    Guard("token_inflation", "tokens that a try writes: the last steps' over the first ones'", "times more", Limit(3.0, "warn"), "process"),
    Guard(
        "token_collapse", "tokens that a try writes: the first steps' over the last ones'", "times fewer", Limit(10.0, "warn"), "process"
    ),
    Guard(
        "call_inflation",
        "calls of a try: the last steps' over the first ones', or four fifths of what the first left of task.limits.max_tool_calls",
        "times more",
        Limit(2.0, "warn"),
        "process",
    ),
    Guard("call_collapse", "calls of a try: the first steps' over the last ones'", "times fewer", Limit(8.0, "warn"), "process"),
    Guard(
        "early_stop",
        "tries that answer without any call: the last steps' share less the first ones'",
        "share of tries",
        Limit(0.5, "warn"),
        "process",
    ),
    Guard(
        "tool_spam",
        "calls that repeat an earlier one of their try: the last steps' share less the first ones'",
        "share of calls",
        Limit(0.25, "warn"),
        "process",
    ),
    Guard(
        "bad_calls",
        "calls that tools refuse for their arguments or name: the last steps' share less the first ones', by rows, beyond chance",
        "share of calls",
        Limit(0.25, "warn"),
        "process",
    ),
    Guard(
        "unanswered",
        "tries without an answer (malformed, or out of budget): the last steps' share less the first ones'",
        "share of tries",
        Limit(0.25, "warn"),
        "process",
    ),
    Guard(
        "infra",
        "tool calls that infrastructure failed, after retries, beyond what chance explains",
        "share of calls",
        Limit(0.01, "stop"),
        "infra",
    ),
    Guard(
        "infra_tool", "the same of one tool by itself, which many good calls to others hide", "share of calls", Limit(0.01, "warn"), "infra"
    ),
    Guard("judge_failures", "gradings that gave no score, beyond what chance explains", "share of gradings", Limit(0.01, "stop"), "infra"),
    Guard(
        "model_failures", "turns that the model server failed, beyond what chance explains", "share of turns", Limit(0.01, "stop"), "infra"
    ),
    Guard("nothing_left", "steps of which infrastructure failed every rollout", "steps", Limit(1.0, "stop"), "infra", False),
    Guard(
        "unsafe",
        "tries that call what a policy denies, or give away a secret: their share less the first steps', beyond chance",
        "share of tries",
        Limit(0.02, "stop"),
        "safety",
    ),
    Guard(
        "holdout_divergence",
        "how much further the training grader rose on the validation rows than one that training never sees, and that did not follow",
        "reward",
        Limit(0.1, "stop"),
        "hacking",
    ),
    Guard(
        "train_val_gap",
        "what training earns less what validation earns, less the same at the start, beyond what chance explains",
        "reward",
        Limit(0.15, "warn"),
        "hacking",
    ),
    Guard(
        "reward_fall",
        "validation's reward, surely (99.9%) and row by row, below that of the run's best validation",
        "reward",
        Limit(0.1, "warn"),
        "drift",
    ),
    Guard(
        "above_ceiling",
        "validation's reward, surely (99.9%), less what a person reaches (guards.human_ceiling)",
        "reward",
        Limit(0.0, "stop"),
        "hacking",
    ),
    Guard(
        "lucky_guess",
        "rows that were paid for without a required tool or any sight of the evidence, less such rows at first",
        "share of rows",
        Limit(0.1, "stop"),
        "hacking",
    ),
    Guard(
        "copied_answer",
        "rows that were paid for an answer out of the prompt, or with the grader's own words, less such rows at first",
        "share of rows",
        Limit(0.1, "warn"),
        "hacking",
    ),
    Guard(
        "identical_answers",
        "rows that were paid for the answer of a row with another reference, less such rows at first",
        "share of rows",
        Limit(0.1, "stop"),
        "hacking",
    ),
    Guard(
        "shortening",
        "of the tokens that a try wrote at first, what is gone, while the reward rose",
        "share of tokens",
        Limit(0.9, "stop"),
        "hacking",
    ),
    Guard(
        "lengthening_without_calls",
        "tokens that a try writes over those at first, while the reward rose and calls did not",
        "times more",
        Limit(2.0, "warn"),
        "hacking",
    ),
    Guard(
        "distribution",
        "before training: sides (slices, length, vocabulary, embedding) in which training, validation and production differ",
        "sides",
        Limit(1.0, "warn"),
        "drift",
    ),
    Guard(
        "leaked_row", "validation rows that training asks too, in the same or nearly the same words", "rows", Limit(0.0, "warn"), "hacking"
    ),
)


def limit_of(name: str, watch: Mapping[str, Limit]) -> Limit:
    """The guard's own, unless the configuration says otherwise."""
    return watch.get(name) or GUARDS[name].limit


def watched(limits: GuardLimits) -> dict[str, Limit]:
    """What a run watches otherwise than by default: guards.max_kl and guards.max_infra_rate are limits too, with names of their own."""
    own = {"kl": limits.max_kl} | dict.fromkeys(("infra", "infra_tool", "judge_failures", "model_failures"), limits.max_infra_rate)
    return {name: Limit(at, GUARDS[name].limit.action) for name, at in own.items()} | limits.watch


def finding_of(name: str, step: int, limit: Limit, found: Suspicion) -> Finding:
    return Finding(
        guard=name,
        step=step,
        figure=found.figure,
        limit=limit.at if found.limit is None else found.limit,
        action=limit.action,
        what=found.what,
        cure=found.cure,
        rollouts=tuple(found.rollouts[:SHOWN]),
    )
