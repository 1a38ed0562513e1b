"""Base against tuned on a handful of rows, worked out by hand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import InfraError
from agent_rft.evaluation.compare import Comparison, compare, verdict_told


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


def test_the_standard_error_is_that_of_the_rows(compared):
    # differences -0.5, -0.25, 0, 0, 0.75: squares sum to 0.875; 0.875 / 4 / 5 = 0.04375, whose root is 0.2092
    assert compared(BASE, TUNED).d_reward_error == pytest.approx(0.2092, abs=1e-4)


def alike(count, reward):
    return {str(row): ([reward], 1) for row in range(count)}


def test_a_change_is_clear_where_its_interval_leaves_zero_out_and_its_ranks_are_lopsided(compared):
    # p of n rows that all rose: 2 / 2^n, so 0.0625 for five and 0.031 for six. The interval, of
    # rows that all turn right, and the imagined 1 and -1. Five: mean 5/7, squares 6 x (2/7)² + (12/7)² = 3.4286, / 6 / 7 = 0.08163,
    # root 0.2857; t of 6 degrees 2.4469: 0.7143 - 0.6991 > 0. Four: mean 2/3, squares 10/3, / 5 / 6 = 1/9, root 1/3; t of 5: 2.5706, -0.19
    five, four = compared(alike(5, 0.0), alike(5, 1.0)), compared(alike(4, 0.0), alike(4, 1.0))
    assert (five.d_reward.estimate, five.d_reward.low, five.d_reward.high) == pytest.approx((1.0, 0.0152, 1.0), abs=1e-4)
    assert (five.d_reward.clear, five.p, five.verdict) == (True, 0.0625, "perhaps better")
    assert compared(alike(5, 1.0), alike(5, 0.0)).verdict == "perhaps worse"
    assert four.d_reward.low == pytest.approx(-0.1902, abs=1e-4) and four.verdict == "no clear change"
    assert compared(alike(6, 0.0), alike(6, 1.0)).verdict == "better" and compared(alike(6, 1.0), alike(6, 0.0)).verdict == "worse"
    assert not compared(BASE, TUNED).d_reward.clear


def test_a_mean_and_ranks_that_point_apart_are_no_verdict(compared):
    """Thirty rows lose a hundredth and six leap by one: the mean is up, (6 - 0.3) / 36 = 0.158, and its interval clear of zero; the ranks
    are 1 to 30 down and 31 to 36 up, 465 to 201, whose p is 0.04."""
    before = {str(row): ([0.5 if row < 30 else 0.0], 1) for row in range(36)}
    after = {str(row): ([0.49 if row < 30 else 1.0], 1) for row in range(36)}
    found = compared(before, after)
    assert found.d_reward.low > 0 and found.p < 0.05 and found.verdict == "no clear change"


def test_lopsided_ranks_alone_are_a_perhaps(compared):
    """Seven rows of forty rise by a hundredth: p is 2 / 2^7, while the imagined rows hold the interval open."""
    before = {str(row): ([0.5], 1) for row in range(40)}
    found = compared(before, before | {str(row): ([0.51], 1) for row in range(7)})
    assert found.d_reward.low < 0 and found.p == 2 / 2**7 and found.verdict == "perhaps better"


def test_the_tests_are_over_rows_however_many_tries(compared):
    # -0.5, -0.25 and +0.75 moved: ranks 2 and 1 down, 3 up; 3 of 6 ranks up is as even as can be
    once = compared(BASE, TUNED)
    assert once.p == 1.0
    # solved from 0.8 on: "up" came to be (0.25 -> 1), "down" ceased (1 -> 0.75): one flip either way
    assert (once.newly_solved, once.no_longer_solved, once.p_solved) == (1, 1, 1.0)
    # five rows up, all of one size: 2 of the 32 ways to sign them are as lopsided; all five newly solved: 2 of 32
    five = compared(alike(5, 0.0), {row: ([1.0] * 4, 1) for row in alike(5, 1.0)})
    assert (five.p, five.p_solved) == pytest.approx((1 / 16, 1 / 16))


def test_tool_calls_have_an_interval_but_of_a_single_row(compared):
    whole = compared(BASE, TUNED)
    assert whole.d_tools.estimate == pytest.approx(-2.0) and whole.d_tools.low < -2 < whole.d_tools.high
    assert compared(alike(1, 0.0), alike(1, 1.0)).d_tools is None


def test_a_row_that_never_earned_anything_on_either_side_is_unsolvable(compared):
    base = {"never": ([0.0, 0.0], 1), "lucky": ([0.0, 0.5], 1), "lost": ([0.5, 0.5], 1)}
    whole = compared(base, {"never": ([0.0, 0.0], 1), "lucky": ([0.5, 0.0], 1), "lost": ([0.0, 0.0], 1)})
    assert (whole.unchanged_unsolved, whole.unsolvable, whole.unsolvable_rows) == (2, 1, ("never",))


@pytest.mark.parametrize(
    ("tuned", "told"),
    [
        (1.0, "better; mean Δreward +0.500 [+0.179, +0.678], improved 12, regressed 0 of 12"),
        (0.0, "worse; mean Δreward -0.500 [-0.678, -0.179], improved 0, regressed 12 of 12"),
        (0.5, "no clear change; mean Δreward +0.000 [-0.226, +0.226], improved 0, regressed 0 of 12"),
    ],
)
def test_the_verdict_is_told_in_a_line(compared, tuned, told):
    # 12 x 0.5, 1 and -1: mean 3/7, squares 12 x (1/14)² + (4/7)² + (10/7)² = 2.4286, / 13 / 14 = 0.013344, root 0.11552; t of 13: 2.1604,
    # reach 0.2496. Twelve 0s: squares 2, / 13 / 14 = 0.010989, root 0.10483, reach 0.2265
    assert verdict_told(compared(alike(12, 0.5), alike(12, tuned))) == told


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
