"""Redaction of JSON values and of whole cards: every text, wherever it is, and the path of what was there."""

import json

import msgspec
import pytest
from msgspec.structs import replace

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import ToolResult, Turn
from observability.redaction.cards import redact_card, redact_grade
from observability.redaction.detectors import custom_detectors
from observability.redaction.redact import DEEPEST, redact_value


def paths(removed):
    return [(one.path, one.kind) for one in removed]


def test_texts_keys_and_lists_are_redacted_and_pointed_at():
    done = redact_value({"a/b": ["x", {"to": "bob@x.com"}], "al@x.com": 1.5})
    assert done.value == {"a/b": ["x", {"to": "[EMAIL]"}], "[EMAIL]": 1.5}
    assert paths(done.removed) == [("/a~1b/1/to", "EMAIL"), ("", "EMAIL")]


def test_two_keys_that_become_the_same_keep_their_values():
    assert redact_value({"al@x.com": 1, "bo@x.com": 2}).value == {"[EMAIL]": 1, "[EMAIL] 2": 2}


def test_a_name_that_promises_a_secret_is_believed_and_a_schema_is_not():
    done = redact_value({"password": "sunshine", "api_key": "b7d1f0c29e8a4635", "token": "revenue", "max_tokens": 4096})
    assert done.value == {"password": "[PASSWORD]", "api_key": "[KEY]", "token": "revenue", "max_tokens": 4096}
    assert [one.length for one in done.removed] == [8, 16]
    schema = {"type": "object", "properties": {"password": {"type": "string"}}}
    assert redact_value(schema).value is schema


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("password", 12345678, "[PASSWORD]"),
        ("ssn", 219099999, "[SSN]"),
        ("employee_ssn", 78051120, "[SSN]"),  # 078-05-1120, whose zero a whole number does not keep
        ("ssn", "219099999", "[SSN]"),
        ("phone", 4155550132, "[PHONE]"),
        ("phoneNumber", "415 5550132", "[PHONE]"),
        ("Authorization", "Bearer abc12345", "[KEY]"),
        ("proxy-authorization", "Basic dXNlcjpwYXNz", "[KEY]"),
    ],
)
def test_a_value_is_judged_by_its_key_where_it_does_not_tell_itself(name, value, left):
    done = redact_value({name: value})
    assert done.value == {name: left}
    assert redact_value(done.value) == type(done)(done.value, ())


def test_a_key_speaks_for_every_value_of_its_list():
    done = redact_value({"password": ["hunter2", ["sunshine", 12345678], {"hint": "a dog"}]})
    assert done.value == {"password": ["[PASSWORD]", ["[PASSWORD]", "[PASSWORD]"], {"hint": "a dog"}]}
    assert [(one.path, one.length) for one in done.removed] == [("/password/0", 7), ("/password/1/0", 8), ("/password/1/1", 8)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("revenue", 4242424242424242),
        ("net_sales_2024", [4242424242424242, 86095742719]),
        ("totalAssets", 4242424242424242),
        ("token", 12345678),
        ("password", 512),
        ("password", {"type": "string"}),
        ("ssn", 666123456),  # no area 666 was ever given out
        ("iphone", 2011830000),
        ("phone", "201.2 billion"),
        ("Authorization", "required"),
        ("cell", 12345678),
    ],
)
def test_a_key_that_says_a_figure_or_nothing_leaves_its_value(name, value):
    assert redact_value({name: value}).value == {name: value}


def test_a_card_under_the_name_of_a_figure_goes_where_the_name_says_number_too():
    assert redact_value({"total_card_number": 4242424242424242}).value == {"total_card_number": "[CARD]"}


def test_a_grade_that_comes_later_is_redacted_as_the_one_of_a_card_is():
    grade = Grade(GraderRef("g", "1", "h"), None, None, {"why": "ask bob@x.com", "score": 1}, {"other": "4111 1111 1111 1111"})
    redacted, removed = redact_grade(grade)
    assert redacted == replace(grade, parts={"why": "ask [EMAIL]", "score": 1}, errors={"other": "[CARD]"})
    assert paths(removed) == [("/parts/why", "EMAIL"), ("/errors/other", "CARD")]
    assert redact_grade(redacted) == (redacted, ())


def test_json_inside_a_text_is_read_through_its_escapes():
    done = redact_value({"arguments": '{"to": "bob\\u0040x.com", "n": 1}'})
    assert json.loads(done.value["arguments"]) == {"to": "[EMAIL]", "n": 1}
    assert paths(done.removed) == [("/arguments#/to", "EMAIL")]


def test_json_inside_a_text_stays_as_written_where_nothing_is_found():
    said = '{ "a":1.50,\n"b" : [ ]}'
    assert redact_value([said]).value == [said]


