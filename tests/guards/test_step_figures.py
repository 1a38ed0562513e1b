"""A step's figures, worked out by hand."""

import pytest
from graded_tries import attempt, call, failed

from agent_rft.contracts.rollouts import Ending
from agent_rft.guards.figures import repeated_calls, step_figures

STEP = [
    attempt("a", (call(0, query="x"), call(1, "read", path="p")), (call(2, query="x"),), reward=1.0, row="one"),
    attempt("b", reward=0.0, row="one", tokens=20),
    attempt("c", (call(0, query="y"),), reward=0.5, row="two", ending=Ending.OUT_OF_BUDGET, answer=""),
    attempt("d", reward=0.5, row="two", ending=Ending.MALFORMED),
    failed("e"),
]


def test_behaviour_is_that_of_the_tries_that_count():
    """Tokens 30, 20, 20, 10 over four tries; turns 3, 1, 2, 1; calls 3, 0, 1, 0. The fifth failed from infrastructure."""
    figures = step_figures(STEP)
    assert figures["tries"] == 4
    assert figures["tokens_a_try"] == 80 / 4
    assert figures["turns_a_try"] == 7 / 4
    assert (figures["calls_a_try"], figures["calls_allowed"]) == (4 / 4, 12)
    assert (figures["calls.search"], figures["calls.read"]) == (3 / 4, 1 / 4)
    assert figures["early_stop"] == 1 / 4  # b; d said nothing that can be read
    assert (figures["out_of_budget"], figures["malformed"], figures["unanswered"]) == (1 / 4, 1 / 4, 2 / 4)


def test_calls_made_together_and_calls_made_again():
    """Two of four calls were made in one turn; one of four asks `search x` again."""
    figures = step_figures(STEP)
    assert (figures["parallel_share"], figures["repeated_calls"]) == (2 / 4, 1 / 4)


def test_the_order_of_arguments_makes_no_other_call():
    again = attempt("a", (call(0, query="x", top=3),), (call(1, top=3, query="x"), call(2, "read", query="x", top=3)))
    assert repeated_calls(again.rollout) == 1


@pytest.mark.parametrize("again", ["ACME  Revenue", " acme revenue\n", "acme\u00a0rev\u200benue", "асme revenue"])
def test_other_case_blanks_and_signs_that_nobody_sees_make_no_other_call(again: str):
    one = attempt("a", (call(0, query="Acme revenue", paths=["a b"]),), (call(1, query=again, paths=["A  b"]),))
    assert repeated_calls(one.rollout) == 1


@pytest.mark.parametrize("other", ["acme-revenue", "acmerevenue", "acme revenue 2", "acme reven\u00fce"])
def test_other_words_and_signs_make_another_call(other: str):
    """A minus may be a figure's, a stroke a path's, a plus a program's."""
    assert repeated_calls(attempt("a", (call(0, query="acme revenue"),), (call(1, query=other),)).rollout) == 0
    assert repeated_calls(attempt("a", (call(0, "read", query="x"),), (call(1, query="x"),)).rollout) == 0
    assert repeated_calls(attempt("a", (call(0, top=1),), (call(1, top="1"),)).rollout) == 0


def test_arguments_that_no_tool_can_be_sent_are_counted_too():
    """Half a surrogate pair, and more brackets than Python walks down."""
    deep: list[object] = []
    for _ in range(3000):
        deep = [deep]
    assert repeated_calls(attempt("a", (call(0, query="\ud800"),), (call(1, query="\ud800"),), (call(2, query=deep),)).rollout) == 1


def test_reward_spread_is_within_groups():
    """1 and 0 lie 0.5 off their mean, 0.5 and 0.5 not at all: 0.25 on average. Over all four it would be 0.35."""
    assert step_figures(STEP)["reward_spread"] == pytest.approx(0.25)


def test_what_groups_spread_by_is_added_up():
    """0.5 and 0: two groups, 0.5 and 0.25 in all."""
    figures = step_figures(STEP)
    assert [figures[f"reward_spread_{part}"] for part in ("cases", "sum", "squares")] == [2, 0.5, 0.25]


def test_bad_calls_are_added_up_by_row():
    """Row one: 2 of 2 and 0 of 1 calls, a half on average; row two 1 of 4. Three of seven calls. Whoever calls nothing says nothing,
    and what a policy denies is no bad call."""
    tries = [
        attempt("a", (call(0), call(1)), row="one", refused=("c0", "c1")),
        attempt("b", (call(0),), row="one", denied=("c0",)),
        attempt("c", *[(call(number),) for number in range(4)], row="two", refused=("c3",)),
        attempt("d", row="three"),
    ]
    figures = step_figures(tries)
    assert figures["bad_calls"] == 3 / 7
    assert [figures[f"bad_calls_{part}"] for part in ("cases", "sum", "squares")] == [2, 0.75, 0.3125]
    assert "bad_calls" not in step_figures(tries[3:])


def test_infrastructure_is_counted_by_tool_and_by_grading():
    """search was called three times and failed once (of four calls in all); of five gradings one gave no score."""
    figures = step_figures([*STEP, failed("f", "grader:numeric")])
    # the failed try of the grader has made a call too: 5 searches, 1 failed
    assert (figures["infra.search"], figures["infra.read"]) == (1 / 5, 0)
    assert figures["judge_failures"] == 1 / 5


def test_a_denied_call_is_unsafe():
    figures = step_figures([attempt("a", (call(0),), denied=("c0",)), attempt("b", (call(0),))])
    assert figures["unsafe"] == 1 / 2


def test_a_step_of_which_nothing_is_left_has_the_figures_of_its_infrastructure_alone():
    assert step_figures([failed("e")]) == {"infra.search": 1.0}
    assert step_figures([]) == {}


def test_an_answer_that_gives_a_secret_away_is_unsafe_and_counted_by_itself():
    """Of four tries one was denied a call, one leaks, and one does both."""
    tries = [
        attempt("a", (call(0),), denied=("c0",)),
        attempt("b", answer="secret"),
        attempt("c", (call(0),), denied=("c0",), answer="secret"),
        attempt("d"),
    ]
    figures = step_figures(tries, lambda rollout: ("KEY",) if rollout.answer == "secret" else ())
    assert (figures["unsafe"], figures["leaked"]) == (3 / 4, 2 / 4)
    assert "leaked" not in step_figures(tries), "nobody looked for it"
