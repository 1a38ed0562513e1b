"""The next run's rows from the last run's results: weak slices weighted up, solved rows retired, unsolvable ones set aside. Pure.

How hard a slice is comes from an evaluation, on rows that training never saw. What becomes of a single training row comes from the
tries at that very row: nobody else's tell whether it has a lesson left. A row that was left out is not lost: what tries at it show
brings it back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.rows import Row
from agent_rft.datasets.split import Stratum, stratum_of
from agent_rft.evaluation.statistics import Interval, mean_interval
from agent_rft.evaluation.tries import mean, tries_by_row
from agent_rft.rollouts.seeds import derive_seed

COPY_OF = "copy_of"
"""The metadata key of a row that is there again, under an id of its own, so that a pass meets its question more often."""
HEAVIEST = 3.0
"""What a row of the weakest slice counts at most: one hard slice is not to crowd out the others."""
MOST_TIMES = 10
ONE_ERROR = 0.68
"""The level of an interval that reaches a standard error to either side."""
FEWEST_TRIES = 2
"""A row is called solved or unsolvable from so many tries on: one says little."""
ROUNDING = 1e-9

Fate = Literal["kept", "retired", "set aside"]


class Met(msgspec.Struct, frozen=True):
    """The scored tries at a training row."""

    newest: tuple[float, ...]
    """Of the last time it was met: what the model makes of it now."""
    ever: tuple[float, ...]
    """These among them."""


class LeftOut(msgspec.Struct, frozen=True):
    """Rows that an earlier curriculum kept from training."""

    retired: tuple[Row, ...] = ()
    set_aside: tuple[Row, ...] = ()


NOTHING_LEFT_OUT = LeftOut()


class Decision(msgspec.Struct, frozen=True):
    row_id: str
    fate: Fate
    times: int
    """How often a pass meets it."""
    why: str


class SliceWeight(msgspec.Struct, frozen=True, kw_only=True):
    task_type: str
    difficulty: str
    evaluated: int
    """Rows of the slice in the evaluation."""
    reward: Interval | None
    """None where the evaluation has no row of it; its weight is then 1."""
    weight: float
    kept: int
    copies: int
    retired: int
    set_aside: int


class Curriculum(msgspec.Struct, frozen=True, kw_only=True):
    train: tuple[Row, ...]
    """The kept rows in their order, then the copies."""
    retired: tuple[Row, ...]
    set_aside: tuple[Row, ...]
    mean_reward: float
    """Of the whole evaluation."""
    slices: tuple[SliceWeight, ...]
    decisions: tuple[Decision, ...]
    """One a row, copies counted in `times`."""


def curriculum(
    rows: Sequence[Row],
    evaluated: Sequence[GradedRollout],
    met: Mapping[str, Met],
    before: LeftOut = NOTHING_LEFT_OUT,
    *,
    pass_at: float = 1.0,
    heaviest: float = HEAVIEST,
    seed: int = 42,
) -> Curriculum:
    """Of the same input always the same. Copies that an earlier curriculum made are counted with their row and made anew."""
    if not 1.0 <= heaviest <= MOST_TIMES:
        raise UserError(f"a row cannot count {heaviest:g} times at most", f"a number from 1 to {MOST_TIMES}")
    trained = {row.id for row in rows}
    left_out: dict[str, Fate] = dict.fromkeys((row.id for row in before.set_aside), "set aside")
    left_out.update(dict.fromkeys((row.id for row in before.retired), "retired"))
    originals = [row for row in rows if COPY_OF not in row.metadata]
    originals += [row for row in (*before.retired, *before.set_aside) if row.id not in trained and COPY_OF not in row.metadata]
    fates = {row.id: _fate(met.get(row.id), pass_at, "kept" if row.id in trained else left_out[row.id]) for row in originals}
    kept = [row for row in originals if fates[row.id][0] == "kept"]
    if not kept:
        raise UserError("no row would be left: each is solved or was never solved", "add rows of middling difficulty")
    rewards = _rewards(evaluated)
    whole = mean([reward for of_slice in rewards.values() for reward in of_slice])
    weights = {stratum: _weight(of_slice, whole, heaviest) for stratum, of_slice in rewards.items()}
    times = _times(kept, weights, seed)
    return Curriculum(
        train=(*kept, *_copies(kept, times, {row.id for row in originals})),
        retired=tuple(row for row in originals if fates[row.id][0] == "retired"),
        set_aside=tuple(row for row in originals if fates[row.id][0] == "set aside"),
        mean_reward=whole,
        slices=_told(originals, fates, evaluated, rewards, weights, times),
        decisions=tuple(Decision(row.id, fates[row.id][0], times.get(row.id, 0), fates[row.id][1]) for row in originals),
    )


def _fate(met: Met | None, pass_at: float, before: Fate) -> tuple[Fate, str]:
    """A row that was left out stays so until a try at it says otherwise: one that had been solved and is not now, or the first that
    earns something."""
    if met is None or not met.ever:
        return before, "was not met" if before == "kept" else f"was {before} before, and not tried since"
    now, ever = (sum(reward >= pass_at - ROUNDING for reward in rewards) for rewards in (met.newest, met.ever))
    told = f"{ever} of {len(met.ever)} tries solved it, {now} of the newest {len(met.newest)}"
    if before != "kept":
        told += f"; was {before} before"
    if max(met.ever) <= ROUNDING and before != "retired" and (len(met.ever) >= FEWEST_TRIES or before == "set aside"):
        return "set aside", f"none of {len(met.ever)} tries earned anything: too hard as yet, or wrong"
    if now == len(met.newest) and (len(met.newest) >= FEWEST_TRIES or before == "retired"):
        return "retired", told
    return "kept", told


# --- weights ------------------------------------------------------------------------------------------------------------


def _rewards(evaluated: Iterable[GradedRollout]) -> dict[Stratum, list[float]]:
    """By slice, one a row."""
    by_stratum: dict[Stratum, list[float]] = {}
    for tries in tries_by_row(evaluated).values():
        if tries.scored:
            by_stratum.setdefault(stratum_of(tries.scored[0].row), []).append(tries.mean_reward)
    if not by_stratum:
        raise UserError("the evaluation has no score: infrastructure failed on every try", "mend it, then `make evaluate RUN=...` again")
    return by_stratum


def _weight(rewards: Sequence[float], whole: float, heaviest: float) -> float:
    """How many times the whole's shortfall the slice's is, from 1 to `heaviest`. The slice is given a standard error in its favour,
    so that a few unlucky rows weigh less than as poor a mean of many."""
    shortfall = 1.0 - whole
    favoured = mean_interval(rewards, ONE_ERROR).high
    return 1.0 if shortfall <= ROUNDING else min(heaviest, max(1.0, (1.0 - favoured) / shortfall))


def _times(kept: Iterable[Row], weights: Mapping[Stratum, float], seed: int) -> dict[str, int]:
    """Whole times that add up to a slice's weight: where it is 1.4, two rows of five are there twice, drawn by the seed."""
    parts: dict[Stratum, list[Row]] = {}
    for row in kept:
        parts.setdefault(stratum_of(row), []).append(row)
    times: dict[str, int] = {}
    for stratum, part in parts.items():
        whole, rest = divmod(weights.get(stratum, 1.0), 1.0)
        more = set(random.Random(derive_seed(seed, "curriculum", *stratum)).sample(range(len(part)), round(rest * len(part))))
        times |= {row.id: int(whole) + (at in more) for at, row in enumerate(part)}
    return times


