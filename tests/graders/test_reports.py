"""What a grader version has to show, and what keeps it from being active: the limits, by hand."""

from __future__ import annotations

import hashlib

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rows import Row
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.reports import (
    Label,
    Report,
    Standing,
    adversarial_report,
    cases_report,
    checked_on,
    kappa_report,
    missing_for_activation,
    missing_reports,
    regrade_report,
)

REF = GraderRef("numeric", "1", "h")
RIGHT = '{"item": {"reference_answer": "1"}, "sample": {"output_text": "1"}, "reward": 1}'
WRONG = '{"item": {"reference_answer": "1"}, "sample": {"output_text": "2"}, "reward": 0.5}'
BROKEN = '{"item": {"reference_answer": "soon"}, "sample": {"output_text": "2"}, "errors": ["invalid_variable_error"]}'


def grades(*rewards):
    return {f"r{at}": Grade(REF, reward, reward is not None and reward >= 0.75) for at, reward in enumerate(rewards)}


# --- cases --------------------------------------------------------------------------------------------------------------


def test_cases_pass_where_each_gets_its_reward_or_its_flags():
    report = cases_report([RIGHT, "", BROKEN], NumericGrader(), "cases.jsonl")
    assert (report.passed, report.why) == (True, "2 of 2 cases right")
    assert (report.figures["cases"], report.figures["wrong"], report.figures["source"]) == (2, [], "cases.jsonl")


def test_the_reports_pin_what_was_checked():
    """By the hashes that `sha256sum` gives for the file, and for the sorted ids, a line each, without a last newline."""
    text = f"{RIGHT}\n\n{BROKEN}\n"
    report = cases_report(text.split("\n"), NumericGrader(), "cases.jsonl")
    assert checked_on(report) == f"2 cases of cases.jsonl, sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    report = regrade_report(grades(1, 0), dict(reversed(grades(1, 0, 1).items())), "numeric@1#h", "run-1")
    assert checked_on(report) == f"2 rollouts of run run-1, sha256 of their ids {hashlib.sha256(b'r0' + bytes([10]) + b'r1').hexdigest()}"
    assert checked_on(Report("regrade", True, "", {"against": "a", "run": "r"})) == ""  # of before reports said so


def test_a_case_that_gets_another_reward_is_told_with_its_line():
    report = cases_report([RIGHT, "", WRONG, BROKEN.replace("soon", "2")], NumericGrader(), "cases.jsonl")
    assert not report.passed
    assert report.figures["wrong"] == ["cases.jsonl:3: wanted 0.5, got 0.0", "cases.jsonl:4: wanted ['invalid_variable_error'], got 1.0"]


def test_cases_that_expect_nothing_are_no_cases():
    with pytest.raises(UserError, match=r"line 2 of c.jsonl says not what is expected"):
        cases_report([RIGHT, RIGHT.replace(', "reward": 1', "")], NumericGrader(), "c.jsonl")
    with pytest.raises(UserError, match="holds no case"):
        cases_report([], NumericGrader(), "c.jsonl")


# --- regrade ------------------------------------------------------------------------------------------------------------


def test_a_regrade_passes_with_its_changes_told():
    report = regrade_report(grades(1, 0, 0, 1), grades(1, 0.5, 0, 1), "numeric@1#h", "run-1")
    assert report.passed and report.why == "1 of 4 rollouts change, rank correlation 0.94"
    # ranks 3.5 1.5 1.5 3.5 and 3.5 2 1 3.5: covariance 4, variances 4 and 4.5, so 4 / sqrt(18) = 0.943
    assert (report.figures["against"], report.figures["run"]) == ("numeric@1#h", "run-1")
    assert list(report.figures["changed"]) == [{"sample": "r1", "change": "other reward", "before": 0, "after": 0.5}]


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ((1, 0, 0, None), "1 of 4 rollouts get no score any more"),
        ((0, 1, 1, 0), "rank correlation -1.00, below 0.5: it measures something else"),
        ((None, None, None, None), "no rollout was scored by both graders"),
    ],
)
def test_a_regrade_does_not_pass_with_lost_scores_or_another_order(after, why):
    report = regrade_report(grades(1, 0, 0, 1), grades(*after), "numeric@1#h", "run-1")
    assert (report.passed, report.why) == (False, why)


def test_where_all_score_alike_there_is_no_order_to_change():
    report = regrade_report(grades(1, 1), grades(1, 1), "a", "run-1")
    assert (report.passed, report.why) == (True, "0 of 2 rollouts change, rank correlation not defined")


# --- adversarial --------------------------------------------------------------------------------------------------------


def test_the_adversarial_report_says_what_earned_too_much():
    rows = [Row("r1", "13.4%", "13.4%")]  # the question is the answer, so the echo is right
    report = adversarial_report(rows, NumericGrader())
    assert (report.passed, report.why) == (False, "too much, or no score, for: echo")
    assert adversarial_report([], NumericGrader()).why == "no row to try"
    fine = adversarial_report([Row("r1", "The margin?", "13.4%")], NumericGrader())
    assert (fine.passed, fine.why) == (True, "7 kinds of answers on 1 rows earn nothing")


