"""A release's tests: who is paired with whom, what speaks against a candidate, and that looking often costs nothing."""

import datetime as dt
import json
import math
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from agent_rft.contracts.errors import FaultsFound
from agent_rft.contracts.releases import KPIS, Policy, Session
from agent_rft.release import tests as release_tests
from agent_rft.release.tests import CURVE_POINTS, MOST_WAITING, Curve, Pairing, new_tests

AT = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
ARMS = st.sampled_from(["live", "candidate"])


def session(arm: str, *, shadow: bool = False, **figures: float | None) -> Session:
    return Session(arm=arm, session="s", closed_at=AT, turns=1, shadow=shadow, **figures)


def pairs(*arrivals: tuple[str, float]) -> list[tuple[float, float]]:
    pairing = Pairing()
    return [pytest.approx(pair) for arm, value in arrivals if (pair := pairing.take(arm, value)) is not None]


def c(value: float) -> tuple[str, float]:
    return "candidate", value


def live(value: float) -> tuple[str, float]:
    return "live", value


def test_a_candidate_session_is_paired_with_all_live_ones_since_the_last_pair():
    assert pairs(live(0.2), live(0.4), c(0.9), live(0.0), c(0.1)) == [(0.9, 0.3), (0.1, 0.0)]


def test_candidate_sessions_wait_their_turn_for_a_live_one():
    assert pairs(c(0.5), c(0.7), live(0.1), live(0.3), live(1.0), c(0.2)) == [(0.5, 0.1), (0.7, 0.3), (0.2, 1.0)]


def test_few_wait_the_last_of_them_together():
    waiting = [c(n / 10) for n in range(1, 7)]  # .1 .2 .3 and .4 .5 .6 together
    assert pairs(*waiting, *[live(0.0)] * 5) == [(0.1, 0.0), (0.2, 0.0), (0.3, 0.0), (0.5, 0.0)]


@given(st.lists(ARMS, max_size=60), st.randoms(use_true_random=False))
def test_pairs_hang_on_the_order_of_the_arms_alone(arms, luck):
    """Else a candidate could be good or bad by who it was held against."""
    one, other = Pairing(), Pairing()
    for arm in arms:
        assert (one.take(arm, 0.0) is None) == (other.take(arm, luck.random()) is None)
        assert not (one.live.n and one.candidates) and len(one.candidates) <= MOST_WAITING
    assert [waiting.n for waiting in one.candidates] == [waiting.n for waiting in other.candidates]


def fed(policy: Policy, pairs: int, *, shadow: bool = False, live: dict[str, float], candidate: dict[str, float]) -> release_tests.Tests:
    tests = new_tests(policy)
    for _ in range(pairs):
        tests.take(session("live", shadow=shadow, **live))
        tests.take(session("candidate", shadow=shadow, **candidate))
    return tests


WORST = {"live": {"reward": 1.0}, "candidate": {"reward": 0.0}}


def test_alpha_is_dealt_out_to_figures_and_to_the_shadow():
    tests = new_tests(Policy())
    assert sum(test.alpha for test in [*tests.canary, *tests.shadow]) <= 0.05 + 1e-12
    of_reward = {test.kpi: test.alpha for test in tests.canary}["reward"], {test.kpi: test.alpha for test in tests.shadow}["reward"]
    assert of_reward == (pytest.approx(0.05 * 0.4 * 0.8), pytest.approx(0.05 * 0.4 * 0.2))
    whole = new_tests(Policy(shadow_sessions=0))
    assert not whole.shadow and {test.kpi: test.alpha for test in whole.canary}["reward"] == pytest.approx(0.05 * 0.4)


def test_the_worst_candidate_is_refused_at_the_tenth_pair():
    # The capital of nine is 374.1 / 6 = 62.35, of ten 685.98 / 6 = 114.33; what is needed is 1 / (.05 * .4 * .8) = 62.5.
    assert fed(Policy(), 9, **WORST).rejected() is None
    test, shadow = fed(Policy(), 10, **WORST).rejected()
    assert (test.kpi, shadow) == ("reward", False)


def test_the_shadow_is_tested_apart():
    # Here 1 / (.05 * .4 * .2) = 250 is needed; eleven give (1.9^11 + 1.5^11 + ...) / 6 = 212, twelve 395.
    assert fed(Policy(), 11, shadow=True, **WORST).rejected() is None
    tests = fed(Policy(), 12, shadow=True, **WORST)
    test, shadow = tests.rejected()
    assert (test.kpi, shadow) == ("reward", True)
    assert all(bet.n == 0 for bet in tests.promotions.values()) and all(test.bet.n == 0 for test in tests.canary)


