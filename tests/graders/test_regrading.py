"""Stored rollouts graded again: from what, and what training would have been told."""

from __future__ import annotations

import itertools
import pickle

import msgspec
import pytest

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Expected, Row
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.regrading import Versioned, Worth, gradable, row_of, training_effect

QUESTION = (Message("system", "You answer."), Message("user", "What was the margin?"))
ROW = Row("row-1", "What was the margin?", "13.4%", Expected(0.01), metadata={"task_type": "qa"}, extra={"source": "book"})


def card(ending=Ending.ANSWERED, answer="13.4%", failed_part="", reference="13.4%", item=None):
    turns = [Turn(answer)]
    rollout = Rollout("id-1", QUESTION, (), Limits(), turns=turns, ending=ending, answer=answer, failed_part=failed_part)
    return JobCard(
        rollout_id="id-1", kind="train", tenant="local", run_id="run-1", step=3, row_id="row-1", sample_index=0, started_at="",
        rollout=rollout, reference_answer=reference, metadata={"task_type": "qa"}, item=item, grade=None, cost=Cost(),
        versions=Versions(code="", checkpoint=""),
    )  # fmt: skip


def test_a_card_tells_question_reference_and_metadata_the_row_the_rest():
    held, whole = row_of(card(), {})
    assert not whole
    assert held.item() == {
        "id": "row-1", "prompt": "What was the margin?", "reference_answer": "13.4%", "expected": {}, "metadata": {"task_type": "qa"},
    }  # fmt: skip
    assert row_of(card(), {"row-1": ROW}) == (ROW, True)


def test_a_card_that_keeps_the_rows_own_keys_needs_no_file_and_believes_none():
    own = {"expected": {"tolerance_rel": 0.01}, "source": "book"}
    held, whole = row_of(card(item=own), {"row-1": msgspec.structs.replace(ROW, expected=Expected(0.5))})
    assert whole and held.item() == ROW.item()
    assert row_of(card(item={}), {})[1], "a row with nothing of its own is known whole"


def test_a_row_that_was_changed_since_is_another_row():
    held, whole = row_of(card(reference="12.0%"), {"row-1": ROW})
    assert not whole and held.reference_answer == "12.0%"


@pytest.mark.parametrize("ending", [Ending.ANSWERED, Ending.OUT_OF_BUDGET, Ending.MALFORMED])
def test_what_was_graded_once_is_graded_again(ending):
    assert gradable(card(ending).rollout) == card(ending).rollout


def test_a_failed_grader_leaves_an_answer_to_grade_and_a_failed_tool_does_not():
    again = gradable(card(Ending.INFRA_FAILED, failed_part="grader:judge").rollout)
    assert again is not None and (again.ending, again.answer) == (Ending.ANSWERED, "13.4%")
    assert gradable(card(Ending.INFRA_FAILED, failed_part="grader:judge", answer="").rollout) is None
    assert gradable(card(Ending.INFRA_FAILED, failed_part="tool:search").rollout) is None
    assert gradable(card(None).rollout) is None


def test_a_registered_grader_signs_with_its_own_version_and_keeps_the_hash():
    plain = NumericGrader(tolerance=0.02)
    grader = Versioned(plain, "numeric", "2")
    grade = grader.grade({"reference_answer": "$842M"}, {"output_text": "$850M"})  # 8 off, 16.84 allowed
    assert (grade.reward, grade.grader.version, grade.grader.hash) == (0.5, "2", plain.ref.hash)
    assert grade.grader == grader.ref and grader.waits is False


def test_a_registered_grader_is_the_very_same_in_another_process():
    """How the environments of NeMo RL get theirs: as it was built, without the store."""
    grader = Versioned(NumericGrader(tolerance=0.02), "numeric", "2")
    there = pickle.loads(pickle.dumps(grader))
    item, sample = {"reference_answer": "$842M"}, {"output_text": "$850M"}
    assert (there.ref, there.waits, there.grade(item, sample)) == (grader.ref, False, grader.grade(item, sample))


