"""What went wrong in the tries that did not solve their row, by kind: what to mend first is the longest bar."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.tries import score_of

ROUNDING = 1e-9
SHOWN = 60
"""Characters of a kind's name."""
MOST = 8
"""Kinds by name; what is rarer is counted together."""
OTHERS = "other kinds"
FIGURE, QUOTED = re.compile(r"\d+(\.\d+)?"), re.compile(r": ['\"{].*", re.DOTALL)


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    tries: int
    solved: int
    kinds: dict[str, int]
    """Tries by what went wrong, the most frequent first; with those that are solved they are all of them."""


def failures(graded: Sequence[GradedRollout], pass_at: float = 1.0) -> Failures:
    kinds = Counter(_kind(one) for one in graded if not _solved(one, pass_at))
    named, rare = kinds.most_common()[:MOST], kinds.most_common()[MOST:]
    shown = dict(named) | ({OTHERS: sum(count for _, count in rare)} if rare else {})
    return Failures(tries=len(graded), solved=len(graded) - kinds.total(), kinds=shown)


def _solved(one: GradedRollout, pass_at: float) -> bool:
    reward = score_of(one)
    return reward is not None and reward >= pass_at - ROUNDING


def _kind(one: GradedRollout) -> str:
    rollout = one.rollout
    if one.infra_failed or one.reward is None:
        return f"infrastructure: {rollout.failed_part or 'the grader gave no score'}"[:SHOWN]
    if rollout.ending is not Ending.ANSWERED:
        ending = rollout.ending.value.replace("_", " ") if rollout.ending else "not ended"
        return f"{ending}: {_alike(rollout.reason)}"[:SHOWN]
    why = one.grade.parts.get("why") if one.grade else None
    said = why if isinstance(why, str) and why else ("partly right" if one.reward > ROUNDING else "wrong")
    return f"answered: {said}"[:SHOWN]


def _alike(reason: str) -> str:
    """Without the figures and the model's own words, by which each try would be a kind of its own."""
    return FIGURE.sub("…", QUOTED.sub("", reason))
