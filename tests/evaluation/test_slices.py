"""A gain on the whole, a loss on a slice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.evaluation.compare import compare
from agent_rft.evaluation.scoreboard import scoreboard
from agent_rft.evaluation.slices import slice_each, slice_rows

EASY, HARD = {"task_type": "numerical_qa", "difficulty": "easy"}, {"task_type": "numerical_qa", "difficulty": "hard"}


def diffs(tried):
    base = tried("e1", [0.0], 5, metadata=EASY) + tried("e2", [0.5], 7, metadata=EASY) + tried("h1", [1.0], 4, metadata=HARD)
    tuned = tried("e1", [1.0], 2, metadata=EASY) + tried("e2", [1.0], 3, metadata=EASY) + tried("h1", [0.5], 6, metadata=HARD)
    return compare(base, tuned).rows


def test_each_value_of_a_key_is_a_slice(tried):
    whole, easy, hard = slice_rows(diffs(tried))
    assert (whole.key, whole.value, whole.rows) == ("task_type", "numerical_qa", 3)
    assert (easy.value, easy.rows, easy.base_reward, easy.tuned_reward, easy.d_reward) == ("easy", 2, 0.25, 1.0, 0.75)
    assert (easy.base_calls, easy.tuned_calls) == (6.0, 2.5)
    assert (hard.value, hard.rows, hard.d_reward, hard.tuned_calls) == ("hard", 1, -0.5, 6.0)


def moved(tried, **groups):
    """Rows of a difficulty each that turn right (positive) or wrong (negative)."""

    def side(right):
        rows = [(name, row, float((count > 0) == right)) for name, count in groups.items() for row in range(abs(count))]
        return [one for name, row, reward in rows for one in tried(f"{name}{row}", [reward], metadata={"difficulty": name})]

    return slice_rows(compare(side(False), side(True)).rows, ["difficulty"])


def test_a_slice_is_judged_among_all_that_are_looked_at(tried):
    easy, hard, odd = moved(tried, easy=9, hard=-7, odd=-6)
    # all of one size: 2 ways of 2^n. Holm: the smallest p counts three times, the next twice, the last once
    assert (easy.p, hard.p, odd.p) == pytest.approx((2 / 2**9, 2 / 2**7, 2 / 2**6))
    assert (easy.p_adjusted, hard.p_adjusted, odd.p_adjusted) == pytest.approx((6 / 2**9, 4 / 2**7, 2 / 2**6))
    assert (easy.verdict, hard.verdict, odd.verdict) == ("better", "worse", "worse")
    assert hard.d.estimate == hard.d_reward == -1.0 and hard.d.high < 0


def test_luck_among_many_slices_is_no_verdict(tried):
    (alone,) = moved(tried, hard=-6)
    assert alone.verdict == "worse"  # 2 / 2^6 = 0.031
    assert {part.verdict for part in moved(tried, a=-6, b=-6, c=-6)} == {"perhaps worse"}  # 0.094 each


def test_slices_of_several_models_are_judged_among_all_of_them(tried):
    """Six rows of six that turn wrong are clear alone (p = 2 / 2**6 = 0.031); of three models' slices it counts three times."""
    right, wrong = ([one for row in range(6) for one in tried(str(row), [reward])] for reward in (1.0, 0.0))
    rows = compare(right, wrong).rows
    assert slice_rows(rows, ["difficulty"])[0].verdict == "worse"
    each = slice_each([rows, rows, compare(right, right).rows], ["difficulty"])
    assert [[(part.p_adjusted, part.verdict) for part in parts] for parts in each] == [
        [(6 / 2**6, "perhaps worse")], [(6 / 2**6, "perhaps worse")], [(1.0, "no clear change")]
    ]  # fmt: skip
    board = scoreboard({"base": right, "one": wrong, "two": wrong, "three": right})
    # two keys of one slice each, three models: six slices, of which four have this p
    assert [[part.p_adjusted for part in one.slices] for one in board.versus] == [[12 / 2**6] * 2, [12 / 2**6] * 2, [1.0] * 2]


def test_any_metadata_key_slices_and_a_missing_one_is_said(tried):
    (only,) = slice_rows(diffs(tried), ["sector"])
    assert (only.key, only.value, only.rows) == ("sector", "unspecified", 3)


@given(st.lists(st.sampled_from(["easy", "hard", None]), min_size=1, max_size=8))
def test_slices_of_a_key_partition_the_rows(tried, difficulties):
    tries = [one for i, d in enumerate(difficulties) for one in tried(str(i), [1.0], metadata={"difficulty": d} if d else {})]
    assert sum(part.rows for part in slice_rows(compare(tries, tries).rows, ["difficulty"])) == len(difficulties)
