"""How well detectors do on labelled texts: what they found of what is there, and what they took that is nobody's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from observability.redaction.detector import Detector
from observability.redaction.detectors import BUILT_IN
from observability.redaction.redact import Redacted, placeholder, redact


class Span(msgspec.Struct, frozen=True):
    kind: str
    start: int
    end: int


class Labelled(msgspec.Struct, frozen=True):
    text: str
    spans: tuple[Span, ...]
    source: str = ""
    """Written by hand, or made."""


class Miss(msgspec.Struct, frozen=True):
    text: str
    overlooked: tuple[Span, ...]
    wrongly_taken: tuple[Span, ...]


class Score(msgspec.Struct, frozen=True):
    right: int = 0
    overlooked: int = 0
    wrongly_taken: int = 0

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrongly_taken) if self.right + self.wrongly_taken else 1.0

    @property
    def recall(self) -> float:
        return self.right / (self.right + self.overlooked) if self.right + self.overlooked else 1.0

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.overlooked + other.overlooked, self.wrongly_taken + other.wrongly_taken)


def read_sample(jsonl: bytes) -> list[Labelled]:
    return msgspec.json.Decoder(Labelled).decode_lines(jsonl)


def measure(sample: Iterable[Labelled], detectors: Sequence[Detector] = BUILT_IN) -> tuple[dict[str, Score], list[Miss]]:
    """By kind, and the texts that went wrong. A span counts only where kind, beginning and end are all as labelled."""
    scores, misses = dict[str, Score](), list[Miss]()
    for one in sample:
        wanted, found = set(one.spans), set(taken(redact(one.text, detectors)))
        for spans, score in ((wanted & found, Score(1)), (wanted - found, Score(0, 1)), (found - wanted, Score(0, 0, 1))):
            for span in spans:
                scores[span.kind] = scores.get(span.kind, Score()) + score
        if wanted != found:
            misses.append(Miss(one.text, _in_order(wanted - found), _in_order(found - wanted)))
    return dict(sorted(scores.items())), misses


def taken(redacted: Redacted) -> list[Span]:
    """What was removed, by its place in the text as it was."""
    spans, grown = list[Span](), 0
    for one in redacted.removed:
        start = one.start + grown
        spans.append(Span(one.kind, start, start + one.length))
        grown += one.length - len(placeholder(one.kind))
    return spans


def _in_order(spans: set[Span]) -> tuple[Span, ...]:
    return tuple(sorted(spans, key=lambda span: span.start))
