"""WordNet where it is installed, for METEOR's synonyms. Nothing is downloaded: `python -m nltk.downloader wordnet` does that."""

from __future__ import annotations

from agent_rft.graders.text import WordNet


def installed_wordnet() -> WordNet | None:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader  # here: it takes two seconds, of every command that builds a grader
    from nltk.data import find

    for folder in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return WordNetCorpusReader(find(folder), None)
        except LookupError:
            continue
    return None
