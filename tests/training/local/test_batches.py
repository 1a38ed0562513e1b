"""What a step trains on, and how it is cut to fit."""

from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Row
from agent_rft.training.local.batches import micro_batches, trajectories


def graded(*turns: Turn, ending=Ending.ANSWERED) -> GradedRollout:
    return GradedRollout(
        Row("row", "?", 1), 0, Rollout("r", (), (), Limits(), turns=list(turns), ending=ending), Grade(GraderRef("g", "1", ""), 1.0)
    )


def test_a_trajectory_is_what_was_heard_and_said_in_order():
    turns = Turn("", [5, 6], [7, 8], [-0.1, -0.2]), Turn("", [9], [3], [-0.3])
    (one,) = trajectories([graded(*turns)], [0.5])
    assert one.ids == [5, 6, 7, 8, 9, 3]
    assert one.sampled == [False, False, True, True, False, True]
    assert one.logprobs == [0.0, 0.0, -0.1, -0.2, 0.0, -0.3]
    assert one.advantage == 0.5 and one.sampled_tokens == 3


def test_failures_and_silence_are_left_out_and_flat_groups_stay_for_the_leash():
    spoke = Turn("", [5], [7], [-0.1])
    failed = graded(spoke, ending=Ending.INFRA_FAILED)
    kept = trajectories([graded(spoke), failed, graded(), graded(spoke)], [1.0, None, -1.0, 0.0])
    assert [one.advantage for one in kept] == [1.0, 0.0]
    assert trajectories([failed], [1.0]) == []  # even if somebody gave it an advantage


def test_micro_batches_by_hand():
    """Sorted 2, 3, 5, 9 within 10 padded tokens: 2 x 3 fit, 3 x 5 do not; 5 alone, since 2 x 9 do not fit."""
    assert micro_batches([5, 2, 9, 3], 10) == [[1, 3], [0], [2]]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_every_sequence_is_in_one_batch_and_no_batch_is_larger_than_allowed(lengths, most):
    batches = micro_batches(lengths, most)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most for batch in batches)
