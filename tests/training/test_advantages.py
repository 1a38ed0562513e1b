"""The baseline, worked out by hand; and that what infrastructure failed is neither in it nor near it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.training.advantages import group_advantages, is_flat, shaped

REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])), max_size=12)


def test_advantages_by_hand():
    """Rewards 1, 0, 0, 1: mean 0.5, squared distances 4 x 0.25 = 1, over n - 1 = 3, so a deviation of 0.57735;
    0.5 / (0.57735 + 0.0001) = 0.86588."""
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == pytest.approx([0.86588, -0.86588, -0.86588, 0.86588], abs=1e-5)


def test_a_failed_rollout_has_no_advantage_and_no_part_in_the_others():
    """Were the failure a 0, mean and deviation would be those of 1, 0, 0, and every advantage another."""
    assert group_advantages([1.0, None, 0.0]) == pytest.approx([0.70701, None, -0.70701], abs=1e-5)
    assert group_advantages([1.0, 0.0]) == pytest.approx([0.70701, -0.70701], abs=1e-5)  # 0.5 / (0.70711 + 0.0001)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.5, None, 0.5], [0.0, None, 0.0]),
        ([1.0, None, None], [0.0, None, None]),
        ([None, None], [None, None]),
        ([], []),
    ],
)
def test_a_group_without_spread_teaches_nothing(rewards, expected):
    assert group_advantages(rewards) == expected
    assert is_flat(rewards) or rewards == [1.0, None, None]


@given(REWARDS)
def test_leaving_failures_out_before_or_after_is_the_same(rewards):
    kept = [advantage for advantage in group_advantages(rewards) if advantage is not None]
    assert kept == group_advantages([reward for reward in rewards if reward is not None])


@given(REWARDS)
def test_advantages_of_a_group_cancel_out(rewards):
    assert sum(a for a in group_advantages(rewards) if a is not None) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("reward", "calls", "expected"),
    [
        (1.0, 5, 0.9),  # 1 - 5 x 0.02
        (0.5, 5, 0.4),
        (0.0, 5, 0.0),  # a wrong answer is never charged: searching must not cost the one who has not found
        (0.5, 40, 0.0),  # 0.5 - 0.8 would be below a wrong answer
        (1.0, 0, 1.0),
    ],
)
def test_right_answers_pay_for_their_calls(reward, calls, expected):
    assert shaped(reward, calls, 0.02) == pytest.approx(expected)
