"""The split: everything lands on exactly one side, each stratum by its share, and groups stay together."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.rows import Row
from agent_rft.datasets.split import split_rows, stratum_of, val_sizes

strata = st.tuples(st.sampled_from(["qa", "planning"]), st.sampled_from(["easy", "medium", "hard"]))


def rows_of(held: list[tuple[tuple[str, str], int]]) -> list[Row]:
    return [
        Row(f"row-{n}", "p", "1", metadata={"task_type": task, "difficulty": difficulty, "group": group})
        for n, ((task, difficulty), group) in enumerate(held)
    ]


rows = st.lists(st.tuples(strata, st.integers(0, 15)), max_size=60).map(rows_of)
val_shares = st.sampled_from([0.1, 0.2, 0.25, 0.5])


def group_of(row: Row) -> str:
    return str(row.metadata["group"])


def test_sizes_by_largest_remainder():
    # 0.2 x 7 = 1.4, 0.2 x 8 = 1.6, 0.2 x 5 = 1.0: whole parts 1 + 1 + 1, and the one left of 4 goes to the 0.6
    assert val_sizes(Counter({("qa", "easy"): 7, ("qa", "medium"): 8, ("qa", "hard"): 5}), 0.2) == {
        ("qa", "easy"): 1,
        ("qa", "medium"): 2,
        ("qa", "hard"): 1,
    }


@settings(max_examples=80)
@given(rows, val_shares, st.integers(0, 5))
def test_nothing_lost_nothing_twice_and_every_stratum_within_one_row_of_its_share(given_rows, share, seed):
    train, val = split_rows(given_rows, share, seed)
    assert sorted(row.id for row in train + val) == sorted(row.id for row in given_rows)
    assert len(val) == round(len(given_rows) * share)
    whole, held_out = Counter(map(stratum_of, given_rows)), Counter(map(stratum_of, val))
    assert all(abs(held_out[stratum] - whole[stratum] * share) < 1 for stratum in whole)
    assert split_rows(given_rows, share, seed) == (train, val)


@settings(max_examples=80)
@given(rows, val_shares, st.integers(0, 5))
def test_groups_never_straddle_the_split(given_rows, share, seed):
    train, val = split_rows(given_rows, share, seed, group_of)
    assert not {group_of(row) for row in train} & {group_of(row) for row in val}
    assert sorted(row.id for row in train + val) == sorted(row.id for row in given_rows)
    assert split_rows(given_rows, share, seed, group_of) == (train, val)


@settings(max_examples=80)
@given(st.lists(st.lists(strata, min_size=1, max_size=6), max_size=12), val_shares)
def test_no_single_group_moved_across_would_bring_the_sizes_nearer(groups, share):
    given_rows = rows_of([(stratum, number) for number, group in enumerate(groups) for stratum in group])
    wanted = val_sizes(Counter(map(stratum_of, given_rows)), share)
    _, val = split_rows(given_rows, share, 1, group_of)

    def distance(held_out: set[str]) -> int:
        have = Counter(stratum_of(row) for row in given_rows if group_of(row) in held_out)
        return sum((have[stratum] - wanted[stratum]) ** 2 for stratum in set(have) | set(wanted))

    chosen = {group_of(row) for row in val}
    assert all(distance(chosen ^ {str(number)}) >= distance(chosen) for number in range(len(groups)))


def test_groups_of_one_fill_every_stratum_exactly():
    given_rows = rows_of([(("qa", difficulty), n) for n, difficulty in enumerate(["easy"] * 10 + ["hard"] * 20)])
    _, val = split_rows(given_rows, 0.2, 1, group_of)
    assert Counter(row.difficulty for row in val) == {"easy": 2, "hard": 4}


def test_where_no_group_fits_the_nearest_size_is_taken():
    given_rows = rows_of([(("qa", "easy"), group) for group in (1, 1, 1, 2, 2, 2, 3, 3, 3, 3)])  # a fifth would be 2
    _, val = split_rows(given_rows, 0.2, 1, group_of)
    assert len(val) == 3


def test_one_group_more_is_taken_where_that_comes_nearer():
    given_rows = rows_of([(("qa", "easy"), group) for group in range(7) for _ in range(3)])  # a quarter would be 5: 6 is nearer than 3
    _, val = split_rows(given_rows, 0.25, 1, group_of)
    assert len(val) == 6


def test_another_seed_draws_another_split():
    given_rows = rows_of([(("qa", "easy"), n) for n in range(40)])
    assert split_rows(given_rows, 0.2, 1) != split_rows(given_rows, 0.2, 2)


@pytest.mark.parametrize("share", [0, 1, -0.2, 20])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="val_share"):
        split_rows([], share, 1)
