"""What a person who labels sees, in which order, and how agreement is counted."""

from __future__ import annotations

import runpy
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.jobcards import Cost, Versions
from agent_rft.contracts.messages import Message, ToolCall
from agent_rft.contracts.people import PersonsLabel
from agent_rft.contracts.rollouts import Ending, ToolResult, Turn
from agent_rft.graders.labelling import (
    RESULT_LINES,
    TEXT_CHARACTERS,
    Differing,
    Passage,
    Round,
    after,
    agreements,
    asked_by,
    blind_view,
    figures,
    in_order,
    place_of,
    read_score,
    unscored,
)

make_card = runpy.run_path(str(Path(__file__).parents[1] / "observability" / "sample_cards.py"))["make_card"]
IDS = [f"id-{number}" for number in range(40)]
ANN, BOB = Round("run-1", "Ann"), Round("run-1", "Bob")
WORDS = st.text(min_size=1, max_size=20)


def test_the_view_holds_what_was_asked_done_answered_and_right_and_no_more():
    assert blind_view(make_card()) == (
        Passage("asked", "System", "You answer questions about company filings."),
        Passage("asked", "Prompt", "What was the operating margin of Henderson Hotels in Q3 2025?"),
        Passage("said", "Agent", "I look it up."),
        Passage("called", "Call 1", 'search(query="Henderson Hotels operating margin Q3 2025")'),
        Passage("returned", "Result 1", "filings/henderson-hotels-10q-2025-q3.html (score 8.21)\n  operating margin: 13.4%"),
        Passage("called", "Call 2", 'read(path="filings/henderson-hotels-10q-2025-q3.html")'),
        Passage("returned", "Result 2", "Henderson Hotels Q3 2025\nrevenue: $842M\noperating margin: 13.4%"),
        Passage("answer", "Answer", "The operating margin was 13.4%."),
        Passage("reference", "Reference answer", "13.4%"),
    )


@given(
    words=st.lists(WORDS, min_size=9, max_size=9),
    reward=st.none() | st.floats(0, 1),
    advantage=st.none() | st.floats(-3, 3),
    number=st.integers(0, 10**6),
    kind=st.sampled_from(["prior", "train", "eval", "shadow", "production"]),
)
def test_nothing_else_of_a_card_can_change_what_is_seen(words, reward, advantage, number, kind):
    seen = make_card()
    grade = Grade(GraderRef(words[0], "1", "h"), reward, reward == 1, {words[1]: words[2]}, {words[3]: words[4]})
    cost = Cost(context_tokens=number, sampled_tokens=number, tool_calls=number, seconds=float(number))
    rollout = msgspec.structs.replace(seen.rollout, rollout_id=words[5], seed=number, seconds=float(number), started_at=words[6])
    hidden = make_card(
        words[5], rollout=rollout, grade=grade, advantage=advantage, cost=cost, step=number, kind=kind, sample_index=number,
        versions=Versions(code=words[7], checkpoint=words[8]), metadata={"difficulty": words[0]}, row_id=words[1], started_at=words[6],
        tenant=words[2], run_id=words[3],
    )  # fmt: skip
    assert blind_view(hidden) == blind_view(seen)


def test_a_turn_that_could_not_be_read_is_shown_whole_and_there_is_no_answer():
    card = make_card()
    rollout = msgspec.structs.replace(card.rollout, turns=[Turn("<tool_call>{broken")], ending=Ending.MALFORMED, answer="")
    view = blind_view(make_card(rollout=rollout, reference_answer={"revenue": 842}))
    assert view[2:] == (
        Passage("said", "Agent", "<tool_call>{broken"),
        Passage("answer", "Answer", "(none given)"),
        Passage("reference", "Reference answer", '{\n "revenue": 842\n}'),
    )


def test_a_row_of_openais_shape_shows_the_keys_that_hold_its_answer_but_not_how_it_is_counted():
    item = {"id": 7, "answer": "64.8%", "accepted": ["64.8%", "about 65%"], "difficulty": "hard", "expected": {"tolerance_rel": 0.1}}
    last = blind_view(make_card(reference_answer=None, item=item))[-1]
    assert last == Passage("reference", "The row's own keys", 'answer: 64.8%\naccepted: [\n "64.8%",\n "about 65%"\n]')
    for none in (None, {}, {"difficulty": "hard"}):
        assert blind_view(make_card(reference_answer=None, item=none))[-1] == Passage("reference", "Reference answer", "(none)")


