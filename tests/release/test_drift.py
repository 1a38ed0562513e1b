"""Drift is found by a test that may be looked at every minute: it stays quiet over what is alike, and finds what is not."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import median

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.rollouts import Limits, Rollout, ToolResult, Turn
from agent_rft.release.betting import Bet
from agent_rft.release.drift import (
    ALPHA,
    CALM_RUNS,
    LEAST,
    MONITORS,
    Comparison,
    Measured,
    Seen,
    Watch,
    compare_with,
    cuts_of,
    highest_share,
    kolmogorov_smirnov,
    measured,
    psi,
    spans,
    unknown_share,
    watch_numbers,
    watch_tools,
)

numbers = st.lists(st.sampled_from((0.0, 1.0, 2.5, 7.0, 40.0)) | st.floats(-1e6, 1e6), min_size=LEAST, max_size=90)


# --- figures that stand beside -------------------------------------------------------------------------------------------


def test_psi_worked_out_by_hand():
    # (.25 - .5) ln(.25/.5) + (.75 - .5) ln(.75/.5) = .25 ln 2 + .25 ln 1.5 = .17329 + .10137
    assert psi([0.5, 0.5], [0.25, 0.75], 100, 100) == pytest.approx(0.27465, abs=1e-5)
    assert psi([0.5, 0.5], [0.5, 0.5], 100, 100) == 0
    # an empty bin counts as half a run: (.1 - .005) ln(.1/.005) + (.9 - 1) ln(.9/1) = .095 x 2.99573 + .1 x .10536
    assert psi([0.0, 1.0], [0.1, 0.9], 100, 50) == pytest.approx(0.29513, abs=1e-5)
    assert psi([0.0, 1.0], [0.0, 1.0], 100, 50) == 0


def test_kolmogorov_smirnov_against_another_implementation():
    scipy = pytest.importorskip("scipy.stats")
    special = pytest.importorskip("scipy.special")
    rng = random.Random(3)
    for shift, n, m in ((0.0, 80, 120), (0.3, 200, 150), (1.0, 60, 50), (0.5, 500, 500)):
        one, other = [rng.gauss(0, 1) for _ in range(n)], [round(rng.gauss(shift, 1), 1) for _ in range(m)]
        found, expected = kolmogorov_smirnov(one, other), scipy.ks_2samp(one, other)
        root = math.sqrt(n * m / (n + m))
        assert found.statistic == pytest.approx(expected.statistic)
        assert found.p == pytest.approx(special.kolmogorov((root + 0.12 + 0.11 / root) * found.statistic), abs=1e-12)
        assert found.p == pytest.approx(expected.pvalue, abs=0.01)
    assert kolmogorov_smirnov([1.0] * 50, [1.0] * 60) == (0, 1)
    assert kolmogorov_smirnov([0.0] * 50, [1.0] * 50).p < 1e-12


# --- bins ----------------------------------------------------------------------------------------------------------------


def test_a_value_that_many_share_has_a_bin_of_its_own():
    assert cuts_of([5.0] * 60) == [5.0, math.nextafter(5.0, math.inf)]  # below, 5, above
    sample = [0.0] * 57 + [1.0] * 3
    watch = watch_numbers(sample, 0.01)
    assert watch.cuts == [0.0, 0.5, math.nextafter(1.0, math.inf)] and watch.shares == [0.0, 0.95, 0.05, 0.0]
    assert watch.labels() == ["below 0", "0 to 0.5", "0.5 to 1", "more than 1"]


@settings(max_examples=40)
@given(numbers)
def test_the_bins_hold_the_whole_sample_and_none_too_much(sample):
    watch = watch_numbers(sample, 0.01)
    assert sum(watch.shares) == pytest.approx(1) and watch.shares[0] == watch.shares[-1] == 0
    assert all(left < right for left, right in pairwise(watch.cuts)) and len(watch.labels()) == len(watch.shares)
    most_alike = max(sample.count(value) for value in sample) / len(sample)
    assert max(watch.shares) <= most_alike + 0.2 + 2 / len(sample)


def test_what_a_bin_may_hold_worked_out_by_hand():
    # n KL(0, p) = -n ln(1 - p) = ln(1/alpha): of 100 runs none, alpha .05: p = 1 - .05^(1/100) = .029513
    assert highest_share(0.0, 100, 0.05) == pytest.approx(0.029513, abs=1e-6)
    found = highest_share(0.3, 200, 0.01)
    assert 200 * (0.3 * math.log(0.3 / found) + 0.7 * math.log(0.7 / (1 - found))) == pytest.approx(math.log(100), rel=1e-6)
    assert highest_share(1.0, 100, 0.05) == 1.0


# --- one monitor -----------------------------------------------------------------------------------------------------------


def test_the_capital_is_that_of_bets_on_every_span_of_bins():
    rng = random.Random(7)
    watch = watch_numbers([rng.gauss(0, 1) for _ in range(200)], 0.01)
    values = [rng.gauss(0.4, 1.2) for _ in range(230)]
    for first, end in ((0, 20), (20, 21), (21, 60), (60, 100), (100, 230)):  # looks at different times make no difference
        watch.take(values[first:end])
    total = 0.0
    for time, brought in enumerate((1 / 2, 1 / 6, 1 / 12, 1 / 20, 1 / 30)):  # who joins after 0, 50, 100, 150, 200 runs
        bets = [Bet(m=1 - most) for most in watch.most]
        for value in values[50 * time :]:
            place = sum(value >= cut for cut in watch.cuts)
            for bet, span in zip(bets, spans(len(watch.shares), in_order=True), strict=True):
                bet.update(0.0 if span.start <= place < span.stop else 1.0)
        total += brought * sum(math.exp(bet.log_e) for bet in bets) / len(bets)
    assert watch.log_e == pytest.approx(math.log(total))


def healthy(rng: random.Random) -> tuple[Watch, list]:
    kind = rng.randrange(5)
    make = {
        0: lambda: round(rng.lognormvariate(5, 0.6)),
        1: lambda: rng.choice([1, 1, 2, 2, 2, 3, 4]),
        2: lambda: rng.choice([0, 0.5, 1, 1]),
        3: lambda: rng.gauss(0, 1),
        4: lambda: {"search": 1.0} if rng.random() < 0.5 else {"search": 0.5, "read": 0.5},
    }[kind]
    sample = [make() for _ in range(rng.choice((60, 200, 500)))]
    return (watch_tools if kind == 4 else watch_numbers)(sample, ALPHA), [make() for _ in range(300)]


def test_of_500_streams_that_are_like_their_reference_at_most_alpha_raise_an_alarm():
    """Looked at after every single run. With a true rate of .05 more than 38 of 500 come once in two hundred times."""
    rng = random.Random(11)
    alarms = sum(watch.take(live) is True for watch, live in (healthy(rng) for _ in range(500)))
    assert alarms <= 38


@pytest.mark.parametrize(
    ("before", "after", "within"),
    [
        (lambda rng: rng.lognormvariate(5, 0.6), lambda rng: 1.5 * rng.lognormvariate(5, 0.6), 150),  # half as long again
        (lambda rng: rng.choice([1, 1, 2, 2, 2, 3, 4]), lambda rng: 1 + rng.choice([1, 1, 2, 2, 2, 3, 4]), 60),
        (lambda rng: 0.0, lambda rng: float(rng.random() < 0.2), 80),  # tools that never failed fail in a fifth of the runs
        (lambda rng: 5.0, lambda rng: 3.0, 15),  # shorter is a difference, too
        (lambda rng: rng.gauss(0, 1), lambda rng: rng.gauss(0.5, 1), 400),
    ],
)
def test_a_planted_shift_is_found(before, after, within):
    rng, found = random.Random(5), []
    for _ in range(7):
        watch = watch_numbers([before(rng) for _ in range(600)], ALPHA / len(MONITORS))
        while watch.n < 2000 and not watch.take([after(rng) for _ in range(5)]):
            pass
        found.append(watch.n)
    assert median(found) <= within, found


def test_a_shift_after_a_long_calm_is_found_soon():
    rng = random.Random(6)
    watch = watch_numbers([rng.gauss(0, 1) for _ in range(600)], ALPHA / len(MONITORS))
    assert watch.take([rng.gauss(0, 1) for _ in range(20_000)]) is None
    assert watch.take([rng.gauss(1, 1) for _ in range(300)]) is True


def test_another_choice_of_tools_is_found_and_an_unknown_tool_too():
    rng = random.Random(2)
    usual = [{"search": 0.5, "read": 0.5} if rng.random() < 0.7 else {"search": 1.0} for _ in range(300)]
    for odd in ({"search": 1.0}, {"search": 0.5, "delete": 0.5}):
        watch = watch_tools(usual, 0.005)
        assert watch.take(usual[:200]) is None and watch.take([odd] * 150) is True
    assert watch.labels()[watch.fullest()] == ["(another)"]


def test_an_alarm_is_over_when_the_newest_runs_are_alike_again_and_can_come_back():
    rng = random.Random(9)
    watch = watch_numbers([rng.gauss(0, 1) for _ in range(500)], 0.01)
    assert watch.take([rng.gauss(3, 1) for _ in range(40)]) is True
    assert watch.take([rng.gauss(3, 1) for _ in range(CALM_RUNS)]) is None  # told once
    assert watch.take([rng.gauss(0, 1) for _ in range(CALM_RUNS // 2)]) is None
    assert watch.take([rng.gauss(0, 1) for _ in range(CALM_RUNS // 2)]) is False and (watch.n, watch.log_e) == (0, 0.0)
    assert watch.take([rng.gauss(3, 1) for _ in range(40)]) is True


# --- all of them -------------------------------------------------------------------------------------------------------------


def run(rng: random.Random, *, words: int = 8, reward: float = 0.5) -> Measured:
    values = {"prompt_length": words * 6, "calls": rng.choice((1, 2)), "answer_length": rng.randrange(20, 90), "turns": 2, "tokens": 30}
    grades = {"numeric": float(rng.random() < reward), "other": 1.0}
    return Measured(values=values, tools={"search": 1.0}, words=tuple(rng.randrange(1000) for _ in range(words)), grades=grades)


def test_a_comparison_takes_runs_and_comes_through_json_unchanged():
    rng = random.Random(4)
    made = compare_with([run(rng) for _ in range(120)])
    assert made and made.grader in ("numeric", "other") and "tool_errors" not in made.watches  # which no run had
    assert set(made.watches) == set(MONITORS) - {"tool_errors"}
    assert made.take([run(rng) for _ in range(60)]) == []
    again = msgspec.json.decode(msgspec.json.encode(made), type=Comparison)
    assert again == made
    turned = again.take([run(rng, words=16) for _ in range(60)])
    assert [one.monitor for one in turned] == ["prompt_length"] and turned[0].alarmed
    assert "length of prompts: 50% of the newest 120 runs are more than 48, 0% of the reference's" in turned[0].why
    assert compare_with([run(rng) for _ in range(LEAST - 1)]) is None


def test_words_that_the_reference_does_not_have_are_counted():
    assert unknown_share((3, 5, 7, 9), (3, 7)) == 0.5
    assert unknown_share((), (3, 7)) is None and unknown_share((2,), ()) == 1.0


def test_what_is_measured_of_a_card():
    call, failed = ToolCall("c1", "search", {}), ToolCall("c2", "read", {})
    results = {"c1": ToolResult("c1", "found"), "c2": ToolResult("c2", "", "not_found")}
    opening = (Message("user", "An older question"), Message("assistant", "Yes."), Message("user", "Why, why?"))
    rollout = Rollout("r", opening, (), Limits(), turns=[Turn("", calls=(call, failed), results=results), Turn("12345")], answer="12345")
    given = {
        "kind": "production",
        "tenant": "t",
        "run_id": "s",
        "step": None,
        "row_id": "r",
        "sample_index": 0,
        "started_at": "",
        "advantage": None,
    }
    card = JobCard(
        rollout_id="r", rollout=rollout, reference_answer=None, metadata={}, grade=None, cost=Cost(sampled_tokens=9, tool_calls=2),
        versions=Versions(code="", checkpoint=""), **given,
    )  # fmt: skip
    ref = GraderRef("numeric", "1", "a" * 16)
    seen = measured(card, [Grade(ref, 0.25, None, {}), Grade(ref, None, None, {}), Grade(ref, 0.75, None, {})])
    assert seen.values == {"prompt_length": 9, "calls": 2, "answer_length": 5, "turns": 2, "tokens": 9, "tool_errors": 0.5}
    assert (seen.tools, seen.grades) == ({"search": 0.5, "read": 0.5}, {"numeric": 0.75})
    assert len(seen.words) == 2 and len(set(seen.words)) == 1  # "why" twice, and none of it can be read


def test_the_first_of_a_session_counts():
    seen = Seen()
    assert [seen.before(name) for name in ("a", "b", "a", "b", "c")] == [False, False, True, True, False]
    assert len(seen.newest) == 3
    assert not any(seen.before(str(number), most=5) for number in range(9)) and len(seen.newest) == 5
