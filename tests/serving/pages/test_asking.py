"""A click narrows what was typed, and takes nothing else away."""

from __future__ import annotations

import datetime as dt

import pytest

from agent_rft.contracts.errors import FaultsFound
from observability.query import And, parse
from serving.pages.asking import between, has_term, marked, narrowed, without_term

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
START, END = dt.datetime(2026, 11, 20, tzinfo=dt.UTC), dt.datetime(2026, 11, 20, 6, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("", "kind:eval"),
        (' grade<0.5 "two words" ', 'grade<0.5 "two words" kind:eval'),
        ("a OR b", "(a OR b) kind:eval"),
        ("(a OR b)", "((a OR b)) kind:eval"),
    ],
)
def test_a_term_holds_of_the_whole_query(typed, text):
    assert narrowed(typed, "kind:eval", NOW) == text
    assert isinstance(parse(text, NOW), And) or text == "kind:eval"


def test_a_term_that_stands_there_is_taken_away_again():
    assert has_term("kind:eval grade<0.5", "grade<0.5") and not has_term("kind:evaluation", "kind:eval")
    assert without_term("kind:eval grade<0.5 row:a", "grade<0.5") == "kind:eval row:a"


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("", "after:2026-11-20 before:2026-11-20T06:30"),
        ("after:7d kind:eval before:2026-12-01T10:00", "kind:eval after:2026-11-20 before:2026-11-20T06:30"),
        ("started>=2026-01-01 margin", "margin after:2026-11-20 before:2026-11-20T06:30"),
        ('"after:7d" x', '"after:7d" x after:2026-11-20 before:2026-11-20T06:30'),
        ("-(after:7d)", "-(after:7d) after:2026-11-20 before:2026-11-20T06:30"),
    ],
)
def test_a_time_range_takes_the_place_of_an_older_one(typed, text):
    assert between(typed, START, END, NOW) == text
    parse(text, NOW)


def test_a_fault_is_shown_where_it_stands():
    typed = "kind:eval (kimd:a"
    with pytest.raises(FaultsFound) as found:
        parse(typed, NOW)
    places = [(before, there, after) for _, before, there, after in marked(typed, found.value)]
    assert places == [("kind:eval ", "(", "kimd:a"), ("kind:eval (", "kimd:a", "")]
