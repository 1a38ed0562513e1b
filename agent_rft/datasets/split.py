"""A stratified split into train and validation: by task type and difficulty, and whole groups to one side where asked for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rows import Row

Stratum = tuple[str, str]
Split = tuple[list[Row], list[Row]]


def stratum_of(row: Row) -> Stratum:
    return row.task_type, row.difficulty


def split_rows(rows: Sequence[Row], val_share: float, seed: int, group_of: Callable[[Row], str] | None = None) -> Split:
    """(train, val), each in the order of `rows`; the same for the same rows and seed.

    Rows that `group_of` names alike stay on one side: questions about one company, say, so that validation asks about
    companies that training never did. Then a stratum may miss its size where no group fits; without groups none does.
    """
    if not 0 < val_share < 1:
        raise UserError(f"val_share is {val_share}", "a share between 0 and 1, like 0.2")
    groups: dict[object, list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(group_of(row) if group_of else position, []).append(position)
    drawn = list(groups.values())
    random.Random(f"split/{seed}").shuffle(drawn)
    sizes = [Counter(stratum_of(rows[position]) for position in group) for group in drawn]
    chosen = _choose(sizes, val_sizes(Counter(map(stratum_of, rows)), val_share))
    in_val = {position for at in chosen for position in drawn[at]}
    return [r for i, r in enumerate(rows) if i not in in_val], [r for i, r in enumerate(rows) if i in in_val]


def val_sizes(counts: Counter[Stratum], val_share: float) -> Counter[Stratum]:
    """How many validation rows each stratum gives: whole numbers that add up to the share of the whole (largest remainder)."""
    exact = {stratum: count * val_share for stratum, count in counts.items()}
    sizes = Counter({stratum: int(share + 1e-9) for stratum, share in exact.items()})
    left = round(sum(counts.values()) * val_share) - sizes.total()
    by_remainder = sorted(exact, key=lambda stratum: (sizes[stratum] - exact[stratum], stratum))
    sizes.update(by_remainder[:left])
    return sizes


def _choose(groups: Sequence[Counter[Stratum]], wanted: Counter[Stratum]) -> set[int]:
    """First every group that fits, then single moves for as long as one brings the sizes nearer to the wanted ones."""
    chosen, have = set[int](), Counter[Stratum]()
    for at, group in enumerate(groups):
        if all(have[stratum] + count <= wanted[stratum] for stratum, count in group.items()):
            chosen.add(at)
            have += group
    kinds = [tuple(sorted(group.items())) for group in groups]
    while True:
        before = _distance(have, wanted)
        alike: dict[object, int] = {}
        for at, kind in enumerate(kinds):
            alike.setdefault((kind, at in chosen), at)  # groups of the same make-up move the sizes alike: the first stands for all
        moves = ((_distance(_moved(have, groups[at], at in chosen), wanted), at) for at in alike.values())
        after, at = min(moves, default=(before, -1))
        if after >= before:
            return chosen
        have = _moved(have, groups[at], at in chosen)
        chosen ^= {at}


def _moved(have: Counter[Stratum], group: Counter[Stratum], is_chosen: bool) -> Counter[Stratum]:
    return have - group if is_chosen else have + group


def _distance(have: Counter[Stratum], wanted: Counter[Stratum]) -> int:
    return sum((have[stratum] - wanted[stratum]) ** 2 for stratum in have | wanted)
