"""What is drawn is where it should be: numbers worked out by hand."""

from __future__ import annotations

import pytest

from serving.pages.pictures import CURVE_HIGH, CURVE_WIDTH, PAIRS_HIGH, curve, e_value, pairs, percent


def test_the_course_of_a_test_on_a_logarithmic_scale():
    drawn = curve([[1, -1.0], [2, 1.0], [4, 4.0]], 3.0)
    assert drawn and (drawn.n, drawn.crossed) == (4, True)
    # from -1, the lowest, up to 1.08 x 4 = 4.32: one e-fold is 110 / 5.32 = 20.677 high
    assert drawn.points == f"0,89.3 {CURVE_WIDTH // 4},110 {CURVE_WIDTH // 2},68.6 {CURVE_WIDTH},6.6"
    assert (drawn.bound, drawn.one) == (27.3, 89.3)  # (4.32 - 3) and 4.32 times 20.677
    below = curve([[10, -50.0]], 2.0)
    assert below and below.points.endswith(f"{CURVE_WIDTH},{CURVE_HIGH}") and not below.crossed  # what is lost beyond shows at the ground
    assert curve([], 3.0) is None
    untested = curve([[1, 0.0]], None)
    assert untested and (untested.bound, untested.crossed) == (None, False)


def test_bars_beside_each_other_on_one_scale():
    first, second = pairs(["a", "b"], [0.25, 0.75], [0.5, 0.5])
    assert first.reference.height == pytest.approx(PAIRS_HIGH / 3, abs=0.01) and second.reference.height == PAIRS_HIGH
    assert first.live.height == second.live.height == pytest.approx(PAIRS_HIGH * 2 / 3, abs=0.01)
    assert first.reference.x < first.live.x < second.reference.x and first.told == "a: 25.0% of the reference, 50.0% live"
    assert [pair.live.height for pair in pairs(["a"], [1.0], None)] == [0]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (1.0, "100%"), (0.25, "25%"), (0.0637, "6.4%"), (0.005, "0.5%"), (0.00041, "0.041%"), (-0.05, "-5%")]
)
def test_shares_in_as_many_digits_as_tell_them_apart(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(("log_e", "text"), [(None, "–"), (0.0, "1"), (4.135, "62.5"), (-3.0, "0.0498"), (230.2585, "10^100.0")])
def test_e_values_as_people_read_them(log_e, text):
    assert e_value(log_e) == text