class Waits(NumericGrader):
    waits = True

    def grade(self, item, sample):
        return Grade(self.ref, None, errors={"other_error": "away"})


def test_a_grader_that_waits_does_so_under_any_name():
    assert Versioned(Waits(), "judge", "1").waits is True


number = itertools.count()


def worth(row, before, after, calls=0, advantage=None, sample=None, at=""):
    return Worth(("run-1", 3, row), before, after, calls, advantage, next(number) if sample is None else sample, at)


def test_each_group_is_compared_within_itself():
    """Row a: 1, 0 becomes 0, 1, so both turn round: from +-0.70701 to -+0.70701 (0.5 / (0.70711 + 0.0001)), a shift of 1.41402
    each. Row b: flat stays flat, no shift. Mean over four: 0.70701."""
    found = training_effect([worth("a", 1, 0), worth("a", 0, 1), worth("b", 1, 1), worth("b", 1, 1)], 0.0)
    assert (found.groups, found.flat_before, found.flat_after, found.reversed, found.unlike_record) == (2, 1, 1, 2, 0)
    assert found.mean_shift == pytest.approx(0.70701, abs=1e-5)


def test_a_step_that_was_killed_and_made_again_is_two_groups():
    """Each go has one try of 1 and one of 0, +-0.70701; all four together would have +-0.86588, and none as it was recorded."""
    tries = [
        worth("a", reward, reward, 0, advantage, sample, f"2026-11-22T05:0{go}")
        for go in (1, 0)
        for sample, (reward, advantage) in enumerate(((1, 0.70701), (0, -0.70701)))
    ]
    found = training_effect(tries, 0.0)
    assert (found.groups, found.unlike_record) == (2, 0)


def test_of_a_step_that_was_killed_any_of_its_tries_may_have_ended_before():
    """The last try of the first go alone, and then all three: 1, 0, 0 have +1.15450 and -0.57725, twice."""
    again = [
        worth("a", reward, reward, 0, advantage, sample, f"2026-11-22T05:01:0{sample}")
        for sample, (reward, advantage) in enumerate(((1, 1.15450), (0, -0.57725), (0, -0.57725)))
    ]
    found = training_effect([worth("a", 1, 1, 0, None, 2, "2026-11-22T05:00:00"), *again], 0.0)
    assert (found.groups, found.unlike_record) == (2, 0)


def test_a_group_can_begin_to_teach_or_cease_to():
    found = training_effect([worth("a", 0, 0.5), worth("a", 0, 0), worth("b", 1, 1), worth("b", 0.5, 1)], 0.0)
    assert (found.flat_before, found.flat_after, found.reversed) == (1, 1, 0)


def test_without_a_score_a_try_takes_no_part():
    """The two that have both scores are those that are compared; the third is in the group before alone."""
    found = training_effect([worth("a", 1, 1), worth("a", 0, 0), worth("a", 1, None)], 0.0)
    assert found.groups == 1
    # before 1, 0, 1: mean 2/3, deviation 0.57735: 0.57725, -1.15450; after 1, 0: +-0.70701. Shifts 0.12976 and 0.44749.
    assert found.mean_shift == pytest.approx((0.12976 + 0.44749) / 2, abs=2e-5)


def test_nothing_scored_shifts_nothing():
    assert training_effect([worth("a", None, 1), worth("a", None, 0)], 0.0).mean_shift is None


def test_a_cost_for_calls_that_the_run_did_not_have_shows_in_the_recorded_advantages():
    """1 with no call and 1 with five: alike, unless a call costs 0.1: then 1 and 0.5, +-0.25 / (0.35355 + 0.0001) = +-0.70691."""
    tries = [worth("a", 1, 1, 0, 0.70691), worth("a", 1, 1, 5, -0.70691)]
    assert training_effect(tries, 0.0).unlike_record == 2
    assert training_effect(tries, 0.1).unlike_record == 0
    assert training_effect([msgspec.structs.replace(one, advantage=None) for one in tries], 0.0).unlike_record == 0