def test_whole_numbers_that_are_cards_go_and_figures_stay():
    done = redact_value({"pan": 4111111111111111, "revenue": 4111111111111112, "year": 2024, "ok": True})
    assert done.value == {"pan": "[CARD]", "revenue": 4111111111111112, "year": 2024, "ok": True}


def test_what_lies_too_deep_to_look_through_is_not_kept():
    value = "bob@x.com"
    for _ in range(DEEPEST + 2):
        value = [value]
    done = redact_value(value)
    assert [one.kind for one in done.removed] == ["TOO_DEEP"]
    assert "bob" not in json.dumps(done.value)
    assert redact_value("[" * 100_000).value == "[" * 100_000


@pytest.fixture
def full_card(make_card):
    """The sample card with an address in every field that holds somebody's words; the address names the field."""
    card = make_card()
    rollout = card.rollout
    call, other = rollout.turns[0].calls
    turn = replace(
        rollout.turns[0],
        text="text@x.com",
        calls=(replace(call, arguments={"q": "arguments@x.com"}), other),
        results={call.call_id: ToolResult(call.call_id, "output@x.com", "error@x.com")},
    )
    opening = (Message("user", "opening@x.com"), Message("assistant", "", (ToolCall("c", "t", {"q": "earlier@x.com"}),)))
    tools = (ToolSpec("search", "description@x.com", {"default": "parameters@x.com"}),)
    turns = [turn, Turn("fine")]
    rollout = replace(rollout, opening=opening, tools=tools, turns=turns, answer="answer@x.com", reason="reason@x.com")
    grade = Grade(GraderRef("g", "1", "h"), None, None, {"why": "parts@x.com"}, {"other": "errors@x.com"})
    own = {"reference_answer": ["reference@x.com"], "metadata": {"by": "metadata@x.com"}, "item": {"x": "item@x.com"}}
    return replace(card, rollout=rollout, grade=grade, **own)


def test_every_field_of_a_card_that_holds_words_is_redacted_and_named(full_card):
    card, removed = redact_card(full_card)
    assert "@" not in msgspec.json.encode(card).decode()
    assert {one.path for one in removed} == {
        "/rollout/opening/0/content",
        "/rollout/opening/1/tool_calls/0/arguments/q",
        "/rollout/tools/0/description",
        "/rollout/tools/0/parameters/default",
        "/rollout/turns/0/text",
        "/rollout/turns/0/calls/0/arguments/q",
        "/rollout/turns/0/results/call-1-1/output",
        "/rollout/turns/0/results/call-1-1/error",
        "/rollout/answer",
        "/rollout/reason",
        "/reference_answer/0",
        "/metadata/by",
        "/item/x",
        "/grade/parts/why",
        "/grade/errors/other",
    }


def test_a_card_with_nothing_to_remove_is_the_same_but_for_its_token_ids(make_card):
    card, removed = redact_card(make_card())
    assert removed == ()
    assert [turn.sampled_ids for turn in card.rollout.turns] == [[], []]  # they would spell what was removed
    assert [turn.sampled_tokens for turn in card.rollout.turns] == [2, 3]
    assert card.rollout.answer == "The operating margin was 13.4%." and card.grade == make_card().grade


def test_a_redacted_card_is_not_changed_again_and_the_one_given_never(full_card):
    before = msgspec.json.encode(full_card)
    once, _ = redact_card(full_card)
    assert redact_card(once) == (once, ())
    assert msgspec.json.encode(full_card) == before


def test_a_tenants_own_pattern_reaches_into_cards(make_card):
    own = custom_detectors({"QUARTER": r"Q[1-4] \d{4}"})
    card, removed = redact_card(make_card(), own)
    assert card.rollout.opening[1].content == "What was the operating margin of Henderson Hotels in [QUARTER]?"
    assert {one.kind for one in removed} == {"QUARTER"}


def test_a_text_in_which_nothing_was_found_is_judged_anew_under_a_name_that_promises_a_secret():
    """What is remembered of a text from one value to the next is that no detector finds anything in it, whoever holds it."""
    for _ in range(2):
        assert redact_value({"note": "hunter2hunter2"}).removed == ()
        assert [one.kind for one in redact_value({"password": "hunter2hunter2"}).removed] == ["PASSWORD"]


def test_an_id_of_the_card_stays_wherever_it_stands(make_card):
    """It looks like a card's number, and stays in the card's own field as it is."""
    card = make_card("4111 1111 1111 1111", metadata={"run": "4111 1111 1111 1111", "other": "5500-0055-5555-5559"})
    redacted, removed = redact_card(card)
    assert redacted.metadata["run"] == redacted.rollout_id == "4111 1111 1111 1111"
    assert [one.path for one in removed] == ["/metadata/other"]
