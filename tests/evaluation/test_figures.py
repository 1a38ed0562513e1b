"""What the plots show, and that their titles say what to conclude."""

import pytest
from matplotlib.axes import Axes

from agent_rft.contracts.guards import Finding
from agent_rft.contracts.training import GuardLimits, StepMetrics
from agent_rft.evaluation.compare import compare
from agent_rft.evaluation.figures import (
    Band,
    Panel,
    RateBar,
    Series,
    curve_panels,
    health_panels,
    prior_title,
    quadrant_dots,
    quadrant_labels,
    quadrant_title,
    rate_bars,
    tools_reach,
    variance_title,
    variances,
    watched_by,
)
from agent_rft.evaluation.plots import plot_curves, plot_prior, plot_quadrants
from agent_rft.evaluation.prior import check_prior

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def check(tried):
    tries = tried("n1", [0.0, 0.0, 0.5, 0.0]) + tried("n2", [0.0] * 4) + tried("a", [1.0] * 4) + tried("gone", [None] * 4)
    return check_prior(tries + tried("s1", [1.0, 0.0, 0.0, 0.0]) + tried("s2", [0.0, 1.0, 0.0, 0.0]))


@pytest.fixture
def comparison(tried):
    base = tried("a", [0.0], 6) + tried("b", [0.0], 6) + tried("c", [1.0], 2) + tried("d", [1.0], 3)
    tuned = tried("a", [1.0], 2) + tried("b", [1.0], 2) + tried("c", [0.5], 3) + tried("d", [1.0], 3)
    return compare(base, tuned)


METRICS = [
    StepMetrics(step=0, val_reward=0.52, val_tool_calls=9.1, train_reward=0.5, tool_calls=9.0, kl_to_ref=0.0, rollouts=8),
    StepMetrics(step=1, train_reward=0.6, tool_calls=7.0, kl_to_ref=0.05, rollouts=8, infra_failures=1, infra_failure_rate=0.02),
    StepMetrics(step=2, val_reward=0.81, val_tool_calls=4.0, kl_to_ref=0.048, rollouts=0),
]


def test_bars_count_rows_by_success_rate(check):
    assert rate_bars(check) == (RateBar(0.0, 2, "never"), RateBar(0.25, 2, "sometimes"), RateBar(1.0, 1, "always"))
    assert prior_title(check) == "2 of 5 rows (40%) are solved sometimes: go"


def test_a_row_solved_once_in_many_is_not_drawn_as_never(tried):
    (bar,) = rate_bars(check_prior(tried("a", [1.0] + [0.0] * 63)))
    assert (bar.rate, bar.bucket) == (0.05, "sometimes")


def test_partial_credit_teaches_too(check):
    # s1, s2: 1/4 * 3/4 = 0.1875; n1: mean 0.125, (3 * 0.125² + 0.375²) / 4 = 0.046875
    assert [(round(value, 6), bucket) for value, bucket in variances(check)] == [
        (0.1875, "sometimes"), (0.1875, "sometimes"), (0.046875, "never"), (0.0, "never"), (0.0, "always"),
    ]  # fmt: skip
    assert variance_title(check).startswith("3 of 5 rows vary")


def test_the_curves_conclude_in_their_titles():
    assert [panel.title for panel in curve_panels(METRICS)] == [
        "Validation reward 0.52 → 0.81",
        "Tool calls a try 9.1 → 4.0",
        "KL to the reference ends at 0.048, never above 0.050",
        "1 of 16 rollouts lost to infrastructure, left out",
    ]


def test_steps_that_did_not_measure_leave_no_point():
    training, validation = curve_panels(METRICS)[0].series
    assert validation.points == ((0, 0.52), (2, 0.81))
    assert training.points == ((0, 0.5), (1, 0.6))


def test_nothing_measured_is_said():
    titles = [panel.title for panel in curve_panels([])]
    assert titles[:3] == ["Validation reward: not measured", "Tool calls a try: not measured", "KL to the reference: not measured"]
    assert titles[3] == "No rollout lost to infrastructure"


def test_rows_that_moved_alike_are_one_dot(comparison):
    assert [(dot.d_tools, dot.d_reward, dot.rows, dot.kind) for dot in quadrant_dots(comparison)] == [
        (-4.0, 1.0, 2, "better"),
        (1.0, -0.5, 1, "worse"),
        (0.0, 0.0, 1, "same"),
    ]
    assert quadrant_labels(comparison)[1, -1] == "worse, more calls: 1"
    assert quadrant_title(comparison) == "2 of 4 rows better, 1 worse, 1 unchanged"
    assert tools_reach(comparison) == pytest.approx(4.4)


