"""Buckets and verdict, worked out by hand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.rollouts import Ending
from agent_rft.evaluation.prior import PriorCheck, check_prior, describe_prior, histogram


@pytest.fixture(scope="session")
def prior_of(tried):
    """A prior check over rows given as {row: rewards}."""
    return lambda rows, **rest: check_prior([one for row_id, rewards in rows.items() for one in tried(row_id, rewards)], **rest)


def mixed(never, sometimes, always):
    return (
        {f"n{i}": [0.0, 0.0] for i in range(never)}
        | {f"s{i}": [1.0, 0.0] for i in range(sometimes)}
        | {f"a{i}": [1.0, 1.0] for i in range(always)}
    )


def test_a_row_is_never_sometimes_or_always_solved(prior_of):
    check = prior_of({"a": [0.0, 0.5, 0.0], "b": [1.0, 0.0, 0.5], "c": [1.0, 1.0, 1.0]})
    assert [row.bucket for row in check.rows] == ["never", "sometimes", "always"]
    assert [row.success_rate for row in check.rows] == [0.0, pytest.approx(1 / 3), 1.0]
    # b: mean 0.5, deviations 0.5, -0.5, 0 -> (0.25 + 0.25 + 0) / 3; a: mean 1/6 -> (1/36 + 4/36 + 1/36) / 3 = 1/18
    assert [row.reward_variance for row in check.rows] == [pytest.approx(1 / 18), pytest.approx(1 / 6), 0.0]
    assert check.mean_reward == pytest.approx((0.5 + 1.5 + 3.0) / 9)


def test_partial_credit_can_be_made_to_count_as_success(prior_of):
    assert prior_of({"a": [0.0, 0.5]}).never == 1
    assert prior_of({"a": [0.0, 0.5]}, pass_at=0.5).sometimes == 1


def test_what_infrastructure_spoilt_is_no_try(prior_of):
    check = prior_of({"a": [1.0, None, 1.0], "b": [None, None]})
    assert [(row.bucket, row.tries, row.infra_failures) for row in check.rows] == [("always", 2, 1), ("unmeasured", 0, 2)]
    assert (check.measured, check.unmeasured, check.infra_failures) == (1, 1, 3)
    assert check.mean_tool_calls == 1.0


@pytest.mark.parametrize(
    ("never", "sometimes", "always", "verdict"),
    [
        (18, 19, 13, "go"),  # 38%: the tutorial's own figures
        (13, 7, 0, "go"),  # 35%
        (14, 6, 0, "go with caution"),  # 30%, on the edge
        (17, 3, 0, "go with caution"),  # 15%, on the edge
        (18, 2, 0, "no go"),  # 10%
        (20, 0, 0, "no go"),
        (0, 0, 20, "no go"),
        (0, 20, 0, "go"),
    ],
)
def test_the_verdict_follows_the_share_solved_sometimes(prior_of, never, sometimes, always, verdict):
    check = prior_of(mixed(never, sometimes, always))
    assert (check.never, check.sometimes, check.always) == (never, sometimes, always)
    assert check.verdict == verdict


def test_the_cure_depends_on_which_side_is_flat(prior_of):
    assert "stronger base" in prior_of(mixed(20, 0, 0)).cure
    assert "harder rows" in prior_of(mixed(0, 0, 20)).cure
    assert all("prior.override=true" in prior_of(mixed(*rows)).cure for rows in ((20, 0, 0), (0, 0, 20)))


def test_one_try_a_row_gives_no_verdict_on_the_rows(prior_of):
    check = prior_of({"a": [0.0], "b": [1.0]})
    assert check.verdict == "no go" and "one try" in check.why and "at least 2" in check.cure


def test_nothing_measured_is_no_go_and_blames_the_infrastructure(prior_of):
    check = prior_of({"a": [None, None]})
    assert check.verdict == "no go" and "infrastructure" in check.why and check.mean_reward is None


def test_it_says_why_the_last_one_failed_where_all_did(tried):
    failed = tried("a", [None, None], failed_part="grader:quality")
    failed[0].rollout.reason, failed[1].rollout.reason = "slow", "no judge answers at http://host:1/v1"
    check = check_prior(failed)
    said = "; the last one, of grader:quality, said: no judge answers at http://host:1/v1"
    assert check.why == "no try has a score: infrastructure failed on all of them" + said
    assert check.why in describe_prior(check)
    assert "said" not in check_prior([*failed, *tried("b", [1.0, 0.0])]).why


def test_it_says_what_infrastructure_said_and_what_went_wrong_most_where_some_tries_have_a_score(tried):
    spoilt, scored = tried("a", [None], failed_part="tool:units"), tried("b", [0.0, 0.0, 1.0])
    spoilt[0].rollout.reason = "tool:units: http://host:1 answered 500"
    said = describe_prior(
        check_prior([*spoilt, *scored, *tried("c", [0.0] * 3), *(one for n in range(9) for one in tried(f"d{n}", [0.0, 0.0]))])
    )
    assert "left out: 1 tries that infrastructure spoilt (the last one, of tool:units, said: http://host:1 answered 500);" in said
    # b: two of three wrong; c: three; d: nine rows of two
    assert "  tries that solved nothing: 23 answered: wrong; 1 infrastructure: tool:units\n" in said


@pytest.mark.parametrize(("malformed", "other_base"), [(2, False), (3, True)])
def test_a_base_that_mostly_says_what_nobody_can_read_needs_another_base_not_easier_rows(tried, malformed, other_base):
    tries = tried("a", [0.0] * 4)
    for one in tries[:malformed]:
        one.rollout.ending, one.rollout.reason = Ending.MALFORMED, "a tool call is not JSON"
    check = check_prior(tries)
    assert ("model.path=" in check.cure) is other_base and ("easier rows" in check.cure) is not other_base
    assert f"tries that solved nothing: {malformed} malformed: a tool call is not JSON" in describe_prior(check) or not other_base
    assert "prior.override=true" in check.cure


def test_it_prints_the_buckets_the_verdict_and_the_cure(prior_of):
    assert describe_prior(prior_of(mixed(18, 2, 0) | {"x": [None, None]})).splitlines() == [
        "prior: sometimes 2, never 18, always 0, of 20 rows",
        "  mean reward 0.05, 1.0 tool calls a try",
        "  left out: 2 tries that infrastructure spoilt; 1 rows unmeasured",
        "  tries that solved nothing: 38 answered: wrong; 2 infrastructure: tool:search",
        "  NO GO: 10% of the rows are solved sometimes, below 15%: 18 rows never, 0 always, so there is hardly a slope to climb",
        "  cure: simpler tools, better prompts, easier rows or a stronger base model; prior.override=true trains all the same",
    ]


def test_the_bars_count_rows_by_how_often_they_are_solved(prior_of):
    bars = histogram(prior_of({"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0]}))
    assert bars.splitlines() == ["  solved  50% of the tries: ██ 2 rows", "  solved 100% of the tries: █ 1 rows"]


def test_it_goes_to_json_and_back(prior_of):
    check = prior_of({"a": [1.0, None], "b": [None]})
    assert msgspec.json.decode(msgspec.json.encode(check), type=PriorCheck) == check


rewards = st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=5)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), rewards))
def test_every_row_is_in_exactly_one_bucket(prior_of, rows):
    check = prior_of(rows)
    assert check.never + check.sometimes + check.always + check.unmeasured == len(rows) == len(check.rows)
    assert check.measured + check.unmeasured == len(rows)
    assert sum(row.tries + row.infra_failures for row in check.rows) == sum(len(tries) for tries in rows.values())
    assert 0 <= check.share_sometimes <= 1
