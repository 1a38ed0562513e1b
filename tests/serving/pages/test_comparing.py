"""Two cards side by side: what differs is marked, and nothing of either is lost."""

from __future__ import annotations

import datetime as dt
import runpy
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.rollouts import ToolResult
from observability.records import StoredCard
from serving.pages.comparing import MOST, facts_side_by_side, pair, turns_side_by_side

make_card = runpy.run_path(str(Path(__file__).parents[2] / "observability" / "sample_cards.py"))["make_card"]
TEXTS = st.text(alphabet="ab .\n", max_size=200)


def stored(card) -> StoredCard:
    return StoredCard(card, dt.datetime.now(dt.UTC), ())


@given(TEXTS, TEXTS)
def test_each_side_is_its_own_text_and_what_is_not_marked_is_common(left, right):
    found = pair(left, right)
    assert "".join(piece.text for piece in found.left or ()) == left and "".join(piece.text for piece in found.right or ()) == right
    common = [["".join(piece.text for piece in side or () if not piece.differs)] for side in found]
    assert common[0] == common[1]
    assert found.same == (left == right)


def test_words_are_marked_and_long_texts_line_by_line():
    assert [tuple(piece) for piece in pair("It was 31%.", "It was 13%.").left or ()] == [("It was ", False), ("31", True), ("%.", False)]
    long = "same words here\n" * MOST
    marked = [piece.text for piece in pair(long + "one end", long + "another end").left or () if piece.differs]
    assert marked and len("".join(marked)) <= len(long) + 7


def test_texts_of_any_length_are_compared_in_bounded_time():
    """Line by line would take the square of 20,000 here."""
    one, other = ("\n".join(f"{word} {number}" for number in range(20_000)) for word in ("left", "right"))
    assert [piece.differs for piece in pair(one, other).left or ()] == [True]


def test_turns_are_aligned_and_a_missing_one_is_told():
    one = make_card()
    other = make_card("card-2")
    other.rollout.turns[0].results["call-1-2"] = ToolResult("call-1-2", "margin: 31%", None, 0.25)
    del other.rollout.turns[1]
    first, second = turns_side_by_side(stored(one), stored(other))
    assert not first.same and first.said.same and [call.same for call in first.calls] == [True, False]
    assert first.calls[1].asked.same and not first.calls[1].came_back.same
    assert second.right is None and second.said.right is None and not second.same
    assert all(turn.same for turn in turns_side_by_side(stored(one), stored(make_card("card-3"))))


def test_facts_that_differ_and_a_few_more_are_shown():
    one = make_card()
    other = msgspec.structs.replace(one, versions=msgspec.structs.replace(one.versions, checkpoint="tiny/240"), step=240)
    lines = facts_side_by_side(stored(one), stored(other))
    assert [(line.name, line.left, line.right) for line in lines if not line.same] == [
        ("checkpoint", "tiny/120", "tiny/240"), ("training step", "120", "240"),
    ]  # fmt: skip
    assert [line.name for line in lines if line.shown] == ["checkpoint", "training step", "ending", "grade"]
