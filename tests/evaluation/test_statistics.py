"""Intervals that cover, tests that agree with an independent implementation."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from agent_rft.evaluation import statistics
from agent_rft.evaluation.statistics import (
    EXACT,
    bootstrap_interval,
    holm,
    mcnemar,
    mean_interval,
    pass_at_k,
    student,
    wilcoxon,
)

# --- intervals ----------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_by_hand():
    # 1, 1, 0.5, 0 and the imagined 0 and 1: mean 7/12; squares about it 3 x (5/12)² + (1/12)² + 2 x (7/12)² = 174/144; / 5 / 6 = 0.04028,
    # root 0.20069; t of 5 degrees 2.5706: reach 0.5159
    found = mean_interval([1.0, 1.0, 0.5, 0.0])
    assert (found.estimate, found.low, found.high) == pytest.approx((0.625, 0.0674, 1.0), abs=1e-4)


def test_rows_that_are_all_right_leave_room_for_one_that_is_not():
    # thirty 1s, and 0 and 1: mean 31/32, squares 31/32, / 31 / 32 = 1/1024, root 1/32; t of 31 degrees 2.0395: 0.96875 - 0.06373
    found = mean_interval([1.0] * 30)
    assert (found.estimate, found.low, found.high) == pytest.approx((1.0, 0.9050, 1.0), abs=1e-4)


def test_a_change_that_never_was_is_not_clear_and_told_with_its_bounds():
    found = mean_interval([0.0] * 30, least=-1.0)
    assert not found.clear and found.low == pytest.approx(-found.high) and 0 < found.high < 0.1
    assert found.told("+.2f") == "+0.00 [-0.09, +0.09]"
    assert mean_interval([0.5] * 30, least=-1.0).clear and mean_interval([-0.5] * 30, least=-1.0).clear


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 50))
def test_an_interval_holds_its_mean_and_stays_on_the_scale(values, times):
    found = mean_interval(values)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    repeated = mean_interval(values * (times + 1))
    assert repeated.high - repeated.low <= found.high - found.low + 1e-9


def _rows(draw, rows, tries, share, clustered):
    """One mean a row. Clustered: most rows are nearly always right or nearly always wrong."""
    chance = draw.beta(share, 1 - share, (3000, rows)) if clustered else np.full((3000, rows), share)
    return draw.binomial(tries, chance) / tries


def _halves(draw, rows, tries, share):
    """Rewards of 0, 0.5 and 1; `share` of the tries earn something, six in ten of these a half."""
    return draw.choice([0.0, 0.5, 1.0], p=[1 - share, 0.6 * share, 0.4 * share], size=(3000, rows, tries)).mean(axis=2)


def _covered(samples, truth, **bounds):
    intervals = [mean_interval(sample, **bounds) for sample in samples.tolist()]
    return np.mean([one.low <= truth <= one.high for one in intervals])


SHAPES = list(itertools.product((30, 60, 200), (1, 4)))


@pytest.mark.parametrize(("rows", "tries"), SHAPES)
def test_the_interval_of_a_reward_covers_it(rows, tries):
    draw = np.random.default_rng(rows + tries)
    for share in (0.03, 0.3, 0.95):
        assert _covered(_rows(draw, rows, tries, share, clustered=False)[:1500], share) >= 0.93
        assert _covered(_rows(draw, rows, tries, share, clustered=True)[:1500], share) >= 0.93
    assert _covered(_halves(draw, rows, tries, 0.1)[:1500], 0.07) >= 0.93  # 0.1 x (0.6 x 0.5 + 0.4)


@pytest.mark.parametrize(("rows", "tries"), SHAPES)
def test_the_interval_of_a_change_covers_it(rows, tries):
    draw = np.random.default_rng(rows + tries)
    easy = _rows(draw, rows, tries, 0.93, clustered=False), _rows(draw, rows, tries, 0.98, clustered=False)
    hard = _rows(draw, rows, tries, 0.2, clustered=True), _rows(draw, rows, tries, 0.5, clustered=False)
    held = (draw.random((3000, rows)) < 0.6) * 1.0
    few = held, np.where(draw.random((3000, rows)) < 0.05, 1.0, held)  # 1 in 20 of the 40% that are wrong turns right: +0.02
    for (before, after), truth in ((easy, 0.05), (hard, 0.3), (few, 0.02)):
        assert _covered((after - before)[:1500], truth, least=-1.0) >= 0.93


def test_students_own_interval_and_the_bootstrap_do_not_cover():
    """Why there are imagined rows: of thirty rows of which 3% are right, 40% of the samples hold none that is."""
    samples = _rows(np.random.default_rng(0), 30, 1, 0.03, clustered=False)[:400]
    of_student = [stats.t.interval(0.95, 29, one.mean(), max(stats.sem(one), 1e-12)) for one in samples]
    assert np.mean([low <= 0.03 <= high for low, high in of_student]) < 0.7
    assert np.mean([one.low <= 0.03 <= one.high for one in map(bootstrap_interval, samples.tolist())]) < 0.7


@pytest.mark.parametrize(("freedom", "below"), list(itertools.product((1, 2, 5, 31, 124, 2000), (0.9, 0.975, 0.995))))
def test_the_quantiles_of_t_are_scipys(freedom, below):
    assert student(freedom, below) == pytest.approx(stats.t.ppf(below, freedom), rel=1e-4)


def test_the_bootstrap_is_close_to_scipys_and_to_students_on_even_data():
    values = np.random.default_rng(1).normal(5, 2, 120)
    found = bootstrap_interval(values.tolist())
    reference = stats.bootstrap((values,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(2)).confidence_interval
    width = reference.high - reference.low
    assert found.low == pytest.approx(reference.low, abs=0.1 * width) and found.high == pytest.approx(reference.high, abs=0.1 * width)
    low, high = stats.t.interval(0.95, 119, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * width)


def test_the_bootstrap_is_the_textbooks():
    """One resample at a time, from the same draws."""
    values = [3.0, 8.0, 1.0, 1.0, 20.0, 4.0]
    draws = np.random.default_rng(7).integers(0, 6, (2000, 6))
    strays = []
    for draw in draws:
        picked = [values[at] for at in draw]
        error = stats.sem(picked)
        strays.append((np.mean(picked) - np.mean(values)) / error if error > 0 else 0.0)
    low, high = np.quantile(strays, [0.025, 0.975]) * stats.sem(values)
    found = bootstrap_interval(values, seed=7)
    assert (found.low, found.high) == pytest.approx((np.mean(values) - high, np.mean(values) - low))


def test_the_bootstrap_of_tool_calls_covers():
    draw = np.random.default_rng(3)
    changes = draw.poisson(2, (500, 40)) - draw.poisson(6, (500, 40))  # shorter by 4 calls
    intervals = [bootstrap_interval(one) for one in changes.tolist()]
    assert np.mean([one.low <= -4 <= one.high for one in intervals]) >= 0.92  # 500 samples: one standard error is 1%


def test_the_bootstrap_of_many_rows_takes_no_more_memory_and_is_the_same_in_pieces(monkeypatch):
    """2,000 draws of 5,000 rows are 80 MB as indices, as much as values, and as much as deviations."""
    values = np.random.default_rng(5).lognormal(size=5000).tolist()
    tracemalloc.start()
    at_once = bootstrap_interval(values)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40e6
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 1_700_000)  # 340 draws at a time, and 300 at the end
    assert bootstrap_interval(values) == at_once


@pytest.mark.parametrize("values", [[1.0, 3.0], [1.0, 1.0, 2.0], [0.0] * 29 + [1.0]])
def test_where_many_draws_are_all_alike_the_interval_is_students(values):
    """The quantiles would be those draws' own zeros: two rows that differ had an interval without width."""
    found = bootstrap_interval(values)
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-4)
    assert found.low < found.estimate < found.high


