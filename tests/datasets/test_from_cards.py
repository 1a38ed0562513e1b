"""Rows from job cards: filtered, approved, redacted, each question once, and never what validation asks."""

from __future__ import annotations

import json

import pytest

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, JobCard, Versions
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, Limits, Rollout, Turn
from agent_rft.contracts.rows import Expected, Row
from agent_rft.datasets.from_cards import Choice, rows_of_cards
from agent_rft.datasets.rows import encode_row, row_of
from observability.redaction.redact import redact as redact_text

SYSTEM = Message("system", "You answer questions.")


def card(number: int, prompt: str, reward: float | None = 1.0, **changes: object) -> JobCard:
    tools: tuple[str, ...] = changes.pop("tools", ("search",))
    ending = changes.pop("ending", Ending.ANSWERED)
    opening = changes.pop("opening", (SYSTEM, Message("user", prompt)))
    turn = Turn("", calls=tuple(ToolCall(f"c{n}", name, {}) for n, name in enumerate(tools)))
    rollout = Rollout(f"id-{number}", opening, (ToolSpec("search"),), Limits(), turns=[turn], ending=ending, answer="42 boats")
    values = {
        "kind": "production",
        "tenant": "t",
        "run_id": "r",
        "step": None,
        "row_id": f"row-{number}",
        "sample_index": 0,
        "started_at": "",
        "reference_answer": "42",
        "metadata": {"task_type": "qa"},
        "grade": None if reward is None else Grade(GraderRef("numeric", "1", "x"), reward),
        "cost": Cost(),
        "versions": Versions(code="", checkpoint=""),
    }
    return JobCard(rollout_id=f"id-{number}", rollout=rollout, **(values | changes))


def redact(text):
    return redact_text(text).text


def harvested(cards, choice=Choice(), held_out=(), redact=str, approved=None):  # noqa: B008
    harvest = rows_of_cards(cards, choice, held_out, redact=redact, approved=approved)
    return [row.id for row in harvest.rows], harvest.left_out


def test_a_card_becomes_a_row_with_its_conversation_tools_and_origin():
    (row,) = rows_of_cards([card(1, "How many boats?")], Choice(), (), redact=str).rows
    assert row == Row(
        "card-id-1",
        "How many boats?",
        "42",
        tools=(ToolSpec("search"),),
        metadata={"task_type": "qa", "from_row": "row-1", "from_kind": "production"},
        messages=(SYSTEM, Message("user", "How many boats?")),
    )


def test_a_row_keeps_what_graders_saw_of_the_first_one_with_the_own_keys_redacted_and_the_paths_left():
    own = {"expected": {"tolerance_rel": 0.02, "evidence_path": "docs/+49 30 1234 5678.txt"}, "asked_by": "jo@ships.org", "id": 7}
    (row,) = rows_of_cards([card(1, "How many boats?", item=own)], Choice(), (), redact=redact).rows
    assert row.expected == Expected(0.02, "docs/+49 30 1234 5678.txt")
    assert (row.id, row.extra) == ("card-id-1", {"asked_by": "[EMAIL]"})


def test_a_row_of_openais_shape_has_its_answer_in_its_own_keys_and_is_read_again():
    alone = (Message("user", "How many boats?"),)
    cards = [
        card(1, "How many boats?", opening=alone, reference_answer=None, item={"answer": "42", "expected": "a text", "id": 7}),
        card(2, "Which port is it?", reference_answer=None, item={}),
        card(3, "Which sail is it?", None, reference_answer=None, item={"answer": "the red one"}),
    ]
    harvest = rows_of_cards(cards, Choice(), (), redact=str)
    (row,) = harvest.rows
    assert (row.id, row.prompt, row.reference_answer, row.messages) == ("card-id-1", "How many boats?", None, alone)
    assert row.extra == {"answer": "42", "expected": "a text"}
    assert harvest.left_out == {"no reference answer": 2}, "no own key; and none that a grader is known to have read"
    again, faults = row_of(json.loads(encode_row(row)), "rows.jsonl:1")
    assert again == row and not faults