def test_kinds_that_could_not_be_tried_are_named_with_the_cure_and_only_left_out_where_that_is_asked_for():
    class Strict(NumericGrader):
        def grade(self, item, sample):
            return Grade(self.ref, 0.0, False)

    rows = [Row("r1", "The margin?", None, extra={"answer": "13.4%"})]
    report = adversarial_report(rows, Strict())
    assert not report.passed and report.cure.startswith("--reference KEY")
    assert report.why == "the right answer of rows is not known, so not enough was tried of: hedged, all numbers, wrong claim"
    report = adversarial_report(rows, Strict(), references=["{{item.answer}}"])
    assert (report.passed, report.figures["references"]) == (True, ["{{item.answer}}"])
    report = adversarial_report(rows, Strict(), without_reference=True)
    told = "4 kinds of answers on 1 rows earn nothing; without a right answer not tried: hedged, all numbers, wrong claim"
    assert (report.passed, report.why) == (True, told)


# --- people -------------------------------------------------------------------------------------------------------------


def labels(*scores):
    return [Label(f"r{at}", score) for at, score in enumerate(scores)]


def test_kappa_decides_on_pass_or_fail_and_tells_the_graded_scores_too():
    """Nine of ten alike. Chance: 0.5 x 0.4 + 0.5 x 0.6 = 0.5; kappa (0.9 - 0.5) / 0.5 = 0.8."""
    report = kappa_report(labels(1, 1, 1, 1, 1, 0, 0, 0, 0, 0), grades(1, 1, 1, 1, 0, 0, 0, 0, 0, 0))
    assert report.passed and report.why.startswith("kappa 0.80 (95%: 0.4") and report.why.endswith("on 10 rollouts")
    assert report.figures["pass or fail"]["kappa"] == pytest.approx(0.8)
    assert report.figures["quadratic"]["kappa"] == pytest.approx(0.8)  # of two levels any weights are none
    assert report.figures["labels"] == 10


def test_halves_count_as_near_misses_only_for_the_weighted_ones():
    """Five pairs (1, 1), five (0.5, 0): all alike on pass or fail. Linear: near by half a range in half the pairs, so 0.75."""
    report = kappa_report(labels(*[1.0] * 5, *[0.5] * 5), grades(*[1] * 5, *[0] * 5))
    assert report.figures["pass or fail"]["kappa"] == 1
    assert report.figures["linear"]["observed"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("people", "grader", "why"),
    [
        ([1] * 9, [1] * 9, "9 labelled rollouts with a score, 10 at least are needed"),
        ([1] * 10, [1] * 10, "all pass, or all fail, with people and grader alike: label others too"),
        ([1] * 5 + [0] * 5, [1, 1, 1, 0, 0, 1, 1, 0, 0, 0], "kappa 0.20 (95%: -0.41 to 0.81) on 10 rollouts; at least 0.6"),
        ([1] * 5 + [0] * 6, [None] * 2 + [1] * 3 + [0] * 6, "9 labelled rollouts with a score"),
    ],
)
def test_too_few_labels_and_too_little_agreement_do_not_pass(people, grader, why):
    report = kappa_report(labels(*people), grades(*grader))
    assert not report.passed and report.why.startswith(why)
    assert ("rft label" in report.cure) is ("0.6" not in why)  # the grader is not at fault where too little was labelled


# --- the gate -----------------------------------------------------------------------------------------------------------

PASSED = {
    "cases": Report("cases", True, "", {}),
    "regrade": Report("regrade", True, "", {"against": "numeric@1#h"}),
    "adversarial": Report("adversarial", True, "", {}),
    "kappa": Report("kappa", True, "", {}),
}


def standing(without=(), **changes):
    reports = {kind: report for kind, report in PASSED.items() if kind not in without}
    known = {"registered_by": "ann", "approved_by": ("bob",), "against": "numeric@1#h", "labelled": True, "reports": reports}
    return Standing(**(known | changes))


def test_with_every_report_and_a_second_person_nothing_is_missing():
    assert missing_for_activation(standing()) == []


def test_kappa_is_needed_only_where_people_have_labelled():
    assert missing_reports(standing(without=["kappa"], labelled=False)) == []
    assert missing_reports(standing(without=["kappa"])) == ["the kappa report"]


@pytest.mark.parametrize("approved_by", [(), ("ann",), (" Ann ",)])
def test_nobody_approves_their_own(approved_by):
    assert missing_for_activation(standing(approved_by=approved_by)) == ["the approval of a second person, other than ann"]


def test_an_approval_of_what_was_there_before_the_newest_report_does_not_count():
    missing = "the approval of a second person, other than ann; there are reports since the approval of bob, which was of others"
    assert missing_for_activation(standing(approved_by=(), approved_before=("bob", "Ann", "bob"))) == [missing]
    assert missing_for_activation(standing(approved_by=("eve",), approved_before=("bob",))) == []


def test_all_that_is_missing_is_said_at_once():
    failed = {"cases": Report("cases", False, "3 of 4 cases right", {})}
    assert missing_for_activation(standing(reports=failed, approved_by=())) == [
        "a cases report that passes: 3 of 4 cases right",
        "the regrade report",
        "the adversarial report",
        "the kappa report",
        "the approval of a second person, other than ann",
    ]


def test_a_failed_report_is_told_with_its_article():
    failed = PASSED | {"adversarial": Report("adversarial", False, "too much for: echo", {})}
    assert missing_reports(standing(reports=failed)) == ["an adversarial report that passes: too much for: echo"]


def test_a_comparison_with_what_is_no_longer_active_does_not_count():
    assert missing_reports(standing(against="numeric@2#i")) == [
        "the regrade report compares with numeric@1#h, but numeric@2#i is active now"
    ]