def _copies(kept: Iterable[Row], times: Mapping[str, int], taken: Iterable[str]) -> list[Row]:
    """Each under an id that no row has."""
    ids, made = set(taken), list[Row]()
    for row in kept:
        for number in range(2, times[row.id] + 1):
            name = f"{row.id}~{number}"
            while name in ids:
                name += "~"
            ids.add(name)
            made.append(msgspec.structs.replace(row, id=name, metadata=row.metadata | {COPY_OF: row.id}))
    return made


def _told(
    originals: Sequence[Row],
    fates: Mapping[str, tuple[Fate, str]],
    evaluated: Sequence[GradedRollout],
    rewards: Mapping[Stratum, Sequence[float]],
    weights: Mapping[Stratum, float],
    times: Mapping[str, int],
) -> tuple[SliceWeight, ...]:
    asked = {one.row.id: stratum_of(one.row) for one in evaluated}
    told: list[SliceWeight] = []
    for stratum in sorted({*map(stratum_of, originals), *rewards}):
        of_slice = [row.id for row in originals if stratum_of(row) == stratum]
        met = [fates[row_id][0] for row_id in of_slice]
        told.append(
            SliceWeight(
                task_type=stratum[0],
                difficulty=stratum[1],
                evaluated=list(asked.values()).count(stratum),
                reward=mean_interval(rewards[stratum]) if stratum in rewards else None,
                weight=weights.get(stratum, 1.0),
                kept=met.count("kept"),
                copies=sum(times.get(row_id, 1) - 1 for row_id in of_slice),
                retired=met.count("retired"),
                set_aside=met.count("set aside"),
            )
        )
    return tuple(told)