def test_what_an_example_in_the_prompt_called_is_shown():
    calls = (ToolCall("a", "search", {"query": "x"}), ToolCall("b", "read", {}))
    opening = (
        Message("user", "Find x"),
        Message("assistant", "", calls),
        Message("tool", "found", call_id="a"),
        Message("assistant", "It is 5.", calls[1:]),
        Message("user", ""),
    )
    rollout = msgspec.structs.replace(make_card().rollout, opening=opening, turns=[])
    assert [(one.title, one.text) for one in blind_view(make_card(rollout=rollout)) if one.part == "asked"] == [
        ("Prompt", "Find x"),
        ("Assistant's call", 'search(query="x")'),
        ("Assistant's call", "read()"),
        ("Tool", "found"),
        ("Assistant", "It is 5."),
        ("Assistant's call", "read()"),
        ("Prompt", ""),
    ]


def test_long_results_and_answers_are_shortened_and_say_by_how_much():
    call = ToolCall("c", "read", {})
    turn = Turn("", calls=(call,), results={"c": ToolResult("c", "\n".join(["line"] * (RESULT_LINES + 3)))})
    rollout = msgspec.structs.replace(make_card().rollout, turns=[turn], answer="x" * (TEXT_CHARACTERS + 5))
    view = {one.part: one.text for one in blind_view(make_card(rollout=rollout))}
    assert view["returned"].splitlines()[RESULT_LINES:] == ["... 3 more lines"]
    assert view["answer"] == "x" * TEXT_CHARACTERS + " ... 5 more characters"


def test_a_call_without_a_result_and_a_refused_one_say_so():
    calls = (ToolCall("a", "read", {}), ToolCall("b", "read", {"path": "x"}))
    turn = Turn("", calls=calls, results={"b": ToolResult("b", "there is no x", "model_error")})
    view = blind_view(make_card(rollout=msgspec.structs.replace(make_card().rollout, turns=[turn])))
    assert [one.text for one in view if one.part == "returned"] == ["(nothing came back)", "model_error: there is no x"]


@given(st.text(max_size=60))
def test_what_is_shown_drives_no_terminal_and_can_be_written(answer):
    rollout = msgspec.structs.replace(make_card().rollout, answer=f"\x1b[2J\u202e\ud800{answer}", turns=[])
    shown = next(one.text for one in blind_view(make_card(rollout=rollout)) if one.part == "answer")
    shown.encode()
    assert not set(shown) & set("\x1b\u202e\r\0\x9b")


# --- order --------------------------------------------------------------------------------------------------------------


def test_the_order_is_shuffled_the_same_at_every_start_and_another_for_everybody():
    order = in_order(ANN, IDS)
    assert sorted(one for _, one in order) == sorted(IDS) and [one for _, one in order] != IDS
    assert in_order(ANN, reversed(IDS)) == order
    assert [one for _, one in in_order(Round("run-1", " ann ", "eval"), IDS)] == [one for _, one in order]
    for other in (BOB, Round("run-2", "Ann")):
        assert [one for _, one in in_order(other, IDS)] != [one for _, one in order]


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=40), st.data())
def test_going_on_after_a_place_leaves_none_out_and_repeats_none(numbers, data):
    order = in_order(ANN, [str(number) for number in numbers])
    at = data.draw(st.integers(0, len(order) - 1))
    place = order[at][0]
    assert [one for one in order if one[0] >= place] == order[at:]
    assert [one for one in order if one[0] >= after(place)] == order[at + 1 :]


def test_a_rollout_that_comes_later_moves_none_of_the_others():
    before = [one for _, one in in_order(ANN, IDS)]
    assert [one for _, one in in_order(ANN, [*IDS, "late"]) if one != "late"] == before


def test_a_place_does_not_name_the_rollout():
    assert "id-1" not in place_of(ANN, "id-1") and len(place_of(ANN, "id-1")) == 16


