"""The words of a card, and of a question, as both databases' indexes take them. Pure.

Both get words that are taken apart here: their own ways to do that differ, and what is found must not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_rft.contracts.jobcards import JobCard
from observability.query import Text

ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Scripts that put no spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese): each character is a word, and a word
of a question is a phrase of them."""
WORD = re.compile(rf"(?!\W)[{ALONE}]|[^\W_{ALONE}]+")
GAP = "\ue000"
"""Stands before each text, so that no phrase runs from one into the next. For private use: a word to FTS5, never in a question."""
MOST_WORDS = 50_000
"""Of a card, with the gaps: PostgreSQL takes a megabyte of them. What comes later is not found."""
LONGEST = 100
"""Characters of a word: longer ones are keys and encoded files."""
LAST_PLACE = 16383
"""PostgreSQL counts places so far, and 256 of one word."""
PLACES = 256


def words_in(text: str) -> list[str]:
    return [word[:LONGEST] for word in WORD.findall(text.casefold())]


def words_of(card: JobCard) -> list[str]:
    """All that was asked, said, called and found, the tenant's own word first."""
    words = [word_of_tenant(card.tenant)]
    for text in _texts(card):
        words += [GAP, *words_in(text)]
        if len(words) >= MOST_WORDS:
            break
    return words[:MOST_WORDS]


def word_of_tenant(tenant: str) -> str:
    """Beside each question, so that a search in a large store stays with one tenant's cards."""
    return f"tenant{hashlib.sha256(tenant.encode()).hexdigest()[:16]}"


def _texts(card: JobCard) -> Iterator[str]:
    rollout = card.rollout
    yield from (message.content for message in rollout.opening if message.role == "user")
    yield rollout.answer
    for turn in rollout.turns:
        yield turn.text
        for call in turn.calls:
            yield call.name
            yield from _strings(call.arguments)
        for result in turn.results.values():
            yield result.output or ""
            yield result.error or ""
    yield rollout.reason
    yield from _strings(card.reference_answer)
    yield from _strings(card.metadata)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def as_vector(words: Sequence[str]) -> str:
    """As PostgreSQL writes a tsvector."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words, 1):
        if word == GAP:
            continue
        at = places.setdefault(word, [])
        if len(at) < PLACES:
            at.append(min(place, LAST_PLACE))
    return " ".join(f"'{word}':{','.join(map(str, dict.fromkeys(at)))}" for word, at in places.items())


def as_tsquery(texts: Sequence[Text], tenant: str | None) -> str:
    phrases = [" <-> ".join(f"'{word}'{':*' * last}" for word, last in _ends(text)) for text in texts]
    return " & ".join(f"({phrase})" for phrase in [*phrases, *_of(tenant)] if phrase)


def as_match(texts: Sequence[Text], tenant: str | None) -> str:
    """For FTS5."""
    phrases = [" + ".join(f'"{word}"{" *" * last}' for word, last in _ends(text)) for text in texts]
    return " AND ".join(f"({phrase})" for phrase in [*phrases, *_of(tenant)] if phrase)


def _of(tenant: str | None) -> list[str]:
    return [word_of_tenant(tenant)] if tenant is not None else []


def _ends(text: Text) -> list[tuple[str, bool]]:
    """The words, and of each whether it is a beginning."""
    words = words_in(text.words)
    return [(word, text.prefix and place == len(words)) for place, word in enumerate(words, 1)]
