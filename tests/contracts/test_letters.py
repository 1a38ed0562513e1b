"""Names that look the same are the same, and names of one alphabet stay apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rft.contracts.letters import plain
from agent_rft.contracts.people import same_person

ALPHABETS = ("abcdefghijklmnopqrstuvwxyz", "абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "αβγδεζηθικλμνξοπρστυφχψω")


@pytest.mark.parametrize(
    "other", ["Ann", " ann", "ANN ", "ａｎｎ", "\u0430nn", "\U0001d41ann", "\u0251nn", "ann\ufe0f", "a\u034fnn", "\u3164ann"]
)
def test_one_person_in_other_letters_is_that_person(other):
    assert same_person("ann", other)


@given(st.sampled_from(ALPHABETS).flatmap(lambda letters: st.tuples(st.text(letters, max_size=6), st.text(letters, max_size=6))))
def test_words_of_one_alphabet_stay_apart_whatever_capitals_they_have(words):
    one, other = words
    assert (plain(one) == plain(other)) == (one == other)
    assert plain(one.upper()) == plain(one) == plain(plain(one))
