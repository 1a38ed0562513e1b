"""Two texts compared: string_check (equal, different, contained) and text_similarity (the published measures, from 0 to 1).

OpenAI names the measures and for one of them the library; the settings are ours, and the plainest:

    fuzzy_match  rapidfuzz `fuzz.ratio`, over 100
    bleu         sacrebleu `sentence_bleu` as it comes: 13a tokens, exponential smoothing, effective order; over 100
    gleu         nltk `sentence_gleu` of 1 to 4-grams
    meteor       nltk `single_meteor_score` as it comes
    rouge_N, _l  rouge-score, F1, no stemmer; the longest common subsequence of _l by rapidfuzz, without a table of all pairs
    cosine       of the embeddings, below 0 counts as 0

All but cosine take texts of up to LONGEST_TEXT characters, about 8,000 words, which each compares in half a second. A longer one has no
score: nothing is cut, since that would be the measure of other texts.

gleu and meteor see the tokens of nltk's `NLTKWordTokenizer`, which needs no data. METEOR matches words, stems and WordNet's
synonyms; where WordNet is not installed it matches words and stems alone, says so in `parts`, and has another hash.
"""

from __future__ import annotations

import importlib.metadata
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.grades import Grade
from agent_rft.graders import templating
from agent_rft.graders.base import PASS_THRESHOLD, grader_ref
from agent_rft.graders.templating import MissingVariable, render, without_value

VERSION = "1"
EMBEDDINGS = "grader.embeddings"
"""The setting that gives cosine its embeddings."""
LIBRARIES = {"fuzzy_match": "rapidfuzz", "bleu": "sacrebleu", "gleu": "nltk", "meteor": "nltk"}
"""What a measure is computed by; rouge-score for the others. Its version decides the score too."""
LONGEST_TEXT = 50_000


class Embed(Protocol):
    """Texts to vectors. Raises InfraError where the model that does it does not answer."""

    @property
    def model(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]: ...


class WordNet(Protocol):
    """nltk's reader of WordNet, as far as METEOR needs it."""

    def synsets(self, lemma: str) -> Sequence[Any]: ...

    def get_version(self) -> str | None: ...


class NoWordNet:
    """A dictionary without synonyms."""

    def synsets(self, lemma: str) -> Sequence[Any]:
        return ()

    def get_version(self) -> str:
        return "none"


class StringCheckGrader:
    def __init__(self, input: str, reference: str, operation: str, name: str = "string_check") -> None:
        self._texts = input, reference
        self._holds = OPERATIONS[operation]
        parameters = {"input": input, "reference": reference, "operation": operation}
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], templating), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        try:
            text, reference = (render(each, item, sample) for each in self._texts)
        except MissingVariable as missing:
            return without_value(self.ref, missing)
        passed = self._holds(text, reference)
        return Grade(self.ref, 1.0 if passed else 0.0, passed)


class TextSimilarityGrader:
    """`embed` is asked for cosine alone, `wordnet` for meteor. A grader that has to ask a model waits for it."""

    def __init__(
        self,
        input: str,
        reference: str,
        evaluation_metric: str,
        pass_threshold: float | None = None,
        name: str = "text_similarity",
        embed: Embed | None = None,
        wordnet: WordNet | None = None,
    ) -> None:
        metric = evaluation_metric
        if metric == "cosine" and embed is None:
            raise UserError("cosine needs a model that embeds texts", f"set {EMBEDDINGS} to an embeddings endpoint, or use another metric")
        self._texts = input, reference
        self._threshold = PASS_THRESHOLD if pass_threshold is None else pass_threshold
        self._wordnet = (wordnet or NoWordNet()) if metric == "meteor" else None
        self._measure = _measure(metric, embed, self._wordnet)
        self.waits = metric == "cosine"
        parameters = {
            "input": input,
            "reference": reference,
            "evaluation_metric": metric,
            "pass_threshold": self._threshold,
            "library": embed.model if embed and metric == "cosine" else _library(metric),
            "wordnet": self._wordnet.get_version() if self._wordnet else None,
        }
        self.ref = grader_ref(name, VERSION, (sys.modules[__name__], templating), parameters)

    def grade(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        try:
            text, reference = (render(each, item, sample) for each in self._texts)
        except MissingVariable as missing:
            return without_value(self.ref, missing)
        if (longest := max(len(text), len(reference))) > LONGEST_TEXT and not self.waits:
            which = "input" if longest == len(text) else "reference"
            return Grade(self.ref, None, errors={"other_error": f"the {which} has {longest:,} characters, more than {LONGEST_TEXT:,}"})
        try:
            value = self._measure(text, reference)
        except InfraError as error:
            return Grade(self.ref, None, errors={"model_grader_server_error": str(error)})
        reward = min(1.0, max(0.0, value))  # a float's last digit beyond 1, or a negative cosine
        parts = {"synonyms": self._wordnet.get_version()} if self._wordnet else {}
        return Grade(self.ref, reward, reward >= self._threshold, parts)


OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def _library(metric: str) -> str:
    name = LIBRARIES.get(metric, "rouge-score")
    return f"{name} {importlib.metadata.version(name)}"


def _measure(metric: str, embed: Embed | None, wordnet: WordNet | None) -> Callable[[str, str], float]:
    """The libraries are loaded here, not with this module: most graders need none of them."""
    if embed and metric == "cosine":
        return lambda text, reference: _cosine(*embed([text, reference]))
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz

        return lambda text, reference: fuzz.ratio(text, reference) / 100
    if metric == "bleu":
        from sacrebleu.metrics.bleu import BLEU

        bleu = BLEU(effective_order=True)
        return lambda text, reference: bleu.sentence_score(text, [reference]).score / 100
    if metric in ("gleu", "meteor"):
        return _word_measure(metric, wordnet)
    if metric == "rouge_l":
        return _rouge_l
    from rouge_score.rouge_scorer import RougeScorer

    kind = metric.replace("_", "")
    scorer: Any = RougeScorer([kind], use_stemmer=False)
    return lambda text, reference: scorer.score(reference, text)[kind].fmeasure


def _word_measure(metric: str, wordnet: Any) -> Callable[[str, str], float]:
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.gleu_score import sentence_gleu
    from nltk.translate.meteor_score import single_meteor_score

    words = NLTKWordTokenizer().tokenize
    if metric == "gleu":
        return lambda text, reference: sentence_gleu([words(reference)], words(text))
    return lambda text, reference: single_meteor_score(words(reference), words(text), wordnet=wordnet)


def _rouge_l(text: str, reference: str) -> float:
    """F1, worked out at once: of the precision common / words and the recall common / wanted."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.tokenize import tokenize

    words, wanted = tokenize(text, None), tokenize(reference, None)
    return 2 * LCSseq.similarity(words, wanted) / (len(words) + len(wanted)) if words and wanted else 0.0


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0
