"""WordNet where it is installed, for METEOR's synonyms. Nothing is downloaded: `python -m nltk.downloader wordnet` does that."""

from __future__ import annotations

from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import find

from agent_rft.graders.text import WordNet


def installed_wordnet() -> WordNet | None:
    for folder in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return WordNetCorpusReader(find(folder), None)
        except LookupError:
            continue
    return None
