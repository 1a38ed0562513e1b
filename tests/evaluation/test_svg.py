"""The report's drawings: well-formed, and where the numbers say."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.compare import compare
from agent_rft.evaluation.figures import Band, Mark, Panel, Series, curve_panels
from agent_rft.evaluation.prior import check_prior
from agent_rft.evaluation.svg import (
    Frame,
    bars_svg,
    calls_svg,
    panel_svg,
    quadrants_svg,
    rates_svg,
    runs_svg,
    split_svg,
    ticks,
    variances_svg,
    whisker_svg,
)
from agent_rft.evaluation.tool_use import tool_use


def drawn(svg, tag):
    return list(ET.fromstring(svg).iter(tag))


def test_a_frame_puts_the_ends_of_the_data_at_the_ends_of_the_box():
    frame = Frame((0, 10), (0, 2), width=120, height=60, left=10, right=10, top=10, bottom=10)
    assert (frame.across(0), frame.across(10), frame.across(5)) == (10, 110, 60)
    assert (frame.down(0), frame.down(2), frame.down(0.5)) == (50, 10, 40)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 60, [0, 20, 40, 60]), (0, 0.038, [0, 0.01, 0.02, 0.03]), (-7, 7, [-5, 0, 5])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == expected


@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_stay_within_and_are_few(span, low):
    marks = ticks(low, low + span)
    assert len(marks) <= 7
    assert all(low - span * 0.01 <= mark <= low + span * 1.01 for mark in marks)


def test_a_line_goes_through_its_values():
    svg = panel_svg(Panel("t", "reward", (Series("v", ((0, 0.0), (10, 1.0))),), top=1.0))
    # the box reaches from x 68 to 560 - 14, and from y 250 - 40 up to 10
    (line,) = drawn(svg, "polyline")
    assert line.get("points") == "68.0,210.0 546.0,10.0"


def test_every_validation_says_its_number_on_hover():
    svg = panel_svg(curve_panels([StepMetrics(step=3, val_reward=0.5, train_reward=0.4)])[0])
    assert [title.text for title in drawn(svg, "title")] == ["step 3: 0.5"]


def test_bars_are_as_high_as_their_counts(tried):
    check = check_prior(tried("a", [0.0, 0.0]) + tried("b", [0.0, 0.0]) + tried("c", [1.0, 0.0]))
    never, sometimes = drawn(rates_svg(check), "rect")
    assert (never.get("class"), sometimes.get("class")) == ("never", "sometimes")
    assert float(never.get("height")) == pytest.approx(2 * float(sometimes.get("height")), abs=0.2)
    assert [rect.get("class") for rect in drawn(variances_svg(check), "rect")] == ["sometimes", "never", "never"]


def test_quadrant_dots_grow_with_their_rows_by_area(tried):
    base = [one for i in range(4) for one in tried(f"a{i}", [0.0], 5)] + tried("b", [1.0], 1)
    tuned = [one for i in range(4) for one in tried(f"a{i}", [1.0], 2)] + tried("b", [0.0], 2)
    four, one = drawn(quadrants_svg(compare(base, tuned)), "circle")
    assert float(four.get("r")) == pytest.approx(2 * float(one.get("r")), abs=0.1)
    assert (four.get("class"), one.get("class")) == ("better", "worse")


def test_nothing_measured_still_draws():
    for svg in (*(panel_svg(panel) for panel in curve_panels([])), rates_svg(check_prior([])), variances_svg(check_prior([]))):
        assert ET.fromstring(svg).tag == "svg"


def test_a_band_begins_at_its_limit_and_a_mark_stands_at_its_step():
    panel = Panel("t", "a", (Series("s", ((0, 0.0), (10, 1.0))),), 1.0, bands=(Band(0.5, "halts"),), marks=(Mark(5, "it said so", True),))
    svg = panel_svg(panel)
    (band,) = drawn(svg, "rect")
    assert (band.get("y"), band.get("height")) == ("10", "100.0")  # half of 200, from the top
    (mark,) = drawn(svg, "g")
    assert mark.get("class") == "spoke ended" and mark.find("line").get("x1") == "307.0"  # 68 + 478 / 2
    assert mark.find("title").text == "step 5: it said so"


def test_a_limit_far_above_the_line_is_said_and_not_drawn():
    svg = panel_svg(Panel("t", "a", (Series("s", ((0, 0.0), (10, 0.1))),), 0.01, bands=(Band(9.0, "halts above 9"),)))
    assert not drawn(svg, "rect") and "↑ halts above 9, above this drawing" in [text.text for text in drawn(svg, "text")]


def test_whiskers_of_a_table_share_their_axis():
    """From -1 to 1 over 188 units that begin at 6: 0 lies at 100, -0.5 at 53, 0.5 at 147."""
    svg = whisker_svg(-0.5, 0.0, 0.5, (-1.0, 1.0), "same")
    reach = next(line for line in drawn(svg, "line") if line.get("class") == "reach same")
    assert (reach.get("x1"), reach.get("x2"), drawn(svg, "circle")[0].get("cx")) == ("53.0", "147.0", "100.0")


def test_bars_are_as_long_as_their_share_of_the_longest():
    assert [rect.get("width") for rect in drawn(bars_svg([0.2, 0.1], 0.4), "rect")] == ["100.0", "50.0"]
    assert [rect.get("width") for rect in drawn(split_svg([("better", 3), ("same", 0), ("worse", 1)]), "rect")] == ["149.0", "49.0"]


def test_tries_by_their_calls_stand_side_by_side(tried):
    base, tuned = tool_use(tried("a", [0.0, 0.0], [2, 4])), tool_use(tried("a", [1.0, 1.0], [2, 2]))
    bars = drawn(calls_svg([base, tuned]), "rect")
    assert [(bar.get("class"), bar.find("title").text) for bar in bars] == [
        ("same", "50% of the tries made 2 calls"), ("same", "50% of the tries made 4 calls"), ("better", "100% of the tries made 2 calls"),
    ]  # fmt: skip
    assert float(bars[2].get("height")) == pytest.approx(2 * float(bars[0].get("height")), abs=0.2)


def test_models_that_never_call_a_tool_are_drawn_too(tried):
    [bar] = drawn(calls_svg([tool_use(tried("a", [0.0, 1.0], [0, 0]))]), "rect")
    assert bar.find("title").text == "100% of the tries made 0 calls"


def test_each_run_has_a_line_of_its_own():
    svg = runs_svg(Panel("t", "a", (Series("one", ((0, 0.0), (1, 1.0))), Series("none", ()), Series("three", ((0, 1.0),))), 1.0))
    assert [line.get("class") for line in drawn(svg, "polyline")] == ["run run-0", "run run-2"]
