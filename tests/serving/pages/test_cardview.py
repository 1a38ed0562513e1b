"""A card laid out for a page: nothing of it lost, every step under the number that the store gives it."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.rollouts import Turn
from observability.records import RecordedCard, rows_of
from serving.pages.cardview import as_lines, long, share, turns_of
from serving.pages.pictures import HIGH, WIDTH, strip, token_bars

make_card = runpy.run_path(str(Path(__file__).parents[2] / "observability" / "sample_cards.py"))["make_card"]
CARD = make_card()


def with_turns(*turns: Turn):
    return msgspec.structs.replace(CARD, rollout=msgspec.structs.replace(CARD.rollout, turns=list(turns)))


def test_steps_have_the_numbers_that_the_store_gives_them():
    card = with_turns(CARD.rollout.turns[0], CARD.rollout.turns[0], CARD.rollout.turns[1])
    rows = rows_of(RecordedCard(card, dt.datetime.now(dt.UTC))).steps
    views = turns_of(card.rollout)
    told = {view.position: "message" for view in views}
    told |= {call.position: "tool_call" for view in views for call in view.calls}
    told |= {call.result_position: "tool_result" for view in views for call in view.calls}
    assert told == {row["position"]: row["kind"] for row in rows}
    asked = {call.position: call.name for view in views for call in view.calls}
    assert asked == {row["position"]: row["name"] for row in rows if row["kind"] == "tool_call"}
    assert [call.number for view in views for call in view.calls] == [1, 2, 3, 4]


def test_thinking_aloud_is_the_plan_and_calls_are_not_said_twice():
    words = "<think>First the filing.</think>I look.\n<tool_call>{}</tool_call>"
    (view,) = turns_of(with_turns(msgspec.structs.replace(CARD.rollout.turns[0], text=words)).rollout)
    assert (view.plan, view.said, view.raw) == ("First the filing.", "I look.", words)
    assert [turn.answers for turn in turns_of(CARD.rollout)] == [False, True]


@given(st.text(alphabet="ab\n ", max_size=4000))
def test_a_long_text_is_cut_and_none_of_it_lost(text):
    cut = long(text, 5, 300)
    assert cut.head + cut.rest == text or cut.head + "\n" + cut.rest == text
    assert len(cut.head) < 300 + 80 and cut.head.count("\n") < 5 + 80


@pytest.mark.parametrize(("value", "bar"), [(0.25, 0.25), (1, 1.0), (0, 0.0), (True, None), (7.5, None), ("0.5", None)])
def test_a_bar_stands_for_a_share_only(value, bar):
    assert share(value) == bar


def test_arguments_read_as_lines():
    assert as_lines({"query": "net margin", "most": 5, "deep": {"a": [1]}}) == 'query: net margin\nmost: 5\ndeep: {"a": [1]}'


def test_the_strip_shares_the_models_time_by_the_tokens_written():
    """1.93 s in all; the calls ran side by side, so the tools took 0.25 s; of the other 1.68 s turn 1 wrote 2 of 5 tokens."""
    first, second = strip(turns_of(CARD.rollout), 1.93)
    assert (first.model.width, first.tools.width) == (round(1.68 * 2 / 5 / 1.93 * WIDTH, 2), round(0.25 / 1.93 * WIDTH, 2))
    assert second.model.x == pytest.approx(first.model.width + first.tools.width) and second.tools.width == 0
    assert second.model.x + second.model.width == pytest.approx(WIDTH, abs=0.05)
    assert strip((), 1.0) == [] and strip(turns_of(CARD.rollout), 0.0)[0].model.width == 0


def test_tokens_stand_on_one_scale():
    """3 read and 2 written, then 1 and 3: the first turn is the highest and fills the picture."""
    (_, read, wrote, told), (_, less, more, _) = token_bars(turns_of(CARD.rollout))
    assert (read.height, wrote.height) == (round(3 / 5 * 54, 2), round(2 / 5 * 54, 2)) and wrote.y == 0
    assert (less.height, more.height) == (round(1 / 5 * 54, 2), round(3 / 5 * 54, 2))
    assert told == "turn 1: 3 tokens read, 2 written" and HIGH > 54
