"""Rows from a stronger model: only what every independent solve confirms, and a failed server says nothing against a document."""

from __future__ import annotations

import json

import pytest

from agent_rft.contracts.errors import InfraError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.rows import Expected, Row
from agent_rft.datasets.synthesis import Ask, Plan, Source, accepted, read_proposal, run_trial, trial
from agent_rft.graders.numeric import NumericGrader

SOURCE = Source("filings/a.html", "Atlas Q3 2025\noperating margin: 13.4%")
PROPOSAL = json.dumps({"question": "What was Atlas's operating margin in Q3 2025?", "answer": "13.4%"})


class Scripted:
    """A model that proposes one thing and solves as told; it keeps what it was asked."""

    def __init__(self, proposal: str, *solves: str) -> None:
        self.replies = [proposal, *solves]
        self.asked: list[Ask] = []

    def __call__(self, ask: Ask) -> str:
        self.asked.append(ask)
        reply = self.replies[len(self.asked) - 1]
        if reply == "down":
            raise InfraError("model", "503")
        return reply


def tried(model: Scripted, grader=None, **plan: object):
    return run_trial(SOURCE, 4, grader or NumericGrader(), Plan(**plan), model)


def test_a_proposal_that_every_solve_confirms_becomes_a_row():
    model = Scripted(PROPOSAL, "13.4%", " 13.4 percent\n", "0.134")
    outcome = tried(model, tools=(ToolSpec("search"),))
    assert outcome.ending == "accepted"
    assert accepted([outcome]) == [
        Row(
            "synthetic-00004",
            "What was Atlas's operating margin in Q3 2025?",
            "13.4%",
            Expected(evidence_path="filings/a.html"),
            (ToolSpec("search"),),
            {"task_type": "numerical_qa", "synthetic": True, "agreeing_solves": 3},
        )
    ]
    assert [ask.purpose for ask in model.asked] == ["propose", "solve", "solve", "solve"]


def test_solves_see_the_document_and_the_question_but_not_the_proposed_answer_and_draw_anew():
    model = Scripted(json.dumps({"question": "Which?", "answer": "777"}), "777", "777", "777")
    assert tried(model).ending == "accepted"
    for ask in model.asked[1:]:
        said = "\n".join(message.content for message in ask.messages)
        assert SOURCE.text in said and "Which?" in said and "777" not in said
    assert len({ask.seed for ask in model.asked}) == 4
    other = Scripted(PROPOSAL, "13.4%", "13.4%", "13.4%")
    run_trial(SOURCE, 5, NumericGrader(), Plan(), other)
    assert not {ask.seed for ask in other.asked} & {ask.seed for ask in model.asked}


@pytest.mark.parametrize("solves", [("13.4%", "13.4%", "12%"), ("unknown",), ("",)])
def test_one_solve_that_disagrees_is_enough_and_nothing_more_is_asked(solves):
    model = Scripted(PROPOSAL, *solves)
    outcome = tried(model)
    assert (outcome.ending, outcome.why, outcome.row) == ("rejected", "a solve disagrees", None)
    assert len(model.asked) == 1 + len(solves)
    assert repr(solves[-1]) in outcome.detail


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("I would rather not.", "its proposal is no JSON"),
        ('{"question": "Why?"}', "its proposal lacks question or answer"),
        ('{"question": " ", "answer": "1"}', "its proposal lacks question or answer"),
        ('{"question": "Is it?", "answer": true}', "its proposal lacks question or answer"),
        (json.dumps({"question": "x" * 601, "answer": "1"}), "its question is too long"),
        ('{"question": "Which colour?", "answer": "red"}', "the grader cannot use its answer"),
    ],
)
def test_a_proposal_that_cannot_be_used_is_rejected_before_any_solve(reply, why):
    model = Scripted(reply)
    outcome = tried(model)
    assert (outcome.ending, outcome.why) == ("rejected", why)
    assert len(model.asked) == 1


def test_words_around_the_json_are_looked_past_and_a_number_is_an_answer():
    assert read_proposal('Sure!\n```json\n{"question": "How many?", "answer": 12}\n```') == ("How many?", "12")


@pytest.mark.parametrize("replies", [("down",), (PROPOSAL, "13.4%", "down")])
def test_a_server_that_fails_is_no_rejection(replies):
    outcome = tried(Scripted(*replies))
    assert (outcome.ending, outcome.why, outcome.detail, outcome.row) == ("infra_failed", "model", "503", None)


def test_a_grader_that_fails_is_no_rejection():
    class Broken:
        ref = GraderRef("judge", "1", "x")
        waits = True

        def grade(self, item, sample) -> Grade:
            return Grade(self.ref, None, errors={"model_grader_server_error": True})

    outcome = tried(Scripted(PROPOSAL), Broken())
    assert (outcome.ending, outcome.why) == ("infra_failed", "grader:judge")


def test_a_trial_is_plain_questions_and_replies():
    going = trial(SOURCE, 0, NumericGrader(), Plan(solves=1, temperature=0.3))
    assert next(going).temperature == 0.3
    assert going.send(PROPOSAL).purpose == "solve"
    with pytest.raises(StopIteration) as ended:
        going.send("13.4%")
    assert ended.value.value.ending == "accepted"
