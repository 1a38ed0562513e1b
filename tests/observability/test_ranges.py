"""Ranges are the set of numbers that they stand for, in one form."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from observability.ranges import gaps, how_many, ranges_text, read_ranges, with_numbers

NUMBERS = st.sets(st.integers(1, 60))


def spelt_out(ranges):
    return {number for first, last in ranges for number in range(first, last + 1)}


def test_a_lost_number_is_a_gap_and_closes_when_it_comes():
    came = with_numbers((), [*range(1, 501), *range(502, 511)])
    assert ranges_text(came) == "1-500,502-510"
    assert gaps(came) == ((501, 501),)
    assert ranges_text(with_numbers(came, [501])) == "1-510"


@given(NUMBERS, NUMBERS)
def test_merging_is_the_union_of_sets_whatever_came_first_or_twice(one, other):
    merged = with_numbers(with_numbers((), one), other)
    assert spelt_out(merged) == one | other
    assert merged == with_numbers((), sorted(one | other)) == with_numbers(merged, one)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(merged))


@given(NUMBERS)
def test_what_came_and_what_is_missing_make_up_every_number(numbers):
    ranges = with_numbers((), numbers)
    assert spelt_out(gaps(ranges)) == set(range(1, max(numbers, default=0) + 1)) - numbers
    assert how_many(ranges) == len(numbers)


@given(NUMBERS)
def test_the_text_reads_back(numbers):
    ranges = with_numbers((), numbers)
    assert read_ranges(ranges_text(ranges)) == ranges
