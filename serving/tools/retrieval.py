"""Which documents answer a query best. One interface, a lexical index here and embeddings beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

K1, B = 1.2, 0.75  # BM25's usual constants
WORD = re.compile(r"[a-z]+\d*|\d+(?:\.\d+)?")


class Hit(msgspec.Struct, frozen=True):
    position: int
    """Of the document in the order it was indexed."""
    score: float
    """0 to 1: how much of what the query asks for this document holds."""


class Retriever(Protocol):
    @property
    def version(self) -> str:
        """Names everything that decides its ranking, beside the documents."""
        ...

    @property
    def blocks(self) -> bool:
        """Whether a search waits for something outside this process, or long: then it is kept off the event loop."""
        ...

    def search(self, query: str, top_k: int) -> list[Hit]: ...


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Term(NamedTuple):
    idf: float
    where: npt.NDArray[np.int64]
    """The documents that hold it."""
    gain: npt.NDArray[np.float32]
    """What it adds to each one's score."""


class LexicalIndex:
    """BM25 with every term's contribution computed once, at indexing. A score is the share of the best score conceivable."""

    version = f"bm25 k1={K1} b={B}"
    blocks = False

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = np.array([sum(c.values()) for c in counts], dtype=np.float32)
        norm = K1 * (1 - B + B * lengths / max(float(lengths.mean()), 1.0)) if len(texts) else lengths
        postings: dict[str, list[tuple[int, int]]] = {}
        for position, count in enumerate(counts):
            for term, n in count.items():
                postings.setdefault(term, []).append((position, n))
        self._size = len(texts)
        self._terms: dict[str, Term] = {}
        for term, found in postings.items():
            where = np.array([p for p, _ in found], dtype=np.int64)
            often = np.array([n for _, n in found], dtype=np.float32)
            idf = self._idf(len(found))
            self._terms[term] = Term(idf, where, (idf * often * (K1 + 1) / (often + norm[where])).astype(np.float32))

    def _idf(self, documents: int) -> float:
        return float(np.log(1 + (self._size - documents + 0.5) / (documents + 0.5)))

    def search(self, query: str, top_k: int) -> list[Hit]:
        scores, best = np.zeros(self._size, dtype=np.float32), 0.0
        for term in dict.fromkeys(words(query)):
            found = self._terms.get(term)
            best += (found.idf if found else self._idf(0)) * (K1 + 1)
            if found:
                scores[found.where] += found.gain
        if best == 0.0 or not scores.any():
            return []
        wanted = min(top_k, int(np.count_nonzero(scores)))
        cut = np.partition(scores, -wanted)[-wanted]
        candidates = np.flatnonzero(scores >= max(cut, 1e-9))
        ranked = candidates[np.argsort(-scores[candidates], kind="stable")][:wanted]
        return [Hit(int(i), float(scores[i]) / best) for i in ranked]
