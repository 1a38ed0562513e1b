"""What a step's rollouts look like, as the figures that guards and reports compare. Rollouts that infrastructure failed are in none but
those about infrastructure."""

from __future__ import annotations

import json
import math
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.letters import plain
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import Ending, Rollout
from agent_rft.contracts.training import LeaksIn
from agent_rft.release.violations import Watch, violations_of

SAFETY = Watch()


def step_figures(done: Sequence[GradedRollout], leaks_in: LeaksIn | None = None) -> dict[str, float]:
    """By name. A figure that nothing can be said of (no call was made, nothing was graded, nobody looks for leaks) is not there."""
    counted = [graded for graded in done if not graded.infra_failed]
    return _infrastructure(done) | (_behaviour(counted) | _safety(counted, leaks_in) if counted else {})


def _behaviour(done: Sequence[GradedRollout]) -> dict[str, float]:
    rollouts, tries = [graded.rollout for graded in done], len(done)
    calls = sum(rollout.tool_calls for rollout in rollouts)
    parallel = sum(len(turn.calls) for rollout in rollouts for turn in rollout.turns if len(turn.calls) > 1)
    figures = {
        "tries": float(tries),
        "tokens_a_try": sum(rollout.sampled_tokens for rollout in rollouts) / tries,
        "calls_a_try": calls / tries,
        "calls_allowed": statistics.fmean(rollout.limits.max_tool_calls for rollout in rollouts),
        "turns_a_try": sum(len(rollout.turns) for rollout in rollouts) / tries,
        "early_stop": _share(rollout.ending is Ending.ANSWERED and not rollout.tool_calls for rollout in rollouts),
        "out_of_budget": _share(rollout.ending is Ending.OUT_OF_BUDGET for rollout in rollouts),
        "malformed": _share(rollout.ending is Ending.MALFORMED for rollout in rollouts),
        "unanswered": _share(not rollout.answer.strip() for rollout in rollouts),
    }
    if calls:
        used = Counter(call.name for rollout in rollouts for turn in rollout.turns for call in turn.calls)
        figures |= {"parallel_share": parallel / calls, "repeated_calls": sum(map(repeated_calls, rollouts)) / calls}
        figures |= {f"calls.{tool}": made / tries for tool, made in sorted(used.items())}
        figures |= {"bad_calls": sum(map(bad_calls, rollouts)) / calls} | _added_up("bad_calls", _bad_by_row(done))
    if spreads := [statistics.pstdev(rewards) for rewards in _by_row(done) if len(rewards) > 1]:
        figures |= {"reward_spread": statistics.fmean(spreads)} | _added_up("reward_spread", spreads)
    return figures


def _bad_by_row(done: Sequence[GradedRollout]) -> list[float]:
    """Of each row the share of bad calls in those of its tries that call: what one try does over and over is one case."""
    shares = defaultdict[str, list[float]](list)
    for one in done:
        if one.rollout.tool_calls:
            shares[one.row.id].append(bad_calls(one.rollout) / one.rollout.tool_calls)
    return [statistics.fmean(of_row) for of_row in shares.values()]


def _added_up(name: str, values: Sequence[float]) -> dict[str, float]:
    """What tells the mean of several steps' values, and how far they lie apart."""
    return {
        f"{name}_cases": float(len(values)),
        f"{name}_sum": math.fsum(values),
        f"{name}_squares": math.fsum(value * value for value in values),
    }


def _safety(done: Sequence[GradedRollout], leaks_in: LeaksIn | None) -> dict[str, float]:
    leaks = [leaks_in(one.rollout) if leaks_in else () for one in done]
    by_row = defaultdict[str, list[bool]](list)
    for one, leaked in zip(done, leaks, strict=True):
        by_row[one.row.id].append(unsafe(one.rollout, leaked))
    shares = [statistics.fmean(row) for row in by_row.values()]
    figures = {"unsafe": sum(map(sum, by_row.values())) / len(done), "rows": float(len(shares))}
    figures |= {"unsafe_rows": math.fsum(shares), "unsafe_squares": math.fsum(share * share for share in shares)}
    return figures | ({"leaked": _share(map(bool, leaks))} if leaks_in else {})


def _infrastructure(done: Sequence[GradedRollout]) -> dict[str, float]:
    failed = Counter(graded.rollout.failed_part for graded in done if graded.infra_failed)
    calls = Counter(call.name for graded in done for turn in graded.rollout.turns for call in turn.calls)
    unscored = sum(times for part, times in failed.items() if part.startswith("grader:"))
    graded = unscored + sum(one.grade is not None for one in done if not one.infra_failed)
    judged = {"judge_failures": unscored / graded} if graded else {}
    return judged | {f"infra.{tool}": failed[f"tool:{tool}"] / made for tool, made in sorted(calls.items())}


def bad_calls(rollout: Rollout) -> int:
    """Calls that a tool refused for what was asked: arguments that it cannot take, a name that no tool has."""
    return sum(result.error == "model_error" for turn in rollout.turns for result in turn.results.values())


def repeated_calls(rollout: Rollout) -> int:
    """Calls that say again what the same try has asked before, in other case, with other blanks or signs that nobody sees too."""
    said = [_said(call) for turn in rollout.turns for call in turn.calls]
    return len(said) - len(set(said))


def folded(text: str) -> str:
    """As it is told from another: without capitals, letters that look alike, signs that nobody sees, and of blanks the first."""
    seen = text if text.isascii() else "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return " ".join(plain(seen).split())


def unsafe(rollout: Rollout, leaks: Sequence[str] = ()) -> bool:
    """It did what no agent may: called what a policy denies it, or gave a secret away."""
    return bool(violations_of(rollout, leaks, (), SAFETY))


def _said(call: ToolCall) -> str:
    try:
        return f"{call.name} {json.dumps(_folded(call.arguments), sort_keys=True)}"
    except RecursionError:  # a thousand brackets: like no other
        return f"{call.name} {call.call_id}"


def _folded(value: object) -> object:
    if isinstance(value, str):
        return folded(value)
    if isinstance(value, dict):
        return {key: _folded(held) for key, held in value.items()}
    return [_folded(held) for held in value] if isinstance(value, list | tuple) else value


def _by_row(done: Sequence[GradedRollout]) -> Iterable[list[float]]:
    rewards = defaultdict[str, list[float]](list)
    for graded in done:
        if graded.reward is not None:
            rewards[graded.row.id].append(graded.reward)
    return rewards.values()


def _share(answers: Iterable[bool]) -> float:
    return statistics.fmean(answers)
