"""The labelled sample that ships: what it is, and how well the detectors do on it."""

from pathlib import Path

from observability.redaction.detectors import KINDS, custom_detectors
from observability.redaction.measured import Labelled, Score, Span, measure, read_sample

SAMPLE = read_sample((Path(__file__).resolve().parents[3] / "data" / "redaction" / "sample.jsonl").read_bytes())


def test_the_sample_is_large_half_of_it_is_nobodys_and_every_kind_is_in_it():
    assert len(SAMPLE) >= 300
    assert 0.45 <= sum(not one.spans for one in SAMPLE) / len(SAMPLE) <= 0.6
    assert {span.kind for one in SAMPLE for span in one.spans} == KINDS
    assert all(0 <= span.start < span.end <= len(one.text) for one in SAMPLE for span in one.spans)


def test_precision_and_recall_stay_above_their_floors():
    scores, misses = measure(SAMPLE)
    overall = sum(scores.values(), Score())
    assert overall.precision >= 0.98 and overall.recall >= 0.95, misses
    assert all(score.precision >= 0.9 and score.recall >= 0.9 for score in scores.values()), misses


def test_a_score_counts_what_is_right_overlooked_and_wrongly_taken():
    own = custom_detectors({"XX": "x+"})
    said = [Labelled("x and xx", (Span("XX", 0, 1),)), Labelled("y", (Span("Y", 0, 1),)), Labelled("z", ())]
    scores, misses = measure(said, own)
    assert scores == {"XX": Score(right=1, wrongly_taken=1), "Y": Score(overlooked=1)}
    assert scores["XX"].precision == 0.5 and scores["XX"].recall == 1.0 and scores["Y"].recall == 0.0
    assert [(miss.text, miss.overlooked, miss.wrongly_taken) for miss in misses] == [
        ("x and xx", (), (Span("XX", 6, 8),)),
        ("y", (Span("Y", 0, 1),), ()),
    ]