@pytest.mark.filterwarnings("error")
def test_the_files_are_written_and_nothing_global_is_touched(check, comparison, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_prior(check, tmp_path / "prior.png")
    plot_prior(check_prior([]), tmp_path / "no-prior.png")
    plot_curves(METRICS, tmp_path / "curves.png")
    plot_curves([], tmp_path / "no-curves.png")
    plot_quadrants(comparison, tmp_path / "quadrants.png")
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.iterdir())
    assert dict(matplotlib.rcParams) == before


# --- guards -----------------------------------------------------------------------------------------------------------

SPOKE = Finding(guard="kl_slope", step=1, figure=1.2, limit=1.0, action="warn", what="it climbs", cure="see")
STOPPED = Finding(guard="holdout_divergence", step=2, figure=0.3, limit=0.1, action="stop", what="they part", cure="see")
LIMITS = GuardLimits(max_infra_rate=0.02, infra_window_calls=100, max_kl=0.4, human_ceiling=0.9)


def spoken_to():
    lines = [StepMetrics(step=step, val_reward=0.5, kl_to_ref=0.1, flat_groups=0.2, entropy=0.3 - step / 10) for step in range(3)]
    lines[1].findings.append(SPOKE)
    lines[2].findings.append(STOPPED)
    lines[0].holdout, lines[2].holdout = {"strict@2": 0.4}, {"strict@2": 0.1}
    return lines


def test_a_long_title_is_broken_before_it_runs_into_the_picture_beside_it(tmp_path, monkeypatch):
    lines = spoken_to()
    lines[0].holdout = lines[2].holdout = {"strict@2": 0.4, "judge@1": 0.3, "trajectory@3": 0.2}
    titles, named = [], Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda axes, title, **rest: titles.append(title) or named(axes, title, **rest))
    plot_curves(lines, tmp_path / "curves.png")
    assert "under trajectory@3" in titles[0] and max(len(line) for line in titles[0].splitlines()) <= 62


def test_limits_are_bands_on_the_panel_of_their_figure():
    reward, _, kl, infra = curve_panels(spoken_to(), watched_by(LIMITS))
    assert reward.bands == (Band(0.9, "better than people: 0.9"),)
    assert kl.bands == (Band(0.4, "halts above 0.4"),) and infra.bands == (Band(0.02, "stops above 2%"),)


def test_what_a_guard_said_is_marked_on_its_own_figure_else_on_the_reward():
    reward, _, kl, _ = curve_panels(spoken_to(), watched_by(LIMITS))
    assert [(mark.step, mark.ended) for mark in reward.marks] == [(2, True)]
    assert [(mark.step, mark.says, mark.ended) for mark in kl.marks] == [(1, "kl slope: it climbs", False)]


def test_held_out_graders_are_lines_beside_the_reward_and_in_its_title():
    reward = curve_panels(spoken_to())[0]
    assert reward.title == "Validation reward 0.50 → 0.50; under strict@2 0.40 → 0.10"
    (held,) = [series for series in reward.series if series.held_out]
    assert held.points == ((0, 0.4), (2, 0.1))


@pytest.mark.parametrize(("limit", "reach", "drawn"), [(0.4, 0.4 * 1.12, True), (0.6, 0.1 * 1.08, False), (0.05, 0.1 * 1.08, True)])
def test_a_band_is_drawn_where_it_does_not_flatten_the_line(limit, reach, drawn):
    """The highest value is 0.1: a limit up to five times as high is drawn, with a bit of room above it."""
    panel = Panel("t", "a", (Series("s", ((0, 0.0), (1, 0.1))),), 0.01, bands=(Band(limit, "halts"),))
    assert panel.reach == pytest.approx(reach) and bool(panel.far) is not drawn


def test_other_figures_are_drawn_where_they_say_something():
    """Means of all three steps, as there are no more than five: entropy (0.3 + 0.2 + 0.1) / 3."""
    entropy, flat = health_panels(spoken_to(), watched_by(LIMITS))
    assert (
        entropy.title == "Entropy 0.20 → 0.20: no guard spoke" and flat.title == "Groups that all score the same 20% → 20%: no guard spoke"
    )
    assert flat.bands == (Band(0.85, "warns above 85%"),)


def test_all_panels_reach_as_far_as_the_run():
    assert {panel.last_step for panel in (*curve_panels(spoken_to()), *health_panels(spoken_to()))} == {2}
