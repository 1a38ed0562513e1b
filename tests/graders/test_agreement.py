"""Agreement of two judges: against scikit-learn, scipy and statsmodels on drawn tables, and by hand where one can."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.graders.agreement import Changed, Kappa, cohen_kappa, difference, kendall, spearman, weighted_kappa

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = st.lists(st.tuples(st.sampled_from(LEVELS), st.sampled_from(LEVELS)), min_size=1, max_size=60)
SCORES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=60)
REF = GraderRef("numeric", "1", "h")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:statsmodels")  # its z value, where its variance is 0


def table(pairs):
    counts = np.zeros((len(LEVELS), len(LEVELS)))
    for one, other in pairs:
        counts[LEVELS.index(one), LEVELS.index(other)] += 1
    return counts


def test_two_readers_of_fifty_proposals_by_hand():
    """Yes by both 20, by the first alone 5, by the second alone 10, by none 15.

    Observed 35/50 = 0.7; by chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5; kappa 0.2/0.5 = 0.4. Its variance, after Fleiss, Cohen and
    Everitt: 0.4 (1 - 1.1 x 0.6)^2 + 0.3 (1 - 0.9 x 0.6)^2 = 0.10972 on the diagonal, 0.36 (0.1 x 1.1^2 + 0.2 x 0.9^2) = 0.10188
    beside it, less (0.4 - 0.5 x 0.6)^2 = 0.01: 0.2016 / (50 x 0.25) = 0.016128, its root 0.12700.
    """
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    found = cohen_kappa(pairs)
    assert (found.samples, found.observed, found.expected, found.kappa) == (50, pytest.approx(0.7), pytest.approx(0.5), pytest.approx(0.4))
    assert found.error == pytest.approx(math.sqrt(0.016128))
    assert (found.low, found.high) == (pytest.approx(0.4 - 1.959964 * 0.1269961), pytest.approx(0.4 + 1.959964 * 0.1269961))


@given(PAIRS)
def test_kappa_and_its_interval_are_those_of_statsmodels_and_scikit_learn(pairs):
    ones, others = [str(one) for one, _ in pairs], [str(other) for _, other in pairs]
    assume(len(set(ones + others)) > 1)
    _like(cohen_kappa(pairs), cohens_kappa(table(pairs)), cohen_kappa_score(ones, others))


@pytest.mark.parametrize("weights", ["linear", "quadratic"])
@given(pairs=PAIRS)
def test_weighted_kappa_and_its_interval_are_theirs_too(weights, pairs):
    assume(len({level for pair in pairs for level in pair}) > 1)
    ones, others = [LEVELS.index(one) for one, _ in pairs], [LEVELS.index(other) for _, other in pairs]
    theirs = cohens_kappa(table(pairs), wt=weights)
    scikit = cohen_kappa_score(ones, others, labels=range(5), weights=weights)
    _like(weighted_kappa(pairs, LEVELS, weights), theirs, scikit)


def _like(ours, theirs, scikit):
    assert ours.kappa == pytest.approx(theirs.kappa, abs=1e-9) and ours.kappa == pytest.approx(scikit, abs=1e-9)
    assert ours.error == pytest.approx(math.sqrt(max(theirs.var_kappa, 0)), abs=1e-6)
    assert ours.low == pytest.approx(max(theirs.kappa - 1.959964 * ours.error, -1), abs=1e-6)
    if theirs.var_kappa > 1e-12:
        assert ours.low == pytest.approx(max(theirs.kappa_low, -1), abs=1e-6)
        assert ours.high == pytest.approx(min(theirs.kappa_upp, 1), abs=1e-6)


def test_full_agreement_is_one_with_an_interval_of_no_width():
    found = cohen_kappa([(1, 1), (0, 0), (1, 1)])
    assert (found.kappa, found.error, found.low, found.high) == (1, 0, 1, 1)
    assert weighted_kappa([(0.5, 0.5), (1, 1)], LEVELS, "quadratic").kappa == 1


def test_one_category_or_nothing_at_all_leaves_kappa_open():
    assert cohen_kappa([(True, True)] * 5) == Kappa(5, 1, 1, None, None, None, None)
    assert cohen_kappa([]) == Kappa(0, None, None, None, None, None, None)
    assert weighted_kappa([(1.0, 1.0)], [1.0], "linear").kappa is None


def test_who_always_says_the_same_agrees_by_chance_alone():
    assert cohen_kappa([(True, True), (True, False)]).kappa == 0


def test_weights_forgive_near_misses():
    """One in three a quarter off. Linear: 1 - 0.25 is agreed on; quadratic: 1 - 0.0625. Without weights nothing is."""
    pairs = [(0.0, 0.0), (1.0, 1.0), (1.0, 0.75)]
    observed = [kappa.observed for kappa in (cohen_kappa(pairs), *(weighted_kappa(pairs, LEVELS, w) for w in ("linear", "quadratic")))]
    assert observed == [pytest.approx(2 / 3), pytest.approx(2.75 / 3), pytest.approx(2.9375 / 3)]


@given(SCORES)
def test_rank_correlations_with_ties_are_those_of_scipy(pairs):
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    if len(set(ones)) == 1 or len(set(others)) == 1:
        assert spearman(ones, others) is None and kendall(ones, others) is None
    else:
        assert spearman(ones, others) == pytest.approx(stats.spearmanr(ones, others).statistic, abs=1e-9)
        assert kendall(ones, others) == pytest.approx(stats.kendalltau(ones, others).statistic, abs=1e-9)


def test_no_samples_have_no_rank_correlation():
    assert spearman([], []) is None and kendall([], []) is None


def grade(reward, passed=None):
    return Grade(REF, reward, reward is not None and reward >= 0.75 if passed is None else passed)


def test_every_way_in_which_a_sample_can_change_is_named():
    before = {"a": grade(1.0), "b": grade(0.0), "c": grade(0.0), "d": grade(1.0), "e": grade(None), "f": grade(None), "g": grade(0.5)}
    after = {"a": grade(0.5), "b": grade(1.0), "c": grade(0.5), "d": grade(None), "e": grade(1.0), "f": grade(None), "h": grade(1.0)}
    found = difference(before, after)
    assert found.changed == (
        Changed("a", "now fails", 1.0, 0.5),
        Changed("b", "now passes", 0.0, 1.0),
        Changed("c", "other reward", 0.0, 0.5),
        Changed("d", "lost its score", 1.0, None),
        Changed("e", "gained a score", None, 1.0),
    )
    assert (found.samples, found.scored_by_both) == (6, 3)  # a to f; of these a, b and c have both scores
    assert (found.mean_before, found.mean_after) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (found.pass_rate_before, found.pass_rate_after) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_the_same_grades_differ_in_nothing_and_grades_without_scores_compare_with_nothing():
    same = {"a": grade(1.0), "b": grade(0.3), "c": grade(None)}
    found = difference(same, {"a": grade(1.0), "b": grade(0.1 + 0.2), "c": grade(None)})  # 0.30000000000000004
    assert found.changed == () and found.spearman == 1
    empty = difference({"a": grade(None)}, {"a": grade(None)})
    assert (empty.mean_before, empty.pass_rate_after, empty.spearman, empty.changed) == (None, None, None, ())