def test_one_row_tells_no_spread_and_the_same_seed_the_same_interval():
    assert bootstrap_interval([3.0]) is None
    assert bootstrap_interval([2.0, 2.0, 2.0]) == bootstrap_interval([2.0, 2.0, 2.0], seed=5)  # no spread at all
    assert bootstrap_interval([1.0, 2.0, 5.0]) == bootstrap_interval([1.0, 2.0, 5.0])


# --- pass@k -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "tries", "k"), [(0, 4, 2), (1, 4, 2), (2, 5, 3), (3, 4, 2), (4, 4, 1), (1, 3, 3)])
def test_pass_at_k_is_the_share_of_choices_that_hold_a_success(successes, tries, k):
    outcomes = [True] * successes + [False] * (tries - successes)
    choices = [any(choice) for choice in itertools.combinations(outcomes, k)]
    assert pass_at_k(successes, tries, k) == pytest.approx(sum(choices) / len(choices))


# --- tests --------------------------------------------------------------------------------------------------------------


def test_the_rank_test_by_hand():
    # +1 +2 +3 +4: all upward is one of 16 ways, and so is all downward
    assert wilcoxon([1.0, 2.0, 3.0, 4.0]) == pytest.approx(2 / 16)
    assert wilcoxon([0.0, 0.0]) == 1.0 and wilcoxon([]) == 1.0


def test_the_rank_test_is_scipys_where_no_sizes_are_equal():
    draw = np.random.default_rng(0)
    for rows in (5, 12, 40):
        changes = draw.normal(0.3, 1, rows)
        assert wilcoxon(changes.tolist()) == pytest.approx(stats.wilcoxon(changes, method="exact").pvalue)


def test_the_rank_test_is_exact_with_equal_sizes_and_rows_that_did_not_move():
    draw = np.random.default_rng(1)
    for _ in range(3):
        changes = draw.choice([-1.0, -0.5, 0.0, 0.5, 1.0], p=[0.1, 0.1, 0.3, 0.2, 0.3], size=14)
        moved = changes[changes != 0]
        every = stats.wilcoxon(moved, method=stats.PermutationMethod(n_resamples=2**14)).pvalue  # all 2^n ways to sign them
        assert wilcoxon(changes.tolist()) == pytest.approx(every)


def test_the_rank_test_of_many_rows_is_scipys_approximation():
    changes = np.random.default_rng(2).choice([-1.0, -0.5, 0.0, 0.5, 1.0], p=[0.2, 0.1, 0.3, 0.15, 0.25], size=600)
    assert sum(changes != 0) > EXACT
    assert wilcoxon(changes.tolist()) == pytest.approx(stats.wilcoxon(changes, method="approx", correction=False).pvalue)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_test_of_flips_is_statsmodels(gained, lost):
    assert mcnemar(gained, lost) == pytest.approx(statsmodels_mcnemar([[5, gained], [lost, 7]], exact=True).pvalue)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=20)  # statsmodels takes 20 ms and more for each
def test_holms_correction_is_statsmodels(ps):
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])


def test_no_p_is_adjusted_to_nothing():
    assert holm([]) == () and not math.isnan(holm([0.01])[0])