@pytest.mark.parametrize(
    ("choice", "why", "left"),
    [
        (Choice(kinds=("eval", "shadow")), "of another kind", card(2, "Which port is it?")),
        (Choice(least_reward=0.5), "of another reward", card(2, "Which port is it?", 0.4)),
        (Choice(most_reward=0.5), "of another reward", card(2, "Which port is it?", 0.6)),
        (Choice(least_reward=0.0), "without a score", card(2, "Which port is it?", None)),
        (Choice(tools=("search", "read")), "without the tools", card(2, "Which port is it?")),
        (Choice(), "spoilt by infrastructure", card(2, "Which port is it?", ending=Ending.INFRA_FAILED)),
        (Choice(), "no reference answer", card(2, "Which port is it?", reference_answer=None)),
        (Choice(), "asked twice", card(2, "how MANY boats")),
    ],
)
def test_each_filter_leaves_out_what_it_should_and_says_so(choice, why, left):
    fits = card(1, "How many boats?", 0.5, kind="eval", tools=("search", "read"))
    assert harvested([fits, left], choice) == (["card-id-1"], {why: 1})


def test_only_what_a_person_approved_and_then_its_answer_is_the_reference():
    cards = [card(1, "How many boats?", reference_answer=None), card(2, "Which port is it?", reference_answer=None)]
    harvest = rows_of_cards(cards, Choice(), (), redact=str, approved=lambda one: one.rollout_id == "id-1")
    assert [(row.id, row.reference_answer) for row in harvest.rows] == [("card-id-1", "42 boats")]
    assert harvest.left_out == {"not approved by a person": 1}


@pytest.mark.parametrize(
    ("held_out", "why"),
    [
        (Row("v", "how many BOATS", "42"), "asked by validation"),
        (Row("v", "How many boats?", "42", messages=(SYSTEM, Message("user", "How many boats?"))), "asked by validation"),
        (Row("v", "Boats: how many?", "42"), "nearly asked by validation"),
    ],
)
def test_what_validation_asks_never_enters_train(held_out, why):
    cards = [
        card(1, "How many boats?"),
        card(2, "How many boats?", opening=(Message("user", "How many boats?"),)),
        card(3, "Which port is it?"),
    ]
    kept, left_out = harvested(cards, held_out=[held_out])
    assert kept == ["card-id-3"]
    assert left_out == {why: 2}


def test_validation_is_compared_before_redaction_too():
    held_out = [Row("v", "Who is jo@ships.org?", "42")]
    assert harvested([card(1, "Who is jo@ships.org?")], held_out=held_out, redact=redact) == ([], {"asked by validation": 1})


def test_every_text_that_people_wrote_is_redacted_and_the_rest_is_not():
    opening = (
        Message("system", "Mail to desk@ships.org"),
        Message("user", "find jo@ships.org"),
        Message("assistant", "", (ToolCall("c", "search", {"query": ["jo@ships.org"], "top": 3}),)),
        Message("tool", "jo@ships.org sails", call_id="c"),
        Message("user", "Where is jo@ships.org?"),
    )
    asked = card(1, "", opening=opening, reference_answer="with al@ships.org", metadata={"note": {"by": "jo@ships.org", "n": 2}})
    (row,) = rows_of_cards([asked], Choice(), (), redact=redact).rows
    assert "@" not in repr(row)
    assert row.prompt == "Where is [EMAIL]?"
    assert row.reference_answer == "with [EMAIL]"
    assert row.messages[2].tool_calls == (ToolCall("c", "search", {"query": ["[EMAIL]"], "top": 3}),)
    assert row.metadata["note"] == {"by": "[EMAIL]", "n": 2}


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("write to a.b+c@mail.example.org now", "write to [EMAIL] now"),
        ("key sk-abcdefghijklmnop1234 leaked", "key [KEY] leaked"),
        ("Authorization: Bearer abcdefghijklmnop.qrst", "Authorization: [KEY]"),
        ("pay DE89 3704 0044 0532 0130 00 today", "pay [IBAN] today"),
        ("call +49 30 1234 5678.", "call [PHONE]."),
        ("ssn 078-05-1120", "ssn [SSN]"),
        ("card 4111 1111 1111 1111 is", "card [CARD] is"),  # the usual test number: its Luhn sum is 30
        ("order 4111 1111 1111 1112 is", "order 4111 1111 1111 1112 is"),
        ("revenue was $1,234,567,890,123 in 2024", "revenue was $1,234,567,890,123 in 2024"),
        ("Q3 2025: +12.5% to 842 million", "Q3 2025: +12.5% to 842 million"),
    ],
)
def test_redaction_finds_what_has_a_shape_and_leaves_figures(said, left):
    assert redact(said) == left