def test_tools_that_fail_in_the_shadow_speak_against_nobody():
    assert fed(Policy(), 200, shadow=True, live={}, candidate={"tool_failures": 1.0}).rejected() is None
    assert fed(Policy(), 200, live={}, candidate={"tool_failures": 1.0}).rejected()[0].kpi == "tool_failures"


@pytest.mark.parametrize("kpi", ["errors", "tool_failures", "slow", "unsafe", "reward", "holdout"])
def test_each_figure_is_tested_in_its_own_direction(kpi):
    worse, better = ({kpi: 0.0}, {kpi: 1.0}) if kpi in ("reward", "holdout") else ({kpi: 1.0}, {kpi: 0.0})
    assert fed(Policy(), 60, live=better, candidate=worse).rejected()[0].kpi == kpi
    assert fed(Policy(), 60, live=worse, candidate=better).rejected() is None


def test_a_figure_without_alpha_is_shown_and_never_decides():
    tests = fed(Policy(spent_on={"errors": 0.5}), 300, **WORST)
    assert tests.rejected() is None
    assert tests.figures()["reward"]["difference"] == -1 and tests.figures()["reward"]["bound"] is None


def test_what_is_unsafe_goes_before_what_is_more_certain():
    tests = fed(Policy(), 2, live={"reward": 1.0}, candidate={"reward": 0.0, "unsafe": 1.0})
    assert tests.rejected()[0].kpi == "unsafe"
    for _ in range(60):
        tests.take(session("live", reward=1.0))
        tests.take(session("candidate", reward=0.0))
    rejected = {test.kpi: test.bet.highest_log_e for test in tests.canary if test.rejected}
    assert rejected["reward"] > rejected["unsafe"] and tests.rejected()[0].kpi == "unsafe"


def test_unsafe_live_sessions_speak_against_nobody():
    assert fed(Policy(), 100, live={"unsafe": 1.0}, candidate={}).rejected() is None


def test_what_is_tolerated_speaks_against_nobody():
    """One session in a hundred is slower: within the 2% that are borne."""
    for tolerance, refused in (({"slow": 0.02}, None), ({}, "slow")):
        tests = new_tests(Policy(tolerance=tolerance))
        for number in range(2000):
            tests.take(session("live"))
            tests.take(session("candidate", slow=float(number % 100 == 0)))
        assert (tests.rejected()[0].kpi if tests.rejected() else None) == refused


def test_what_is_not_graded_is_not_paired():
    tests = new_tests(Policy())
    for arm, reward in (("live", None), ("candidate", 0.0), ("live", 1.0), ("candidate", None)):
        tests.take(session(arm, reward=reward))
    figures = tests.figures()
    assert (figures["reward"]["n"], figures["reward"]["candidate_sessions"], figures["errors"]["n"]) == (1, 1, 2)


def test_a_shock_to_both_arms_speaks_against_neither():
    tests = new_tests(Policy())
    for reward in [1.0] * 50 + [0.0] * 200:
        tests.take(session("live", reward=reward, errors=1 - reward))
        tests.take(session("candidate", reward=reward, errors=1 - reward))
    assert tests.rejected() is None and tests.figures()["reward"]["p"] == 1


def test_no_worse_by_the_margin_is_shown_by_as_many_good_pairs_as_it_takes():
    # Alike: each outcome is .5, with m = .6 on the mirrored side: f / .4 * .1 = f / 4 is won each time. After ten pairs that is
    # (1.225^10 + 1.125^10 + 1.0625^10 + 1.03^10 + 1.0125^10 + 1.00375^10) / 6
    # = (7.6097 + 3.2473 + 1.8335 + 1.3439 + 1.1323 + 1.0381) / 6.
    alike = {"live": {"reward": 1.0}, "candidate": {"reward": 1.0}}
    wide = Policy(margin=0.2, rate_margin=0.2, promote_alpha=0.05)
    tests = fed(wide, 10, **alike)
    assert math.exp(tests.promotions["reward"].log_e) == pytest.approx(16.2048 / 6, abs=0.0001)
    assert not tests.noninferior()
    assert fed(wide, 30, **alike).noninferior()
    assert not fed(Policy(margin=0.0), 300, **alike).noninferior()  # alike is not better
    assert not fed(Policy(margin=0.2), 300, live={"reward": 0.75}, candidate={"reward": 0.5}).noninferior()


