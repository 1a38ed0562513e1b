"""How tools are used, and what goes wrong, counted by hand."""

import pytest

from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.failures import MOST, OTHERS, failures
from agent_rft.evaluation.tool_use import tool_use


def test_choice_by_tool_is_the_share_of_the_calls(tried):
    use = tool_use(tried("a", [1.0, 0.0, None], [3, 1, 9]))
    assert use.tries == 2 and use.calls == 2.0 and use.by_calls == {1: 1, 3: 1}
    assert use.tools == ["search"] and use.share("search") == 1.0 and use.share("read") == 0.0


def test_of_tries_that_infrastructure_spoilt_there_is_no_use_to_tell(tried):
    assert tool_use(tried("a", [None, None])) is None


def test_answers_without_a_call_and_refused_calls_are_shares(tried):
    tries = tried("a", [1.0, 0.0], [0, 2])
    call_id, result = next(iter(tries[1].rollout.turns[0].results.items()))
    tries[1].rollout.turns[0].results[call_id] = type(result)(call_id, "no such path", "model_error")
    use = tool_use(tries)
    assert use.figures["early_stop"] == 0.5 and use.refused == 0.5
    assert tool_use(tried("b", [1.0], [0])).refused is None


def test_with_the_solved_ones_the_kinds_are_all_tries(tried):
    found = failures(tried("a", [1.0, 0.5, 0.0, None]) + tried("b", [1.0]))
    assert (found.tries, found.solved) == (5, 2)
    assert found.kinds == {"answered: partly right": 1, "answered: wrong": 1, "infrastructure: tool:search": 1}


def test_what_counts_as_solved_is_the_graders_to_say(tried):
    assert failures(tried("a", [0.5, 0.6]), pass_at=0.6).solved == 1


@pytest.mark.parametrize(("kinds", "named"), [(MOST, MOST), (MOST + 2, MOST + 1)])
def test_rare_kinds_are_counted_together(tried, kinds, named):
    tries = [one for number in range(kinds) for one in tried(f"r{number}", [None], failed_part=f"tool:{number}")]
    found = failures(tries)
    assert len(found.kinds) == named and sum(found.kinds.values()) == kinds and found.kinds.get(OTHERS, 0) == max(0, kinds - MOST)


def test_tries_that_failed_alike_are_one_kind_whatever_their_figures_and_words(tried):
    reasons = {
        Ending.OUT_OF_BUDGET: [
            "tokens: length at 74 of 1536",
            "tokens: length at 101 of 1536",
            "seconds: 0.5 allowed",
            "seconds: 600 allowed",
        ],
        Ending.MALFORMED: ["a tool call is not JSON: '{\"name\": 1'", 'a tool call is not JSON: "it\'s"', "the turn is empty"],
    }
    tries = tried("a", [0.0] * 7)
    for one, (ending, reason) in zip(tries, [(ending, one) for ending, said in reasons.items() for one in said], strict=True):
        one.rollout.ending, one.rollout.reason = ending, reason
    assert failures(tries).kinds == {
        "out of budget: tokens: length at … of …": 2,
        "out of budget: seconds: … allowed": 2,
        "malformed: a tool call is not JSON": 2,
        "malformed: the turn is empty": 1,
    }
