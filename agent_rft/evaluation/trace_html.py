"""One try as a story in HTML: what was asked, called, answered, and what it was worth. All of it came from outside: all is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import ToolResult, Turn
from agent_rft.evaluation.compare import sign
from agent_rft.evaluation.tries import score_of

LONGEST = 700
"""Characters of one output that are shown; the job card holds the rest."""


def telling_tries(base: Sequence[GradedRollout], tuned: Sequence[GradedRollout], d_reward: float) -> tuple[GradedRollout, GradedRollout]:
    """The try of each side that shows the change best: for a row that got worse, base's best and tuned's worst. Scored tries only."""
    way = sign(d_reward)
    return _extreme(base, -way), _extreme(tuned, way)


def _extreme(tries: Sequence[GradedRollout], way: int) -> GradedRollout:
    """The best try (way 1), the worst (-1) or the first (0); the first of several that are alike."""
    return max(tries, key=lambda one: way * (score_of(one) or 0.0))


def trace_html(title: str, graded: GradedRollout, of_tries: int) -> str:
    rollout = graded.rollout
    reward = score_of(graded)
    said = f"{reward:.2f}" if reward is not None else "no score"
    head = f"<h4>{escape(title)}: reward {said} <small>try {graded.sample_index + 1} of {of_tries}, {rollout.tool_calls} calls</small></h4>"
    ending = f"{rollout.ending.value}: {rollout.reason}" if rollout.ending else "not ended"
    foot = f'<p class="ending">{escape(ending)}{_grade_words(graded)}<br><code>{escape(rollout.rollout_id)}</code></p>'
    return f'<section class="trace">{head}<ol>{"".join(_turn(turn) for turn in rollout.turns)}</ol>{foot}</section>'


def _grade_words(graded: GradedRollout) -> str:
    grade = graded.grade
    if grade is None:
        return ""
    why = f" {json.dumps({**grade.parts, **grade.errors}, default=str, ensure_ascii=False)}" if grade.parts or grade.errors else ""
    return f"<br>{escape(f'{grade.grader.name} {grade.grader.version}:{why}' if why else f'{grade.grader.name} {grade.grader.version}')}"


def _turn(turn: Turn) -> str:
    """A turn's words, without the calls that are shown as calls, then each call with what it returned."""
    words = turn.text.split("<tool_call>")[0].strip() if turn.calls else turn.text.strip()
    said = f'<li class="said">{escape(shortened(words))}</li>' if words or not turn.calls else ""
    return said + "".join(_call(call, turn.results.get(call.call_id)) for call in turn.calls)


def _call(call: ToolCall, result: ToolResult | None) -> str:
    asked = f"→ {call.name}({json.dumps(call.arguments, default=str, ensure_ascii=False)})"
    error = f"{result.error}: " if result and result.error else ""
    came = f"← {error}{shortened(result.output)}" if result else "← nothing came back"
    kind = "returned failed" if error or not result else "returned"
    return f'<li class="called">{escape(shortened(asked))}</li><li class="{kind}">{escape(came)}</li>'


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