# --- what is typed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "score"), [("0", 0), (" 1 ", 1), ("h", 0.5), ("H", 0.5), ("0.25", 0.25), ("0,25", 0.25), (".5", 0.5)])
def test_a_score_is_a_key_or_a_number(typed, score):
    assert read_score(typed) == score


@pytest.mark.parametrize("typed", ["", "2", "-0.1", "nan", "inf", "yes", "1e9", "x" * 90])
def test_what_is_no_score_is_refused_with_those_that_are(typed):
    with pytest.raises(UserError, match="is no score\n  cure: 0, h for a half, 1"):
        read_score(typed)


def test_a_name_is_needed_and_is_clean():
    assert asked_by("  Ann \t B\x1b\u202e ") == "Ann B"
    for name in ("", " \x1b ", "\u200b", "--"):
        with pytest.raises(UserError, match="nobody is named"):
            asked_by(name)
    with pytest.raises(UserError, match="a name of 101 characters"):
        asked_by("x" * 101)


# --- agreement ----------------------------------------------------------------------------------------------------------


def grade(reward):
    return Grade(GraderRef("numeric", "1", "h"), reward, reward is not None and reward >= 0.75)


LABELS = [PersonsLabel(key, "Ann", score) for key, score in (("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0), ("e", 1.0))]
GRADES = {"a": grade(1.0), "b": grade(0.0), "c": grade(0.0), "d": grade(0.5), "e": grade(None), "z": grade(1.0)}


def test_agreement_with_a_grader_by_hand():
    """Compared: a to d; e has no score, z no label. The person passes a and b, the grader a.

    Pass or fail: observed 3/4, by chance 0.5 x 0.25 + 0.5 x 0.75 = 0.5, kappa 0.5. Linear: of (1,1) (1,0) (0,0) (0,0.5) agreed on
    are 1 + 0 + 1 + 0.5 = 2.5 of 4, by chance 0.5 x (0.25 + 0.5 x 0.25) + 0.5 x (0.5 + 0.5 x 0.25) = 0.5, kappa 0.125/0.5 = 0.25.
    Quadratic: 2.75 of 4, by chance 0.5 x (0.25 + 0.75 x 0.25) + 0.5 x (0.5 + 0.75 x 0.25) = 0.5625, kappa 0.125/0.4375 = 2/7.
    """
    (found,) = agreements("ann", LABELS, {"numeric@1#h": GRADES})
    assert (found.name, found.labelled, found.compared) == ("numeric@1", 5, 4)
    assert found.passing.kappa == pytest.approx(0.5)
    assert (found.linear.kappa, found.quadratic.kappa) == (pytest.approx(0.25), pytest.approx(2 / 7))
    assert found.confusion == {(True, True): 1, (True, False): 1, (False, False): 2}
    assert found.differ == (Differing("b", 1.0, 0.0), Differing("d", 0.0, 0.5))
    assert dict(figures(found))["only you pass"] == "1" and dict(figures(found))["only they pass"] == "0"
    assert dict(figures(found))["kappa, pass or fail"].startswith("0.50 (95%: ")
    assert unscored(found, "run-1") == "1 without a score by it: rft regrade --grader numeric@1 --run run-1"
    assert unscored(found, "Lauf 1").endswith("--run 'Lauf 1'")


def test_agreement_with_other_people_is_over_what_both_labelled():
    others = [PersonsLabel("a", "Bob", 1.0), PersonsLabel("c", "Bob", 1.0), PersonsLabel("y", "Bob", 0.0), PersonsLabel("y", "Eve", 0.0)]
    graders, bob = agreements("Ann", LABELS + others, {"numeric@1#h": GRADES})
    assert (graders.is_grader, bob.is_grader, bob.name, bob.compared) == (True, False, "Bob", 2)
    assert bob.confusion == {(True, True): 1, (False, True): 1} and bob.differ == (Differing("c", 0.0, 1.0),)
    assert unscored(bob, "run-1") == ""


def test_who_has_labelled_nothing_learns_nothing():
    assert agreements("Eve", LABELS, {"numeric@1#h": GRADES}) == []


def test_a_grader_that_scored_none_of_it_is_said_to_have_compared_with_nothing():
    (found,) = agreements("Ann", LABELS, {"numeric@2#i": {}})
    assert figures(found) == [("compared", "0 of 5 labelled")]