@pytest.mark.parametrize("kpi", ["errors", "tool_failures", "slow"])
def test_a_good_reward_alone_shows_nothing_of_the_rest(kpi):
    # 20 of 100 sessions of the candidate against none: what is bet on has a mean of .6, and it would have to be shown below .55.
    tests = new_tests(Policy(margin=0.2))
    for n in range(100):
        tests.take(session("live", reward=1.0))
        tests.take(session("candidate", reward=1.0, **{kpi: float(n % 5 == 0)}))
    assert tests.promotions["reward"].rejects(0.05) and not tests.noninferior()
    assert tests.least_shown()[0] == kpi
    assert fed(Policy(margin=0.2), 100, live={"reward": 1.0}, candidate={"reward": 1.0}).noninferior()


def test_figures_say_what_they_were_made_of():
    tests = new_tests(Policy())
    for arm, reward in (("live", 1.0), ("live", 0.5), ("candidate", 0.25), ("live", 1.0), ("candidate", 1.0)):
        tests.take(session(arm, reward=reward, slow=1 - reward))
    said = tests.figures()
    assert set(said) == {*KPIS, "promotion"}
    # Pairs: .25 against .75 and 1 against 1, so a difference of -.25; of all sessions the means are .625 and .8333.
    of_reward = {name: said["reward"][name] for name in ("n", "candidate", "live", "difference", "candidate_sessions", "live_sessions")}
    assert of_reward == {
        "n": 2, "candidate": 0.625, "live": pytest.approx(2.5 / 3), "difference": -0.25, "candidate_sessions": 2, "live_sessions": 3,
    }  # fmt: skip
    assert said["slow"]["difference"] == 0.25  # the larger the worse, said as it is
    assert said["reward"]["low"] <= -0.25 <= said["reward"]["high"]
    assert said["slow"]["low"] == pytest.approx(-said["reward"]["high"])
    assert said["unsafe"]["low"] == pytest.approx(0, abs=1e-9) and said["unsafe"]["high"] > 0.5
    assert said["reward"]["curve"] == [[1, pytest.approx(math.log(1 + 0.5 * 1.835 / 6), abs=0.001)], [2, said["reward"]["curve"][1][1]]]
    assert said["promotion"]["noninferior"] is False
    json.dumps(said, allow_nan=False)


def test_figures_before_anything_was_seen_are_figures_as_well():
    said = new_tests(Policy()).figures()
    assert said["reward"]["n"] == 0 and said["reward"]["difference"] is None and said["reward"]["p"] == 1
    json.dumps(said, allow_nan=False)


def test_a_curve_is_thinned_and_keeps_its_ends():
    curve = Curve()
    for n in range(1, 10_001):
        curve.add(n, n / 10)
    ns = [n for n, _ in curve.points]
    assert CURVE_POINTS / 4 < len(ns) < CURVE_POINTS
    assert {b - a for a, b in pairwise(ns)} == {curve.every} and ns[-1] > 10_000 - curve.every
    tests = fed(Policy(), 1001, live={}, candidate={})
    assert tests.figures()["errors"]["curve"][-1][0] == 1001 and "curve" not in tests.figures(curve=False)["errors"]


SESSIONS = st.lists(
    st.builds(
        session, ARMS, shadow=st.booleans(), reward=st.none() | st.floats(0, 1), holdout=st.none() | st.floats(0, 1),
        errors=st.sampled_from([0.0, 1.0]), slow=st.sampled_from([0.0, 1.0]), unsafe=st.sampled_from([0.0, 1.0]),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=50)
@given(SESSIONS, SESSIONS)
def test_tests_go_through_json_unchanged_and_go_on_alike(before, after):
    tests = new_tests(Policy())
    for one in before:
        tests.take(one)
    back = msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(tests), allow_nan=False)), release_tests.Tests)
    assert back == tests
    for one in after:
        tests.take(one)
        back.take(one)
    assert back == tests and back.figures() == tests.figures()


def test_equal_candidates_are_refused_no_oftener_than_alpha_at_any_look():
    luck, runs, policy, refused = random.Random(9), 300, Policy(alpha=0.2, shadow_sessions=0, spent_on={"reward": 0.5, "errors": 0.5}), 0
    for _ in range(runs):
        tests = new_tests(policy)
        for _ in range(150):  # whichever arm comes next, and both arms are alike
            arm = luck.choice(("live", "candidate"))
            tests.take(session(arm, reward=luck.choices((0.0, 0.5, 1.0), (3, 2, 5))[0], errors=float(luck.random() < 0.1)))
        refused += tests.rejected() is not None
    assert 0 < refused <= stats.binom.ppf(0.999, runs, 0.2)


def test_a_policy_that_cannot_be_followed_tests_nothing():
    with pytest.raises(FaultsFound, match="alpha"):
        new_tests(Policy(alpha=2.0))
