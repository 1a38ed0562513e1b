"""A manager's minute: the verdict, three numbers, the next step, and what guards said."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from agent_rft.contracts.guards import ACTIONS, ENDING, Action
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import Comparison
from agent_rft.evaluation.figures import from_to, held_out, series_of
from agent_rft.evaluation.prior import PriorCheck
from agent_rft.evaluation.report.contents import RunReport
from agent_rft.evaluation.report.html import number, section, signless, soft, table
from agent_rft.evaluation.svg import split_svg

_ENDED = {"stop": "Stopped", "halt": "Halted"}


class Tile(msgspec.Struct, frozen=True):
    about: str
    figure: str
    more: str
    drawing: str = ""


def headline(report: RunReport) -> str:
    """The run in a sentence."""
    comparison = report.comparison
    if report.halted:
        return f"{ended(report)} at step {_last_step(report)}: {report.halted}"
    if comparison is None and report.prior and not report.metrics:
        return f"Prior check: {report.prior.verdict}"
    if comparison is None and not report.metrics:
        return "Not trained yet"
    if comparison is None:
        return f"Trained up to step {_last_step(report)}, not yet compared with the base"
    reward = f"reward {comparison.base_reward:.2f} → {comparison.tuned_reward:.2f}"
    calls = f"tool calls {comparison.base_calls:.1f} → {comparison.tuned_calls:.1f}"
    return f"{comparison.verdict.capitalize()}: {reward}, {calls}"


def _last_step(report: RunReport) -> int:
    return report.metrics[-1].step if report.metrics else 0


def ended(report: RunReport) -> str:
    """Whether the guard that ended it keeps the weights (stop) or not (halt)."""
    actions = [one.action for line in report.metrics[-1:] for one in line.findings if one.action in ENDING]
    return _ENDED[actions[0]] if actions else "Halted"


def head(report: RunReport) -> str:
    where = f"{report.recipe} · {report.run_id} · {moment(report.finished_at)}"
    where += f" · {report.seconds / 60:.1f} minutes" if report.seconds else ""
    said = f'<p class="next{" halted" if report.halted else ""}">{escape(report.next_step)}</p>' if report.next_step else ""
    tiles = "".join(_tile(one) for one in _tiles(report))
    top = f'<p class="soft">{escape(where)}</p><h1>{escape(headline(report))}</h1>'
    below = "".join(part(report) for part in (_regraded, _ended_before, _quiet, _release))
    return f'<header>{top}<div class="tiles">{tiles}</div>{said}{below}</header>'


def _regraded(report: RunReport) -> str:
    """The figures of a page stay those that its run was judged by; who reads them has to know that the grader was mended since."""
    return f'<p class="next">{escape(report.regraded)}</p>' if report.regraded else ""


def _ended_before(report: RunReport) -> str:
    """A run that went on looks like any other, and whoever trusts in it has to know that a guard had ended it."""
    ended = [[one for one in line.findings if one.action in ENDING][:1] for line in report.every_line if line not in report.metrics[-1:]]
    said = [f"{_ENDED[one.action]} at step {one.step} by {_name(one.guard)}: {one.what}. It went on." for [one] in filter(None, ended)]
    return "".join(map(soft, said))


def _quiet(report: RunReport) -> str:
    """What one would otherwise wonder about."""
    if not report.metrics:
        return ""
    lost, rollouts = (sum(getattr(line, name) for line in report.metrics) for name in ("infra_failures", "rollouts"))
    silent = "" if spoken(report.every_line) else f"No guard spoke up to step {_last_step(report)}. "
    if off := [_name(guard) for guard, limit in report.watched.limits.items() if limit.action == "off"]:
        silent += f"Switched off, so that nobody looked: {', '.join(off)}. "
    left_out = f"{lost:,} of {rollouts:,} rollouts of the training were lost to infrastructure; they are in no figure."
    return soft(silent + (left_out if lost else f"No rollout of {rollouts:,} was lost to infrastructure."))


def _release(report: RunReport) -> str:
    """What a reader who is to decide would take a good figure for."""
    if report.comparison is None:
        return ""
    chosen = f"It was evaluated {report.rounds} times, and the newest is told. " if report.rounds > 1 else ""
    return soft(f"{chosen}A release takes more than this page: a safety report that passed, and a trial beside the live agent.")


def moment(at: str) -> str:
    """An ISO 8601 one in UTC, for people."""
    return f"{at[:10]} {at[11:16]} UTC"


def _tile(one: Tile) -> str:
    return f"<div><small>{escape(one.about)}</small><b>{escape(one.figure)}</b>{one.drawing}<small>{escape(one.more)}</small></div>"


def _tiles(report: RunReport) -> list[Tile]:
    tiles = _compared(report.comparison) if report.comparison else _on_the_way(report)
    return tiles[:3]


def _compared(found: Comparison) -> list[Tile]:
    reward, tools = found.d_reward, found.d_tools
    fewer = signless(f"{tools.estimate:+.2f}; 95% interval {tools.low:+.2f} to {tools.high:+.2f}") if tools else "of a single row"
    unsolved = found.unchanged_unsolved
    moved = [("better", found.improved), ("same", found.unchanged), ("worse", found.regressed)]
    held = f"{found.unchanged_solved} stayed solved, {unsolved} unsolved; worse with more calls: {found.quadrants.worse_more}"
    return [
        Tile(
            f"mean reward, {found.compared} held-out rows",
            f"{found.base_reward:.2f} → {found.tuned_reward:.2f}",
            signless(f"{reward.estimate:+.3f}; 95% interval {reward.low:+.3f} to {reward.high:+.3f}"),
        ),
        Tile(
            "tool calls a try",
            f"{found.base_calls:.1f} → {found.tuned_calls:.1f}",
            fewer,
        ),
        Tile("rows", f"{found.improved} better, {found.regressed} worse", held, split_svg(moved)),
    ]


def _on_the_way(report: RunReport) -> list[Tile]:
    """Of a run that has nothing to compare: how far it came, and what the base could do."""
    tiles: list[Tile] = []
    if (rewards := series_of("", report.metrics, lambda one: one.val_reward)).points:
        held = [from_to(f"under {one.name}", one, "{:.2f}") for one in held_out(report.metrics)]
        said = "one validation" if len(rewards.points) == 1 else f"over {len(rewards.points)} validations"
        tiles.append(Tile("validation reward", from_to("", rewards, "{:.2f}").strip(), "; ".join([said, *held])))
    if report.metrics:
        tiles.append(Tile("steps", str(_last_step(report)), f"{sum(line.rollouts for line in report.metrics):,} rollouts"))
    if report.prior:
        tiles.append(_prior(report.prior))
    return tiles


def _prior(check: PriorCheck) -> Tile:
    parts = [("never", check.never), ("sometimes", check.sometimes), ("always", check.always)]
    more = f"{check.never} never, {check.sometimes} sometimes, {check.always} always"
    return Tile("rows that the base solves sometimes", f"{check.share_sometimes:.0%}", more, split_svg(parts))


# --- guards -----------------------------------------------------------------------------------------------------------


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """All that one guard said in a run: many steps in a row mostly say the same."""

    guard: str
    action: Action
    """The hardest."""
    steps: tuple[int, ...]
    figure: float
    limit: float
    what: str
    """Of the last time, as are the figure and the cure."""
    cure: str
    rollouts: tuple[str, ...]


def spoken(metrics: Sequence[StepMetrics]) -> list[Spoken]:
    """The hardest action first, then the order in which they first spoke."""
    said: dict[str, Spoken] = {}
    for one in (finding for line in metrics for finding in line.findings):
        before = said.get(one.guard)
        harder = before is None or ACTIONS.index(one.action) > ACTIONS.index(before.action)
        said[one.guard] = Spoken(
            guard=one.guard,
            action=one.action if harder or before is None else before.action,
            steps=(*(before.steps if before else ()), one.step),
            figure=one.figure,
            limit=one.limit,
            what=one.what,
            cure=one.cure,
            rollouts=one.rollouts,
        )
    return sorted(said.values(), key=lambda one: -ACTIONS.index(one.action))


def guards(report: RunReport) -> str:
    """Where any spoke; that none did is said in the head."""
    found = spoken(report.every_line)
    if not found:
        return ""
    title = f"Guards: {len(found)} spoke" + ("" if len(found) > 1 else f", {_name(found[0].guard)}")
    rows = [
        (
            f"<b>{escape(_name(one.guard))}</b>",
            f'<span class="act {one.action}">{escape(_acted(one.action))}</span>',
            escape(_steps(one.steps)),
            escape(f"{number(one.figure, '.3g')} (from {number(one.limit, '.3g')})"),
            escape(one.what) + _look(one),
            escape(one.cure),
        )
        for one in found
    ]
    names = ("guard", "did", "steps", "figure (limit)", "what was seen", "what to do")
    return section("guards", title, table(names, rows, "words guards"))


def _look(one: Spoken) -> str:
    return f"<br><small>look at <code>{escape(', '.join(one.rollouts[:3]))}</code></small>" if one.rollouts else ""


def _name(guard: str) -> str:
    return guard.replace("_", " ")


def _acted(action: Action) -> str:
    return {"warn": "warned", "stop": "stopped it", "halt": "halted it", "off": "off"}[action]


def _steps(steps: Sequence[int]) -> str:
    if len(steps) == 1:
        return str(steps[0])
    return f"{steps[0]} to {steps[-1]}, {len(steps)} times"
