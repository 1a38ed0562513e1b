"""Two cards side by side: turn by turn, with the words marked in which they differ. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import NamedTuple

from observability.records import StoredCard
from serving.pages.cardview import Call, TurnView, plain, turns_of

PIECES = re.compile(r"\s+|\w+|[^\w\s]")
MOST = 1_200
"""Words up to which texts are compared word by word; longer ones line by line, since a comparison takes the square of their number."""
MOST_LINES = 600


class Piece(NamedTuple):
    text: str
    differs: bool


class Pair(NamedTuple):
    """The same place in both cards; a text that one of them lacks is None."""

    left: tuple[Piece, ...] | None
    right: tuple[Piece, ...] | None

    @property
    def same(self) -> bool:
        return self.left == self.right


class Calls(NamedTuple):
    left: Call | None
    right: Call | None
    asked: Pair
    came_back: Pair

    @property
    def same(self) -> bool:
        return self.asked.same and self.came_back.same


class Turns(NamedTuple):
    number: int
    left: TurnView | None
    right: TurnView | None
    said: Pair
    calls: tuple[Calls, ...]

    @property
    def same(self) -> bool:
        return self.said.same and all(call.same for call in self.calls)


ALWAYS = ("checkpoint", "ending", "grade")
"""Shown even where they are the same."""


class Line(NamedTuple):
    name: str
    left: str
    right: str

    @property
    def shown(self) -> bool:
        return self.name in ALWAYS or not self.same

    @property
    def same(self) -> bool:
        return self.left == self.right


def facts_side_by_side(left: StoredCard, right: StoredCard) -> list[Line]:
    return [Line(name, one, other) for (name, one), (_, other) in zip(_facts(left), _facts(right), strict=True)]


def turns_side_by_side(left: StoredCard | None, right: StoredCard) -> list[Turns]:
    """`left` is None where there is nothing to stand beside."""
    pairs = zip_longest(turns_of(left.card.rollout) if left else (), turns_of(right.card.rollout))
    return [_turns(number, one, other) for number, (one, other) in enumerate(pairs, 1)]


def pair(left: str | None, right: str | None) -> Pair:
    if left is None or right is None or left == right:
        return Pair(_whole(left, right), _whole(right, left))
    one, other = PIECES.findall(left), PIECES.findall(right)
    if max(len(one), len(other)) > MOST:
        one, other = left.splitlines(keepends=True), right.splitlines(keepends=True)
    if max(len(one), len(other)) > MOST_LINES and max(map(len, (*one, *other)), default=0) and len(one) * len(other) > MOST * MOST:
        return Pair((Piece(left, True),), (Piece(right, True),))
    steps = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    first = _joined((one[a:b], what != "equal") for what, a, b, _, _ in steps)
    second = _joined((other[a:b], what != "equal") for what, _, _, a, b in steps)
    return Pair(first, second)


def _whole(text: str | None, other: str | None) -> tuple[Piece, ...] | None:
    return None if text is None else (Piece(text, text != other),)


def _joined(pieces: object) -> tuple[Piece, ...]:
    return tuple(Piece("".join(texts), differs) for texts, differs in pieces if texts)  # pyright: ignore


def _turns(number: int, left: TurnView | None, right: TurnView | None) -> Turns:
    calls = zip_longest(left.calls if left else (), right.calls if right else ())
    return Turns(number, left, right, pair(_said(left), _said(right)), tuple(_calls(one, other) for one, other in calls))


def _calls(left: Call | None, right: Call | None) -> Calls:
    return Calls(left, right, pair(_asked(left), _asked(right)), pair(_came_back(left), _came_back(right)))


def _said(turn: TurnView | None) -> str | None:
    return turn and "\n\n".join(part for part in (turn.plan, turn.said) if part)


def _asked(call: Call | None) -> str | None:
    return call and f"{call.name}\n{call.arguments}"


def _came_back(call: Call | None) -> str | None:
    if call is None or call.result is None:
        return None
    return f"{call.result.error}\n{call.result.output}" if call.result.error else call.result.output


def _facts(stored: StoredCard) -> Sequence[tuple[str, str]]:
    card, made, cost = stored.card, stored.card.versions, stored.card.cost
    newest = stored.grades[-1].grade if stored.grades else None
    return (
        ("checkpoint", made.checkpoint),
        ("kind", card.kind),
        ("run", card.run_id),
        ("training step", plain(card.step)),
        ("row", card.row_id),
        ("try", str(card.sample_index + 1)),
        ("ending", (card.rollout.ending or "not ended").replace("_", " ")),
        ("grade", "none" if newest is None or newest.reward is None else f"{newest.reward:.2f}"),
        ("grader", "none" if newest is None else f"{newest.grader.name} {newest.grader.version}"),
        ("tool calls", str(cost.tool_calls)),
        ("tokens", f"{cost.context_tokens:,} read, {cost.sampled_tokens:,} written"),
        ("data set", made.dataset or "none"),
        ("tool set", made.tool_set or "none"),
        ("code", made.code),
    )
