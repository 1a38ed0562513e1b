"""Bets: fair under the null whatever came before, decided sooner the worse it is, and the same after JSON."""

import itertools
import json
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from agent_rft.release.betting import FRACTIONS, Bet, Outcomes, bound

OUTCOMES = st.lists(st.floats(0, 1), max_size=30)
MEANS = st.floats(0.01, 0.995)


def bet_on(m: float, *outcomes: float) -> Bet:
    bet = Bet(m=m)
    for x in outcomes:
        bet.update(x)
    return bet


def capital(bet: Bet) -> float:
    return math.exp(bet.log_e)


def test_capital_by_hand():
    # With m = .5 a 0 multiplies each bettor's capital by 1 + f and a 1 by 1 - f. Over .015 .05 .12 .25 .5 .9 the mean of f is
    # 1.835 / 6, that of its square 1.139625 / 6.
    assert capital(bet_on(0.5, 0.0)) == pytest.approx(1 + 1.835 / 6)
    assert capital(bet_on(0.5, 1.0)) == pytest.approx(1 - 1.835 / 6)
    assert capital(bet_on(0.5, 1.0, 0.0)) == pytest.approx(1 - 1.139625 / 6)
    # A rate: one event where 1 in 100 is borne: 1 + f * .99 / .01 = 1 + 99 f.
    assert capital(bet_on(0.99, 0.0)) == pytest.approx(1 + 99 * 1.835 / 6)


def test_ten_worst_outcomes_by_hand():
    bet = bet_on(0.5, *[0.0] * 10)  # (1.9^10 + 1.5^10 + 1.25^10 + 1.12^10 + 1.05^10 + 1.015^10) / 6 = 685.980 / 6
    assert capital(bet) == pytest.approx(114.330, abs=0.001)
    assert bet.p_value == pytest.approx(1 / 114.330, abs=1e-7)
    assert bet.rejects(0.00875) and not bet.rejects(0.0087)


def test_a_fair_coin_leaves_the_capital_where_it_was_on_average_over_all_that_can_happen():
    every = [capital(bet_on(0.5, *coins)) for coins in itertools.product((0.0, 1.0), repeat=8)]
    assert math.fsum(every) / 2**8 == pytest.approx(1, abs=1e-12)


@given(OUTCOMES, MEANS, st.floats(0, 1), st.floats(0, 1))
def test_no_outcome_with_a_mean_of_m_or_more_adds_capital_on_average(before, m, down, up):
    low, high = m * down, m + (1 - m) * up
    chance = 1.0 if high <= low else (m - low) / (high - low)  # of the higher one: together they have the mean m
    told = bet_on(m, *before)
    after = chance * capital(bet_on(m, *before, high)) + (1 - chance) * capital(bet_on(m, *before, low))
    assert after == pytest.approx(capital(told), rel=1e-9)
    assert capital(bet_on(m, *before, high)) <= capital(told) * (1 + 1e-9)


@given(OUTCOMES, MEANS)
def test_its_state_goes_through_json_unchanged_and_goes_on_alike(outcomes, m):
    bet = bet_on(m, *outcomes)
    back = msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(bet))), Bet)
    assert back == bet
    bet.update(0.3)
    back.update(0.3)
    assert back == bet


def test_what_once_was_enough_stays_enough():
    bet = bet_on(0.5, *[0.0] * 12, *[1.0] * 40)
    assert bet.log_e < 0 and bet.rejects(0.01)


def test_twenty_thousand_outcomes_overflow_nothing():
    for outcome in (0.0, 1.0):
        bet = bet_on(0.5, *[outcome] * 20_000)
        assert math.isfinite(bet.log_e) and all(math.isfinite(log) for log in bet.logs)
        assert json.loads(json.dumps(msgspec.to_builtins(bet)))["log_e"] == bet.log_e


def test_an_alpha_of_nothing_is_never_reached():
    assert bound(0) == math.inf and not bet_on(0.5, *[0.0] * 5000).rejects(0)


@pytest.mark.parametrize("x", [-0.01, 1.01, math.nan, math.inf])
def test_an_outcome_out_of_range_is_refused_and_changes_nothing(x):
    bet = bet_on(0.5, 0.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        bet.update(x)
    assert bet == bet_on(0.5, 0.0)


@pytest.mark.parametrize("m", [0, 1, -0.1, math.nan])
def test_a_mean_that_nothing_can_speak_against_is_refused(m):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Bet(m=m)


def test_a_state_of_other_fractions_is_refused():
    with pytest.raises(ValueError, match="capitals"):
        Bet(m=0.5, logs=[0.0] * (len(FRACTIONS) - 1))


def test_false_alarms_over_all_looks_stay_within_alpha():
    luck, runs, alpha = random.Random(5), 500, 0.1
    alarms = sum(bet_on(0.6, *luck.choices((0.0, 0.5, 1.0), (0.3, 0.2, 0.5), k=300)).rejects(alpha) for _ in range(runs))
    assert 0 < alarms <= stats.binom.ppf(0.999, runs, alpha)


# --- bounds of the mean -------------------------------------------------------------------------------------------------------


def outcomes_of(*outcomes: float) -> Outcomes:
    kept = Outcomes()
    for x in outcomes:
        kept.add(x)
    return kept


def test_bounds_are_where_a_bet_begins_to_refuse():
    came = [0.0, 0.25, 0.5, 1.0, 0.25, 0.0, 0.0, 0.5] * 6  # all on the grid
    low, high = outcomes_of(*came).mean_within(0.1)
    assert low < sum(came) / len(came) < high
    for m, outcomes in ((high, came), (1 - low, [1 - x for x in came])):
        assert bet_on(m + 1e-9, *outcomes).log_e >= bound(0.05) > bet_on(m - 1e-9, *outcomes).log_e


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_bounds_off_the_grid_are_never_too_tight(came):
    kept = outcomes_of(*came)
    assert kept.mean == pytest.approx(sum(came) / len(came), abs=1e-9)
    low, high = kept.mean_within(0.1)
    assert 0 <= low <= kept.mean + 1e-9 and kept.mean - 1e-9 <= high <= 1
    if high < 0.999:
        assert bet_on(high + 1e-9, *came).log_e >= bound(0.05) - 1e-6
    if low > 0.001:
        assert bet_on(1 - low + 1e-9, *[1 - x for x in came]).log_e >= bound(0.05) - 1e-6


def test_nothing_seen_says_nothing():
    assert Outcomes().mean_within(0.05) == (0, 1) and Outcomes().mean is None


def test_bounds_hold_the_mean_at_all_looks():
    luck, runs, missed = random.Random(3), 150, 0
    for _ in range(runs):
        kept, held = Outcomes(), True
        for number in range(1, 121):
            kept.add(luck.choices((0.0, 0.5, 1.0), (0.3, 0.2, 0.5))[0])
            if number % 20 == 0:
                low, high = kept.mean_within(0.2)
                held = held and low <= 0.6 <= high
        missed += not held
    assert 0 < missed <= stats.binom.ppf(0.999, runs, 0.2)
