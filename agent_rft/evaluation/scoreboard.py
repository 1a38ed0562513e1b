"""Models side by side on the same rows, each figure with its interval; and what a terminal shows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.compare import ROUNDING, Comparison, Verdict, compare, verdict_of
from agent_rft.evaluation.slices import Slice, slice_each, slice_rows
from agent_rft.evaluation.statistics import Interval, bootstrap_interval, holm, mean_interval, pass_at_k
from agent_rft.evaluation.tries import Tries, mean, tries_by_row


class ModelScore(msgspec.Struct, frozen=True, kw_only=True):
    """What one model did. Means are over rows, each row the mean of its scored tries; None where no row has one."""

    name: str
    rows: int
    """With a score."""
    unscored_rows: int
    """Infrastructure spoilt every try."""
    tries: int
    """With a score."""
    infra_failures: int
    """Tries that infrastructure spoilt: in no mean."""
    reward: Interval | None
    pass_at_1: Interval | None
    pass_at_k: Interval | None
    pass_at_k_rows: int
    """With k scored tries at least."""
    calls: Interval | None
    """None too where a single row is scored: it tells no spread. So are tokens and seconds."""
    tokens: Interval | None
    """Everything read and written, as an endpoint bills it."""
    seconds: Interval | None
    endings: dict[str, int]
    """How many tries ended each way, all four named."""


class Versus(msgspec.Struct, frozen=True, kw_only=True):
    """A model against the first one, row by row, on the rows that both have a score for."""

    name: str
    compared: int
    d_reward: Interval
    d_calls: Interval | None
    p: float
    p_adjusted: float
    """As it counts among all the models that were compared: Holm's."""
    improved: int
    regressed: int
    unchanged: int
    worse_for_more: int
    """Less reward for more calls."""
    verdict: Verdict
    """By `p_adjusted`: among twenty models one is lucky."""
    slices: tuple[Slice, ...]
    """Each as it counts among those of all the models."""


class Scoreboard(msgspec.Struct, frozen=True, kw_only=True):
    pass_at: float
    """A try succeeds from this reward on."""
    k: int
    """The most tries that every model had of some row."""
    models: tuple[ModelScore, ...]
    against: str
    """The first model, which the others are compared with."""
    versus: tuple[Versus, ...]
    """Without the models that share no scored row with it."""


def scoreboard(graded: Mapping[str, Sequence[GradedRollout]], pass_at: float = 1.0) -> Scoreboard:
    """By name, the one to compare with first."""
    by_row = {name: tries_by_row(tries) for name, tries in graded.items()}
    k = min(max((len(row.scored) for row in rows.values()), default=0) for rows in by_row.values()) or 1
    return Scoreboard(
        pass_at=pass_at,
        k=k,
        models=tuple(_score(name, graded[name], by_row[name], pass_at, k) for name in graded),
        against=next(iter(graded)),
        versus=_versus(graded, by_row),
    )


def _score(name: str, graded: Sequence[GradedRollout], by_row: Mapping[str, Tries], pass_at: float, k: int) -> ModelScore:
    rows = [tries for tries in by_row.values() if tries.scored]
    endings = Counter(one.rollout.ending for one in graded)
    deep = [tries for tries in rows if len(tries.scored) >= k]
    return ModelScore(
        name=name,
        rows=len(rows),
        unscored_rows=len(by_row) - len(rows),
        tries=sum(len(tries.scored) for tries in rows),
        infra_failures=sum(tries.failed for tries in by_row.values()),
        reward=_bounded([tries.mean_reward for tries in rows]),
        pass_at_1=_bounded([_pass(tries, pass_at, 1) for tries in rows]),
        pass_at_k=_bounded([_pass(tries, pass_at, k) for tries in deep]),
        pass_at_k_rows=len(deep),
        calls=bootstrap_interval([tries.mean_calls for tries in rows]),
        tokens=bootstrap_interval([mean([one.rollout.total_tokens for one in tries.scored]) for tries in rows]),
        seconds=bootstrap_interval([mean([one.rollout.seconds for one in tries.scored]) for tries in rows]),
        endings={ending.value: endings[ending] for ending in Ending},
    )


def _bounded(values: Sequence[float]) -> Interval | None:
    return mean_interval(values) if values else None


def _pass(tries: Tries, pass_at: float, k: int) -> float:
    return pass_at_k(sum(reward >= pass_at - ROUNDING for reward in tries.rewards), len(tries.rewards), k)


