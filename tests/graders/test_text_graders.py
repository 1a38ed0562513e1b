"""string_check's four operations; text_similarity against the libraries themselves and against figures worked out by hand."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import rapidfuzz.distance.Indel as indel
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer
from nltk.translate.gleu_score import corpus_gleu
from nltk.translate.meteor_score import meteor_score
from rouge_score import rouge_scorer

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.graders.text import LONGEST_TEXT, NoWordNet, StringCheckGrader, TextSimilarityGrader
from agent_rft.graders.wordnet import installed_wordnet

METRICS = ["fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]
INPUT, REFERENCE = "{{sample.output_text}}", "{{item.reference_answer}}"


def similarity(metric: str, text: str, reference: str, **options) -> float | None:
    grader = TextSimilarityGrader(INPUT, REFERENCE, metric, **options)
    return grader.grade({"reference_answer": reference}, {"output_text": text}).reward


def words(text: str) -> list[str]:
    return NLTKWordTokenizer().tokenize(text)


def rouge(kind: str):
    return lambda text, reference: rouge_scorer.RougeScorer([kind]).score(reference, text)[kind].fmeasure


BY_LIBRARY = {
    "fuzzy_match": indel.normalized_similarity,
    "bleu": lambda text, reference: sacrebleu.sentence_bleu(text, [reference]).score / 100,
    "gleu": lambda text, reference: corpus_gleu([[words(reference)]], [words(text)]),
    "meteor": lambda text, reference: meteor_score([words(reference)], words(text), wordnet=NoWordNet()),
    **{f"rouge_{n}": rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": rouge("rougeL"),
}


def random_pairs(count: int) -> list[tuple[str, str]]:
    """Texts of 1 to 25 words and the same with some words changed, dropped or moved, punctuation and odd letters included."""
    draw = random.Random(11)
    vocabulary = (
        "the a cat cats sat sitting mat on Revenue grew 13.4% $842M, quickly. was; (net) café über 東京 isn't e-mail obey obeys".split()
    )
    pairs = []
    for _ in range(count):
        reference = [draw.choice(vocabulary) for _ in range(draw.randint(1, 25))]
        text = [draw.choice(vocabulary) if draw.random() < 0.25 else word for word in reference if draw.random() > 0.15]
        if draw.random() < 0.2:
            draw.shuffle(text)
        pairs.append((" ".join(text), " ".join(reference)))
    return pairs


@pytest.mark.parametrize("metric", METRICS)
def test_each_measure_agrees_with_its_library_on_200_random_pairs(metric):
    values = [similarity(metric, text, reference) for text, reference in random_pairs(200)]
    expected = [min(1.0, BY_LIBRARY[metric](text, reference)) for text, reference in random_pairs(200)]
    assert values == pytest.approx(expected, abs=1e-6)
    assert all(0 <= value <= 1 for value in values)
    assert len(set(values)) > (10 if metric.startswith("rouge_") and metric > "rouge_3" else 40)


def rouge_by_hand(n: int, text: str, reference: str) -> float:
    """F1 of the n-grams, without the library."""
    grams = [Counter(zip(*(side.split()[i:] for i in range(n)), strict=False)) for side in (text, reference)]
    both, total = (grams[0] & grams[1]).total(), grams[0].total() + grams[1].total()
    return 2 * both / total if total else 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_rouge_is_the_f1_of_the_n_grams(n):
    draw = random.Random(n)
    for _ in range(50):
        text, reference = (" ".join(draw.choices("abcd", k=draw.randint(1, 12))) for _ in range(2))
        assert similarity(f"rouge_{n}", text, reference) == pytest.approx(rouge_by_hand(n, text, reference), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "text", "reference", "value"),
    [
        ("fuzzy_match", "abcd", "abxd", 0.75),  # 3 of 4 letters in common: 2 x 3 / 8
        ("gleu", "the cat sat", "the cat ran", 0.5),  # 2 words, 1 pair and no triple of 3 + 2 + 1
        ("meteor", "the cat sat", "the cat ran", 0.625),  # 2/3 x (1 - 0.5 x (1/2)^3)
        ("meteor", "cats", "cat", 0.5),  # the stems match: 1 x (1 - 0.5 x 1)
        ("rouge_l", "a b c d", "a x c d", 0.75),  # a c d
        ("bleu", "a b c d", "a b c d", 1.0),
    ],
)
def test_figures_worked_out_by_hand(metric, text, reference, value):
    assert similarity(metric, text, reference) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=40)
@given(text=st.text(max_size=40), reference=st.text(max_size=40))
def test_any_two_texts_are_from_0_to_1_apart(metric, text, reference):
    value = similarity(metric, text, reference)
    assert value is not None and 0 <= value <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_the_longest_texts_are_compared_soon_and_longer_ones_have_no_score(metric):
    """25,000 words of one letter: a table of all pairs, as rouge-score makes for rouge_l, would take minutes and gigabytes."""
    draw = random.Random(3)
    text, reference = (" ".join(draw.choices("ab", k=LONGEST_TEXT // 2)) for _ in range(2))
    began = time.process_time()
    assert similarity(metric, text, reference) is not None
    assert time.process_time() - began < 5
    grader = TextSimilarityGrader(INPUT, REFERENCE, metric)
    for answer, wanted, which in (("a" * 50_001, "a", "input"), ("a", "a" * 50_001, "reference")):
        grade = grader.grade({"reference_answer": wanted}, {"output_text": answer})
        assert (grade.reward, grade.errors) == (None, {"other_error": f"the {which} has 50,001 characters, more than 50,000"})


def test_embeddings_take_texts_of_any_length():
    assert similarity("cosine", "a" * 50_001, "east", embed=Vectors()) == 0


class OneSynonym:
    """car and auto are in one synset; nothing else is."""

    def synsets(self, lemma):
        names = ("car", "auto") if lemma in ("car", "auto") else ()
        return [SimpleNamespace(lemmas=lambda: [SimpleNamespace(name=lambda name=name: name) for name in names])]

    def get_version(self):
        return "one"


def test_meteor_knows_synonyms_where_wordnet_is_given_and_says_so_where_it_is_not():
    assert similarity("meteor", "auto", "car") == 0
    assert similarity("meteor", "auto", "car", wordnet=OneSynonym()) == 0.5  # 1 x (1 - 0.5 x 1)
    without, given_one = (TextSimilarityGrader(INPUT, REFERENCE, "meteor", wordnet=each) for each in (None, OneSynonym()))
    assert without.grade({"reference_answer": "a"}, {"output_text": "a"}).parts == {"synonyms": "none"}
    assert without.ref.hash != given_one.ref.hash


def test_an_installed_wordnet_is_found_or_it_is_none():
    wordnet = installed_wordnet()
    assert wordnet is None or wordnet.synsets("car")


class Vectors:
    model = "vectors"

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def __call__(self, texts):
        if self.failure:
            raise self.failure
        return [
            {"east": [1.0, 0.0], "north": [0.0, 2.0], "northeast": [3.0, 3.0], "west": [-1.0, 0.0]}.get(text, [0.0, 0.0]) for text in texts
        ]


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [("east", "east", 1), ("east", "north", 0), ("northeast", "east", math.sqrt(0.5)), ("west", "east", 0), ("nowhere", "east", 0)],
)
def test_cosine_is_that_of_the_embeddings(text, reference, value):
    assert similarity("cosine", text, reference, embed=Vectors()) == pytest.approx(value, abs=1e-12)


def test_cosine_without_embeddings_names_what_to_set_and_an_embedder_that_fails_gives_no_score():
    with pytest.raises(UserError, match=r"cosine needs a model that embeds texts\n  cure: set grader.embeddings"):
        TextSimilarityGrader(INPUT, REFERENCE, "cosine")
    failing = TextSimilarityGrader(INPUT, REFERENCE, "cosine", embed=Vectors(InfraError("embeddings", "no answer")))
    grade = failing.grade({"reference_answer": "a"}, {"output_text": "b"})
    assert failing.waits and (grade.reward, list(grade.errors)) == (None, ["model_grader_server_error"])


def test_the_threshold_decides_what_passes_and_belongs_to_the_hash():
    graders = [TextSimilarityGrader(INPUT, REFERENCE, "fuzzy_match", threshold) for threshold in (0.75, 0.76)]
    assert [grader.grade({"reference_answer": "abxd"}, {"output_text": "abcd"}).passed for grader in graders] == [True, False]
    assert graders[0].ref.hash != graders[1].ref.hash
    assert len({TextSimilarityGrader(INPUT, REFERENCE, metric).ref.hash for metric in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    ("operation", "text", "worth"),
    [
        ("eq", "Paris", 1), ("eq", "paris", 0), ("eq", "Paris ", 0), ("ne", "Paris", 0), ("ne", "paris", 1),
        ("like", "in Paris.", 1), ("like", "in paris.", 0), ("like", "Par", 0), ("ilike", "in PARIS.", 1), ("ilike", "Par", 0),
    ],
)  # fmt: skip
def test_string_check(operation, text, worth):
    grade = StringCheckGrader(INPUT, REFERENCE, operation).grade({"reference_answer": "Paris"}, {"output_text": text})
    assert (grade.reward, grade.passed) == (worth, bool(worth))


def test_a_missing_variable_is_no_score():
    for grader in (StringCheckGrader(INPUT, REFERENCE, "eq"), TextSimilarityGrader(INPUT, REFERENCE, "bleu")):
        grade = grader.grade({}, {"output_text": "a"})
        assert (grade.reward, grade.errors) == (None, {"invalid_variable_error": "{{item.reference_answer}} is not there"})
