"""Figures of offline reports: means over rows, and nothing where too much was spoilt."""

import pytest

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Row
from agent_rft.evaluation.offline import evaluation_figures, holdout_figures, refuse_spoilt

REF = GraderRef("g", "1", "h")


def tried(row, reward):
    spoilt = reward is None
    rollout = Rollout("r", (), (), Limits(), ending=Ending.INFRA_FAILED if spoilt else Ending.ANSWERED)
    rollout.failed_part, rollout.reason = ("tool:search", "tool:search: gone") if spoilt else ("", "")
    return GradedRollout(Row(row, row, None), 0, rollout, None if spoilt else Grade(REF, reward))


def test_the_reward_is_the_mean_over_rows_and_what_was_spoilt_is_in_none():
    """a: (1 + 0) / 2 = .5; b: 1; c was spoilt altogether. Rows weigh the same: (.5 + 1) / 2 = .75, where tries would make .667."""
    said = evaluation_figures([tried("b", 1.0), tried("a", 1.0), tried("a", 0.0), tried("b", None), tried("c", None)])
    assert said == {"reward": 0.75, "rows": {"a": 0.5, "b": 1.0}, "n": 3, "infra_failed": 2}


def test_a_report_holds_the_first_thousand_rows_whatever_their_order():
    rows = [tried(f"row-{i:04}", 1.0) for i in range(1200)]
    held = evaluation_figures(rows[::-1])["rows"]
    assert list(held) == [f"row-{i:04}" for i in range(1000)]


def test_what_is_spoilt_too_often_is_no_report():
    good = [tried("a", 1.0)] * 99
    refuse_spoilt("evaluation", [*good, tried("b", None)], 0.01)  # 1 of 100 is just borne
    with pytest.raises(InfraError, match=r"2 of 101 rollouts failed \(tool:search 2\), 1.0% are borne.*the first: tool:search: gone"):
        refuse_spoilt("evaluation", [*good, tried("b", None), tried("c", None)], 0.01)
    for nothing in ([], [tried("a", None)]):
        with pytest.raises(InfraError, match="no report is made"):
            refuse_spoilt("evaluation", nothing, 1.0)


def test_the_holdout_is_the_mean_over_graders():
    """f: (1 + 0 + .5) / 3 = .5; g: 1; together .75."""
    grades = {"f": [Grade(REF, 1.0), Grade(REF, 0.0), Grade(REF, 0.5)], "g": [Grade(REF, 1.0)] * 3}
    assert holdout_figures(grades, 0.0) == {"reward": 0.75, "by_grader": {"f": 0.5, "g": 1.0}, "n": 3, "infra_failed": 0}


def test_a_holdout_grader_that_gave_no_score_never_looks_like_a_bad_answer():
    failed = Grade(REF, None, errors={"other_error": "down"})
    half = {"f": [Grade(REF, 1.0), failed]}
    assert holdout_figures(half, 0.5) == {"reward": 1.0, "by_grader": {"f": 1.0}, "n": 2, "infra_failed": 1}
    with pytest.raises(InfraError, match=r"grader:f: gave no score to 1 of 2 rollouts, 49.0% are borne: .'other_error': 'down'"):
        holdout_figures(half, 0.49)
    with pytest.raises(InfraError, match="gave no score to 2 of 2"):
        holdout_figures({"f": [failed, failed]}, 1.0)
