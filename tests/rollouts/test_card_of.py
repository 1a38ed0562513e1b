"""A rollout's card tells a grader of the row what the row itself told, and nothing twice."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.jobcards import JobCard, Versions
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Limits, Rollout
from agent_rft.contracts.rows import Expected, Row
from agent_rft.datasets.rows import row_of
from agent_rft.rollouts.cards import card_of, row_tried


def tried(row: Row) -> JobCard:
    opening = (Message("system", "You answer."), *row.opening())
    rollout = Rollout("id-1", opening, (), Limits(), ending=Ending.ANSWERED, answer="1")
    graded = GradedRollout(row, 0, rollout, None)
    return card_of(graded, kind="train", run_id="run-1", versions=Versions(code="", checkpoint=""), tenant="local")


def stored(card: JobCard) -> JobCard:
    """As it comes back from JSON."""
    return msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(card))), JobCard)


def test_a_card_keeps_expected_and_own_keys_and_no_prompt_twice():
    row = Row("r", "How many?", "7", Expected(0.02, ("a", "b"), ("read",)), metadata={"task_type": "qa"}, extra={"rubric": "be brief"})
    card = tried(row)
    assert card.item == {
        "expected": {"tolerance_rel": 0.02, "evidence_path": ("a", "b"), "must_use_tools": ("read",)},
        "rubric": "be brief",
    }
    assert tried(Row("r", "How many?", "7", metadata={"task_type": "qa"})).item == {}
    back = row_tried(stored(card))
    assert (back.expected, back.extra, back.prompt) == (row.expected, row.extra, row.prompt)


CHAT = {"messages": [{"role": "user", "content": "How many?"}]}


@pytest.mark.parametrize(
    "line",
    [
        {"id": "r", "prompt": "How many?", "reference_answer": 7},
        CHAT | {"prompt": "another than the last message", "reference_answer": "7"},
        CHAT | {"prompt": None, "reference_answer": "", "metadata": "none", "id": 7},
        CHAT | {"expected": {"answer": "seven", "tolerance_rel": 0.1}},
        CHAT | {"expected": "seven", "extra": {"extra": 1}},
        CHAT | {"expected": {"tolerance_rel": "2%"}},
    ],
)
def test_a_grader_sees_of_the_stored_card_what_it_saw_of_the_row(line):
    row, faults = row_of(line, "default")
    assert row and not faults
    assert json.dumps(row_tried(stored(tried(row))).item()) == json.dumps(row.item())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
names = st.sampled_from(["id", "prompt", "reference_answer", "expected", "metadata", "extra", "item", "rubric"])
expectations = st.builds(Expected, st.none() | st.floats(0, 1), st.none() | st.text() | st.tuples(st.text()), st.tuples(st.text()))


@given(st.text(min_size=1), values, expectations, st.dictionaries(names, values))
def test_of_whatever_row(prompt, reference, expected, extra):
    row = Row("r", prompt, reference, expected, extra=extra)
    assert json.loads(json.dumps(row_tried(stored(tried(row))).item())) == json.loads(json.dumps(row.item()))
