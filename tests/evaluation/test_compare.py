"""Base against tuned on a handful of rows, worked out by hand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import InfraError
from agent_rft.evaluation.compare import Comparison, compare, describe_comparison, verdict_told


@pytest.fixture(scope="session")
def compared(tried):
    """compared({row: (rewards, calls)}, {row: (rewards, calls)})."""

    def build(base, tuned):
        sides = [[one for row, (rewards, calls) in side.items() for one in tried(row, rewards, calls)] for side in (base, tuned)]
        return compare(*sides)

    return build


BASE = {
    "up": ([0.0, 0.5], [6, 8]),  # mean 0.25, 7 calls
    "down": ([1.0, 1.0], [3, 3]),
    "worst": ([0.5, 0.5], [2, 2]),
    "solved": ([1.0, 1.0], [5, 5]),
    "unsolved": ([0.0, 0.0], [9, 9]),
}
TUNED = {
    "up": ([1.0, 1.0], [3, 3]),  # +0.75, -4
    "down": ([0.5, 1.0], [2, 3]),  # -0.25, -0.5
    "worst": ([0.0, 0.0], [4, 5]),  # -0.5, +2.5
    "solved": ([1.0, 1.0], [2, 2]),  # 0, -3
    "unsolved": ([0.0, 0.0], [4, 4]),  # 0, -5
}


def test_each_row_is_the_difference_of_its_means_worst_first(compared):
    rows = compared(BASE, TUNED).rows
    assert [(row.row_id, row.d_reward, row.d_tools) for row in rows] == [
        ("worst", -0.5, 2.5),
        ("down", -0.25, -0.5),
        ("solved", 0.0, -3.0),
        ("unsolved", 0.0, -5.0),
        ("up", 0.75, -4.0),
    ]
    assert (rows[-1].base_reward, rows[-1].base_calls) == (0.25, 7.0)


def test_the_whole_is_the_mean_over_rows(compared):
    whole = compared(BASE, TUNED)
    # rewards: base 0.25 + 1 + 0.5 + 1 + 0 = 2.75, tuned 1 + 0.75 + 0 + 1 + 0 = 2.75; calls: 26 -> 3 + 2.5 + 4.5 + 2 + 4 = 16
    assert (whole.base_reward, whole.tuned_reward, whole.mean_d_reward) == pytest.approx((0.55, 0.55, 0.0))
    assert (whole.base_calls, whole.tuned_calls, whole.mean_d_tools) == pytest.approx((5.2, 3.2, -2.0))
    assert (whole.improved, whole.regressed, whole.unchanged_solved, whole.unchanged_unsolved) == (1, 2, 1, 1)


def test_a_change_is_clear_from_two_standard_errors_on(compared):
    # differences -0.5, -0.25, 0, 0, 0.75: squares sum to 0.875; 0.875 / 4 / 5 = 0.04375, whose root is 0.2092
    assert compared(BASE, TUNED).d_reward_error == pytest.approx(0.2092, abs=1e-4)
    assert not compared(BASE, TUNED).clear
    # +0.5, +0.5, +1: mean 0.667, squares 1/36 + 1/36 + 1/9 = 1/6; 1/6 / 2 / 3 = 1/36, whose root is 0.1667
    assert compared({"a": ([0.5], 1), "b": ([0.5], 1), "c": ([0.0], 1)}, {row: ([1.0], 1) for row in "abc"}).clear
    # +1, +1, 0, 0: mean 0.5, squares sum to 1; 1 / 3 / 4 = 1/12, whose root is 0.289: 1.7 errors
    assert not compared({row: ([0.0], 1) for row in "abcd"}, {row: ([float(row in "ab")], 1) for row in "abcd"}).clear
    assert not compared({"a": ([0.0], 1)}, {"a": ([1.0], 1)}).clear  # one row proves nothing


@pytest.mark.parametrize(
    ("tuned", "told"),
    [
        (1.0, "better; mean Δreward +0.500 (standard error 0.000), improved 2, regressed 0 of 2"),
        (0.0, "worse; mean Δreward -0.500 (standard error 0.000), improved 0, regressed 2 of 2"),
        (0.5, "no clear change; mean Δreward +0.000 (standard error 0.000), improved 0, regressed 0 of 2"),
    ],
)
def test_the_verdict_is_told_in_a_line(compared, tuned, told):
    rows = ("a", "b")
    assert verdict_told(compared({row: ([0.5], [1]) for row in rows}, {row: ([tuned], [1]) for row in rows})) == told


def test_an_unmoved_row_is_solved_from_four_fifths_on(compared):
    side = {"all": ([1.0], 1), "four fifths": ([1.0, 1.0, 1.0, 1.0, 0.0], 1), "half": ([0.5], 1)}
    whole = compared(side, side)
    assert (whole.unchanged_solved, whole.unchanged_unsolved) == (2, 1)


def test_the_quadrants_need_both_to_move(compared):
    quadrants = compared(BASE, TUNED).quadrants
    assert (quadrants.better_fewer, quadrants.better_more, quadrants.worse_fewer, quadrants.worse_more) == (1, 0, 1, 1)
    assert quadrants.on_axis == 2


def test_a_row_without_a_score_on_one_side_is_left_out_and_named(compared):
    base = {"a": ([1.0, None], 1), "b": ([None], 1), "c": ([0.0], 1), "only-base": ([1.0], 1)}
    tuned = {"a": ([1.0], 1), "b": ([1.0], 1), "c": ([None], 1), "only-tuned": ([1.0], 1)}
    whole = compared(base, tuned)
    assert (whole.compared, whole.excluded) == (1, ("b", "c", "only-base", "only-tuned"))


def test_nothing_to_compare_is_an_infrastructure_error(compared):
    with pytest.raises(InfraError, match="no row has a scored try for both base and tuned, of 1 rows"):
        compared({"a": ([None], 1)}, {"a": ([1.0], 1)})


def test_rounding_is_no_movement(compared):
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point
    whole = compared({"a": ([0.1, 0.2, 0.3], 1)}, {"a": ([0.3, 0.2, 0.1], 1)})
    assert whole.unchanged == 1


def test_it_prints_as_the_tutorial_does(compared):
    assert describe_comparison(compared(BASE | {"x": ([None], 1)}, TUNED)).splitlines() == [
        "mean Δreward: +0.000  (standard error 0.209)",
        "mean Δtools:  -2.00",
        "improved:    1/5",
        "regressed:   2/5  (1 with more calls too)",
        "unchanged:   2/5  (1 solved, 1 unsolved)",
        "left out:    1  (infrastructure failed on every try of a side)",
    ]


def test_it_goes_to_json_and_back(compared):
    whole = compared(BASE, TUNED)
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Comparison) == whole


side = st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=3)


@given(st.dictionaries(st.integers(0, 30).map(str), st.tuples(side, side, st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_the_counts_partition_the_rows(compared, rows):
    base = {row: (before, calls) for row, (before, _, calls, _) in rows.items()} | {"always there": ([1.0], 1)}
    tuned = {row: (after, calls) for row, (_, after, _, calls) in rows.items()} | {"always there": ([1.0], 1)}
    whole = compared(base, tuned)
    quadrants = whole.quadrants
    assert whole.improved + whole.regressed + whole.unchanged == whole.compared == len(whole.rows)
    assert whole.compared + len(whole.excluded) == len(base)
    moved = quadrants.better_fewer + quadrants.better_more + quadrants.worse_fewer + quadrants.worse_more
    assert moved + quadrants.on_axis == whole.compared
    assert whole.mean_d_reward == pytest.approx(whole.tuned_reward - whole.base_reward)
