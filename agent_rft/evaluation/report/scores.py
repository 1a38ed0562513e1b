"""The scoreboard: each model's figures with their intervals, and each against the first one."""

from __future__ import annotations

from html import escape

from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.report.compared import MOVES, kind_of
from agent_rft.evaluation.report.html import figure, number, section, signless, soft, table
from agent_rft.evaluation.scoreboard import ModelScore, Scoreboard, Versus, p_told
from agent_rft.evaluation.statistics import Interval
from agent_rft.evaluation.svg import whisker_svg


def scores(board: Scoreboard | None) -> str:
    if board is None:
        return ""
    against = {one.name: one for one in board.versus}
    shares = ["mean reward", "", "pass@1", *([f"pass@{board.k}"] if board.k > 1 else [])]
    names = ("model", "rows", "tries", *shares, "calls", "tokens", "seconds", "infra")
    rows = [_line(one, against.get(one.name), board.k) for one in board.models]
    drawn = figure(scores_title(board), table(names, rows, "drawn") + _changes(board) + _endings(board))
    note = soft(f"A try passes from a reward of {board.pass_at:g} on. Intervals are 95%, over rows: a row's tries share its question.")
    return section("scores", "Scoreboard", drawn + note)


def scores_title(board: Scoreboard) -> str:
    """The best of those that are better for sure; else what the first one is beaten by."""
    better = [one for one in board.versus if one.verdict == "better"]
    worse = [one for one in board.versus if one.verdict == "worse"]
    if better:
        best = max(better, key=lambda one: one.d_reward.estimate)
        return f"{best.name} is better than {board.against} by {signless(f'{best.d_reward.estimate:.2f}')} ({p_told(best.p_adjusted)})"
    if worse:
        return f"{', '.join(one.name for one in worse)}: worse than {board.against}"
    if board.versus:
        return f"Nothing is clearly better or worse than {board.against}"
    reward = board.models[0].reward
    return (
        f"{board.against} earns {reward.estimate:.2f} a try; nothing to compare it with" if reward else f"{board.against} has no scored try"
    )


def _line(model: ModelScore, versus: Versus | None, k: int) -> tuple[str, ...]:
    kind = kind_of(versus.verdict) if versus else "same"
    reward = model.reward
    drawn = whisker_svg(reward.low, reward.estimate, reward.high, (0.0, 1.0), kind) if reward else ""
    shares = [_with_interval(model.pass_at_1, ".2f"), *([_with_interval(model.pass_at_k, ".2f")] if k > 1 else [])]
    spent = [(model.calls, ".1f"), (model.tokens, ",.0f"), (model.seconds, ".1f")]
    return (
        f"<b>{escape(model.name)}</b>",
        f"{model.rows:,}",
        f"{model.tries:,}",
        _with_interval(reward, ".2f"),
        drawn,
        *shares,
        *(number(one.estimate if one else None, form) for one, form in spent),
        f"{model.infra_failures:,}",
    )


def _with_interval(one: Interval | None, form: str) -> str:
    if one is None:
        return number(None, form)
    return f"<b>{one.estimate:{form}}</b> <small>{one.low:{form}} to {one.high:{form}}</small>"


def _changes(board: Scoreboard) -> str:
    names = (
        "against " + board.against,
        "rows",
        "change in reward",
        "p",
        "verdict",
        "improved",
        "regressed",
        "worse for more calls",
        "unchanged",
    )
    rows = [
        (
            f"<b>{escape(one.name)}</b>",
            f"{one.compared:,}",
            signless(f"{one.d_reward.estimate:+.3f}")
            + f" <small>{signless(f'{one.d_reward.low:+.3f} to {one.d_reward.high:+.3f}')}</small>",
            escape(p_told(one.p_adjusted).removeprefix("p ").removeprefix("= ")),
            f'<span class="{MOVES[kind_of(one.verdict)]}">{escape(one.verdict)}</span>',
            str(one.improved),
            str(one.regressed),
            str(one.worse_for_more),
            str(one.unchanged),
        )
        for one in board.versus
    ]
    return table(names, rows) if rows else ""


def _endings(board: Scoreboard) -> str:
    rows = [
        (escape(ending.value.replace("_", " ")), *(f"{model.endings.get(ending.value, 0):,}" for model in board.models))
        for ending in Ending
    ]
    opened = table(("ending", *(model.name for model in board.models)), rows, "models")
    return f"<details><summary>How the tries ended</summary>{opened}</details>"
