"""Models side by side on the same rows, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from agent_rft.contracts.graded import GradedRollout
from agent_rft.evaluation.failures import failures
from agent_rft.evaluation.report.compared import FIRST_AND_THIS, slices
from agent_rft.evaluation.report.html import section
from agent_rft.evaluation.report.page import document
from agent_rft.evaluation.report.scores import scores, scores_title
from agent_rft.evaluation.report.tools import failed, tools
from agent_rft.evaluation.scoreboard import Scoreboard, Versus
from agent_rft.evaluation.tool_use import tool_use


def render_suite(name: str, board: Scoreboard, graded: Mapping[str, Sequence[GradedRollout]]) -> str:
    uses = {model: use for model, side in graded.items() if (use := tool_use(side))}
    wrong = {model: failures(side, board.pass_at) for model, side in graded.items() if side}
    head = f'<header><p class="soft">{escape(name)}</p><h1>{escape(scores_title(board))}</h1></header>'
    kinds = "".join(_kinds(one, board.against) for one in board.versus)
    return document(name, f"{head}{scores(board)}{kinds}{tools(uses)}{failed(wrong)}")


def _kinds(one: Versus, against: str) -> str:
    place = f"slices-of-{one.name}"
    return section(escape(place), f"{one.name} against {against}, by kind of row", slices(one.slices, one.compared, FIRST_AND_THIS))
