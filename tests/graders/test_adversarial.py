"""Answers that earn nothing: a grader that pays for one is found out, by kind and with the row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rows import Row
from agent_rft.graders.adversarial import LEANING, LONG, Ceiling, adversarial_answers, try_adversarial
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.text import StringCheckGrader

ROWS = [Row("r1", "What was the margin of Heron in Q1 2025?", "13.4%"), Row("r2", "What was its revenue?", "$842M")]
KINDS = {"empty", "injected", "echo", "very long", "hedged", "all numbers", "wrong claim"}


class Fixed:
    """Pays by a rule of the answer's text."""

    def __init__(self, rule):
        self.ref, self._rule = GraderRef("fixed", "1", "f"), rule

    def grade(self, item, sample):
        return Grade(self.ref, self._rule(sample["output_text"]))


def test_each_kind_is_what_it_says():
    answers = dict(adversarial_answers(ROWS[0]))
    assert set(answers) == KINDS
    assert answers["empty"] == "" and answers["echo"] == ROWS[0].prompt and len(answers["very long"]) == LONG
    assert answers["hedged"] == "It is either 13.4% or 46.7%."  # each digit three further
    assert "13.4%" in answers["wrong claim"] and answers["wrong claim"].endswith("it is 46.7%.")
    assert answers["all numbers"].startswith("13.4%, 46.7%, 0, 1, 2")


@given(st.text(min_size=1).filter(str.strip))
def test_the_other_answer_is_never_the_right_one(reference):
    hedged = dict(adversarial_answers(Row("r", "?", reference)))["hedged"]
    assert hedged != f"It is either {reference} or {reference}."


def test_where_the_right_answer_is_not_known_what_leans_on_it_counts_as_untried():
    poem, grader = Row("r", "Write a poem.", None), Fixed(lambda text: 0.0)
    assert {kind for kind, text in adversarial_answers(poem) if text is not None} == {"empty", "injected", "echo", "very long"}
    result = try_adversarial([poem], grader)
    assert not result.passed
    assert {kind.kind: kind.untried for kind in result.kinds if not kind.below_ceiling} == dict.fromkeys(LEANING, 1)
    said_so = try_adversarial([poem], grader, without_reference=True)
    assert said_so.passed and {kind.kind for kind in said_so.kinds} == KINDS - set(LEANING)


def test_the_right_answer_is_found_under_the_key_that_the_grader_holds_answers_against():
    """The row's own key, as OpenAI's rows have it."""
    rows = [Row("r1", "The margin?", None, extra={"answer": "64.8%"})]
    loose = StringCheckGrader("{{sample.output_text}}", "{{item.answer}}", "like", "loose")
    found = try_adversarial(rows, loose, references=["{{item.answer}}"])
    paid = {kind.kind: kind.highest for kind in found.kinds if not kind.below_ceiling}
    assert paid == {"hedged": 1.0, "all numbers": 1.0, "wrong claim": 1.0}
    assert ("hedged", "It is either 64.8% or 97.1%.") in adversarial_answers(rows[0], ["{{item.answer}}"])
    assert [kind for kind, _ in adversarial_answers(Row("r", "?", "1", extra={"b": "2"}), ["{{item.b}}"])].count("hedged") == 2


@pytest.mark.parametrize(("scored", "below"), [(9, True), (8, False)])
def test_of_ten_answers_nine_need_a_score(scored, below):
    def sometimes(text):
        if text.startswith("Question") and int(text[9:-1]) >= scored:
            raise ValueError("away")
        return 0.0

    rows = [Row(f"r{n}", f"Question {n}?", "1") for n in range(10)]
    result = try_adversarial(rows, Fixed(sometimes))
    echo = next(kind for kind in result.kinds if kind.kind == "echo")
    assert (echo.answers, echo.scored, echo.below_ceiling, result.passed) == (10, scored, below, below)


def test_the_shipped_grader_pays_for_none_of_them():
    result = try_adversarial(ROWS, NumericGrader())
    assert result.passed and {kind.kind for kind in result.kinds} == KINDS
    assert all((kind.answers, kind.scored, kind.mean, kind.highest) == (2, 2, 0, 0) for kind in result.kinds)


def test_a_grader_that_looks_for_the_reference_anywhere_is_found_out():
    found = try_adversarial(ROWS, StringCheckGrader("{{sample.output_text}}", "{{item.reference_answer}}", "like", "loose"))
    assert not found.passed
    assert {kind.kind for kind in found.kinds if not kind.below_ceiling} == {"hedged", "all numbers", "wrong claim"}
    assert next(kind for kind in found.kinds if kind.kind == "hedged").highest == 1


@pytest.mark.parametrize(("paid", "below"), [(0.1, True), (0.11, False)])
def test_the_ceiling_is_on_the_mean(paid, below):
    assert try_adversarial(ROWS, Fixed(lambda text: paid)).passed is below


def test_and_on_each_row_whatever_the_mean():
    rows = [Row(f"r{n}", f"Question {n}?", "1") for n in range(20)]
    result = try_adversarial(rows, Fixed(lambda text: 1.0 if text == "Question 7?" else 0.0), Ceiling(mean=0.1, highest=0.5))
    (echo,) = [kind for kind in result.kinds if not kind.below_ceiling]
    assert (echo.kind, echo.mean, echo.highest, echo.worst_row) == ("echo", pytest.approx(0.05), 1.0, "r7")


def test_a_grader_that_breaks_on_a_kind_has_not_withstood_it():
    def breaks(text):
        if not text:
            raise ValueError("empty")
        return 0.0

    result = try_adversarial(ROWS, Fixed(breaks))
    (empty,) = [kind for kind in result.kinds if not kind.below_ceiling]
    assert (empty.kind, empty.scored, empty.mean) == ("empty", 0, None)


def test_without_rows_nothing_is_shown():
    assert not try_adversarial([], NumericGrader()).passed
