"""A timeline holds every card once, in few bins, however long it is."""

from __future__ import annotations

import datetime as dt
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from observability.counting import BINS, bins_of, facet, grade_bands

MOMENTS = st.datetimes(dt.datetime(1980, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))


@given(st.lists(st.tuples(MOMENTS, st.sampled_from(["answered", "malformed"])), max_size=40))
def test_every_card_is_in_the_one_bin_of_its_moment(happened):
    bins = bins_of(happened)
    assert len(bins) <= BINS and sum(sum(one.endings.values()) for one in bins) == len(happened)
    assert all(left.end == right.start for left, right in pairwise(bins))
    for one in bins:
        inside = [ending for moment, ending in happened if one.start <= moment < one.end]
        assert one.endings == {ending: inside.count(ending) for ending in set(inside)}
    assert not bins or (bins[0].endings and bins[-1].endings)


@given(st.lists(st.one_of(st.none(), st.floats(0, 1))))
def test_every_grade_is_in_one_band(grades):
    assert sum(one.cards for one in grade_bands(grades).counts) == len(grades)


def test_more_values_than_are_shown_are_told_of():
    found = facet("row", [f"row {number}" for number in range(11)], several=False)
    assert (len(found.counts), found.more) == (8, 3) and found.counts[0].term == 'row:"row 0"'
    assert [(one.value, one.cards) for one in facet("tool", ["a\x1fb\x1fa", "b", None], several=True).counts] == [
        ("b", 2), ("a", 1), ("none", 1),
    ]  # fmt: skip
    assert not facet("review", [None, None], several=False).tells
