"""BM25 with scores as shares of the best conceivable."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.tools.retrieval import LexicalIndex, words

TEXTS = ["apple banana", "apple cherry", "banana banana"]


def test_words_are_lower_case_letters_with_their_digits_and_numbers():
    assert words("Q3 2025: $842M, 13.4%") == ["q3", "2025", "842", "m", "13.4"]


def test_a_score_is_bm25_over_the_best_conceivable():
    # All lengths are 2, the mean: norm = k1 = 1.2. "cherry" is in 1 of 3: idf = ln(1 + 2.5 / 1.5).
    # Once in its document: gain = idf * 1 * 2.2 / (1 + 1.2) = idf; the best conceivable is idf * 2.2: 1 / 2.2.
    [hit] = LexicalIndex(TEXTS).search("cherry", 3)
    assert (hit.position, hit.score) == (1, pytest.approx(1 / 2.2))


def test_a_word_that_is_nowhere_lowers_every_score():
    # best = (idf(1) + idf(0)) * 2.2 with idf(0) = ln(1 + 3.5 / 0.5) = ln 8
    idf_one, idf_none = math.log(1 + 2.5 / 1.5), math.log(8)
    [hit] = LexicalIndex(TEXTS).search("cherry durian", 3)
    assert hit.score == pytest.approx(idf_one / ((idf_one + idf_none) * 2.2))


def test_more_often_is_better_and_ties_keep_the_order():
    assert [hit.position for hit in LexicalIndex(TEXTS).search("banana", 3)] == [2, 0]
    assert [hit.position for hit in LexicalIndex(["x", "x", "x"]).search("x", 2)] == [0, 1]


def test_nothing_to_search_for_or_in():
    assert LexicalIndex(TEXTS).search("", 3) == LexicalIndex(TEXTS).search("zebra", 3) == LexicalIndex([]).search("x", 3) == []


@given(st.lists(st.text("abc ", max_size=12), max_size=8), st.text("abcd ", max_size=8), st.integers(1, 5))
def test_hits_are_ranked_distinct_and_between_0_and_1(texts, query, top_k):
    hits = LexicalIndex(texts).search(query, top_k)
    scores = [hit.score for hit in hits]
    assert len(hits) <= top_k and len({hit.position for hit in hits}) == len(hits)
    assert scores == sorted(scores, reverse=True) and all(0 < score <= 1 for score in scores)
