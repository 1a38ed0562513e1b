"""Models side by side, by hand; and the lines that a run ends with."""

import msgspec
import pytest

from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.compare import compare
from agent_rft.evaluation.scoreboard import Scoreboard, describe_comparison, describe_scoreboard, p_told, scoreboard


@pytest.fixture
def board(tried):
    base = tried("a", [1.0, 0.0], [4, 6]) + tried("b", [0.0, 0.0], [8, 8]) + tried("c", [None, None])
    tuned = tried("a", [1.0, 1.0], [2, 2]) + tried("b", [0.5, 1.0], [3, 5]) + tried("c", [1.0, None], [1, 1])
    return scoreboard({"base": base, "tuned": tuned, "broken": tried("a", [None, None])})


def test_every_figure_is_a_mean_over_rows(board):
    base, tuned, _ = board.models
    assert (base.rows, base.unscored_rows, base.tries, base.infra_failures) == (2, 1, 4, 2)
    assert (tuned.rows, tuned.unscored_rows, tuned.tries, tuned.infra_failures) == (3, 0, 5, 1)
    assert base.reward.estimate == pytest.approx(0.25)  # (0.5 + 0) / 2
    assert tuned.reward.estimate == pytest.approx((1 + 0.75 + 1) / 3)  # c counts as much with one try as a with two
    assert (base.calls.estimate, tuned.calls.estimate) == pytest.approx(((5 + 8) / 2, (2 + 4 + 1) / 3))
    assert base.endings == {"answered": 4, "out_of_budget": 0, "malformed": 0, "infra_failed": 2}


def test_pass_at_k_takes_the_rows_that_have_k_tries(tried):
    first = tried("a", [1.0, 0.0]) + tried("b", [0.0, 0.0]) + tried("c", [1.0])
    board = scoreboard({"first": first, "second": tried("a", [0.5, 0.5, 0.5])}, pass_at=0.5)
    assert board.k == 2  # what every model can show
    one, two = board.models
    assert (one.pass_at_1.estimate, one.pass_at_k.estimate, one.pass_at_k_rows) == (0.5, 0.5, 2)  # (1/2 + 0 + 1) / 3; (1 + 0) / 2
    assert two.pass_at_k.estimate == 1.0
    assert scoreboard({"second": tried("a", [0.5, 0.5])}).models[0].pass_at_1.estimate == 0.0


def test_the_others_are_compared_with_the_first_on_the_rows_that_both_have(board):
    (only,) = board.versus  # broken has no row to compare
    assert (only.name, only.compared, only.improved, only.regressed, only.verdict) == ("tuned", 2, 2, 0, "no clear change")
    assert only.d_reward.estimate == pytest.approx((0.5 + 0.75) / 2)


def test_many_models_are_held_to_more(tried):
    rows = [str(row) for row in range(7)]
    base = [one for row in rows for one in tried(row, [0.0])]
    better = [one for row in rows for one in tried(row, [1.0])]
    board = scoreboard({"base": base, "x": better, "y": better, "z": better})
    assert [one.p for one in board.versus] == pytest.approx([2 / 2**7] * 3)
    assert [one.p_adjusted for one in board.versus] == pytest.approx([6 / 2**7] * 3)
    assert [one.verdict for one in board.versus] == ["better"] * 3


def test_of_many_models_none_is_called_better_by_its_own_luck(tried):
    """Six rows of six that turn right are clear where one model was tried (p = 2 / 2**6), and no more so among four (8 / 2**6)."""
    rows = [str(row) for row in range(6)]
    base = [one for row in rows for one in tried(row, [0.0])]
    better = [one for row in rows for one in tried(row, [1.0])]
    assert [one.verdict for one in scoreboard({"base": base, "x": better}).versus] == ["better"]
    board = scoreboard({"base": base, "w": better, "x": better, "y": better, "z": better})
    assert all(one.d_reward.clear and one.p_adjusted == 8 / 2**6 for one in board.versus)
    assert [one.verdict for one in board.versus] == ["perhaps better"] * 4


def test_a_model_without_any_score_is_shown_as_such(board):
    broken = board.models[2]
    assert (broken.rows, broken.reward, broken.pass_at_1, broken.calls, broken.infra_failures) == (0, None, None, None, 2)
    assert describe_scoreboard(board).splitlines()[3].split() == ["broken", "0", "-", "-", "-", "-", "-", "2", "of", "2"]