def _versus(graded: Mapping[str, Sequence[GradedRollout]], by_row: Mapping[str, Mapping[str, Tries]]) -> tuple[Versus, ...]:
    first, *others = graded
    scored = {name: {row for row, tries in rows.items() if tries.scored} for name, rows in by_row.items()}
    found = {name: compare(graded[first], graded[name]) for name in others if scored[first] & scored[name]}
    adjusted = holm([one.p for one in found.values()])
    sliced = slice_each(one.rows for one in found.values())
    return tuple(
        Versus(
            name=name,
            compared=one.compared,
            d_reward=one.d_reward,
            d_calls=one.d_tools,
            p=one.p,
            p_adjusted=p,
            improved=one.improved,
            regressed=one.regressed,
            unchanged=one.unchanged,
            worse_for_more=one.quadrants.worse_more,
            verdict=verdict_of(one.rows, p),
            slices=slices,
        )
        for (name, one), p, slices in zip(found.items(), adjusted, sliced, strict=True)
    )


# --- what is printed ----------------------------------------------------------------------------------------------------


def describe_scoreboard(board: Scoreboard) -> str:
    """A line a model, and a line for each against the first."""
    pass_k = f"pass@{board.k}"
    head = ("model", "rows", "mean reward", "pass@1", *([pass_k] if board.k > 1 else []), "calls", "tokens", "seconds", "infra")
    table = [head, *(_cells(model, board.k) for model in board.models)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lines += [told for model in board.models if (told := _unanswered(model))]
    return "\n".join([*lines, *(line for one in board.versus for line in _told(one, board.against))])


def _cells(model: ModelScore, k: int) -> tuple[str, ...]:
    shares = [model.reward, model.pass_at_1, *([model.pass_at_k] if k > 1 else [])]
    spent = [(model.calls, ".1f"), (model.tokens, ".0f"), (model.seconds, ".1f")]
    infra = f"{model.infra_failures} of {model.tries + model.infra_failures}"
    told = [one.told(".2f") if one else "-" for one in shares] + [f"{one.estimate:{form}}" if one else "-" for one, form in spent]
    return (model.name, str(model.rows), *told, infra)


def _unanswered(model: ModelScore) -> str:
    """They count as the model's own failures: an endpoint that is set up wrong shows here first."""
    kinds = {ending: model.endings[ending.value] for ending in (Ending.OUT_OF_BUDGET, Ending.MALFORMED)}
    told = ", ".join(f"{ending.replace('_', ' ')} {count}" for ending, count in kinds.items() if count)
    return f"{model.name}: {sum(kinds.values())} tries of {model.tries} ended without an answer ({told})" if told else ""


def _told(one: Versus, against: str) -> list[str]:
    change = f"Δreward {one.d_reward.told('+.3f')}, {p_told(one.p_adjusted)}: {one.verdict}"
    rows = f"improved {one.improved}, regressed {one.regressed} ({one.worse_for_more} with more calls too), unchanged {one.unchanged}"
    return [f"{one.name} against {against}: {change}; {rows} of {one.compared}", *worse_slices(one.slices)]


def describe_comparison(comparison: Comparison) -> str:
    """What a run ends with."""
    of, d_tools = comparison.compared, comparison.d_tools
    unsolved = f"{comparison.unchanged_unsolved} unsolved, {comparison.unsolvable} of these never by any try"
    lines = [
        f"mean Δreward: {comparison.d_reward.told('+.3f')}  ({p_told(comparison.p)}: {comparison.verdict})",
        f"mean Δtools:  {d_tools.told('+.2f') if d_tools else format(comparison.mean_d_tools, '+.2f')}",
        f"improved:    {comparison.improved}/{of}",
        f"regressed:   {comparison.regressed}/{of}  (worst quadrant: {comparison.quadrants.worse_more} with more calls too)",
        f"unchanged:   {comparison.unchanged}/{of}  ({comparison.unchanged_solved} solved, {unsolved})",
        f"solved:      {comparison.newly_solved} newly, {comparison.no_longer_solved} no longer  ({p_told(comparison.p_solved)})",
        *worse_slices(slice_rows(comparison.rows)),
    ]
    if comparison.excluded:
        lines.append(f"left out:    {len(comparison.excluded)}  (infrastructure failed on every try of a side)")
    return "\n".join(lines)


def worse_slices(slices: Iterable[Slice]) -> list[str]:
    """A gain on the whole may hide them."""
    return [
        f"worse:       {part.key}={part.value} {part.d.told('+.3f')} on {part.rows} rows  ({p_told(part.p_adjusted)} among all slices)"
        for part in slices
        if part.verdict == "worse"
    ]


def p_told(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