def test_it_prints_a_line_a_model_and_one_against_the_first(tried):
    base = [one for row in range(12) for one in tried(str(row), [0.5], 4, metadata={"difficulty": "hard"})]
    tuned = [one for row in range(12) for one in tried(str(row), [0.0], 5, metadata={"difficulty": "hard"})]
    lines = describe_scoreboard(scoreboard({"base": base, "tuned": tuned}, pass_at=0.5)).splitlines()
    assert lines[0].split() == ["model", "rows", "mean", "reward", "pass@1", "calls", "tokens", "seconds", "infra"]
    # twelve halves, 0 and 1: squares 0.5, / 13 / 14 = 0.002747, root 0.05241; t of 13 degrees 2.1604: 0.1132
    assert lines[1].split()[:5] == ["base", "12", "0.50", "[0.39,", "0.61]"]
    assert lines[3] == (
        "tuned against base: Δreward -0.500 [-0.678, -0.179], p < 0.001: worse; "
        "improved 0, regressed 12 (12 with more calls too), unchanged 0 of 12"
    )
    # two slices of twelve rows that all moved alike: 2 of 2^12 ways, counted twice, is still below 0.001
    assert lines[5] == "worse:       difficulty=hard -0.500 [-0.678, -0.179] on 12 rows  (p < 0.001 among all slices)"


def test_tries_without_an_answer_are_told_where_there_are_any(tried):
    sound = tried("a", [1.0, 1.0, 0.0, None])
    mute = tried("a", [0.0, 0.0, 0.0, 0.0])
    for one, ending in zip(mute, (Ending.OUT_OF_BUDGET, Ending.MALFORMED, Ending.OUT_OF_BUDGET), strict=False):
        one.rollout.ending = ending
    lines = describe_scoreboard(scoreboard({"sound": sound, "mute": mute})).splitlines()
    assert [line for line in lines if "without an answer" in line] == [
        "mute: 3 tries of 4 ended without an answer (out of budget 2, malformed 1)"
    ]


def test_it_goes_to_json_and_back(board):
    assert msgspec.json.decode(msgspec.json.encode(board), type=Scoreboard) == board


def test_a_run_ends_with_its_intervals_the_worst_quadrant_and_the_unsolvable(tried):
    base = tried("up", [0.0]) + tried("down", [1.0], 2) + tried("right", [1.0]) + tried("wrong", [0.5]) + tried("never", [0.0, 0.0])
    tuned = tried("up", [1.0]) + tried("down", [0.0], 3) + tried("right", [1.0]) + tried("wrong", [0.5]) + tried("never", [0.0, 0.0])
    lost = tried("lost", [None])
    lines = describe_comparison(compare(base + lost, tuned)).splitlines()
    # 1, -1, 0, 0, 0 and the imagined 1, -1: mean 0, squares 4, / 6 / 7 = 0.09524, root 0.3086; t of 6 degrees 2.4469: 0.7551
    assert lines[0] == "mean Δreward: +0.000 [-0.755, +0.755]  (p = 1.000: no clear change)"
    assert lines[1].startswith("mean Δtools:  +0.20 [")
    assert lines[2:] == [
        "improved:    1/5",
        "regressed:   1/5  (worst quadrant: 1 with more calls too)",
        "unchanged:   3/5  (1 solved, 2 unsolved, 1 of these never by any try)",
        "solved:      1 newly, 1 no longer  (p = 1.000)",
        "left out:    1  (infrastructure failed on every try of a side)",
    ]


def test_a_slice_that_got_worse_is_named_under_a_gain(tried):
    sides = [
        [one for row in range(20) for one in tried(f"e{row}", [easy], metadata={"difficulty": "easy"})]
        + [one for row in range(8) for one in tried(f"h{row}", [1 - easy], metadata={"difficulty": "hard"})]
        for easy in (0.0, 1.0)
    ]
    lines = describe_comparison(compare(*sides)).splitlines()
    assert lines[0].endswith("better)")
    assert [line for line in lines if line.startswith("worse:")] == [lines[-1]] and "difficulty=hard -1.000" in lines[-1]


def test_a_small_p_is_not_shown_as_nothing():
    assert (p_told(0.0004), p_told(0.0123)) == ("p < 0.001", "p = 0.012")
