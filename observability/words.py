"""The words of a card, and of a question, as both databases' indexes take them. Pure.

Both get words that are taken apart here: their own ways to do that differ, and what is found must not.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from agent_rft.contracts.jobcards import JobCard
from observability.query import And, Not, Or, Query, Term, Text, all_of

ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Scripts that put no spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese): each character is a word, and a word
of a question is a phrase of them."""
WORD = re.compile(rf"(?!\W)[{ALONE}]|[^\W_{ALONE}]+")
BETWEEN_WORDS = "".join(chr(code) if chr(code).isalnum() else " " for code in range(128))
"""With it a text of ASCII falls apart as WORD finds it, five times as fast."""
OF_TENANT = re.compile("(tenant)([0-9a-f]{16})")
GAP = "\ue000"
"""Stands before each text, so that no phrase runs from one into the next. For private use: a word to FTS5, never in a question."""
MOST_WORDS = 50_000
"""Of a card, with the gaps. What comes later is not found."""
MOST_BYTES = 1_000_000
"""Of a card, as PostgreSQL counts them: it takes 1,048,575 of a word's letters and places, and of a longer list nothing at all."""
OF_A_PLACE = 2
LONGEST = 100
"""Characters of a word: longer ones are keys and encoded files."""
LAST_PLACE = 16383
"""PostgreSQL counts places so far, and 256 of one word."""
PLACES = 256


def words_in(text: str) -> list[str]:
    folded = text.casefold()
    if "tenant" in folded:  # nobody's text may pass for the word that keeps tenants apart
        folded = OF_TENANT.sub(r"\1 \2", folded)
    words = folded.translate(BETWEEN_WORDS).split() if folded.isascii() else WORD.findall(folded)
    return [word[:LONGEST] for word in words]


def spelled(text: str) -> str:
    """A text as a part of what the index holds of a card."""
    return " ".join([GAP, *words_in(text)])


def indexed_words(tenant: str, parts: Iterable[str]) -> str:
    """What the index holds of a card, of its texts each spelled. FTS5 forgets a card only when told the same words again: who changes
    what comes out here makes the index anew."""
    joined = " ".join([word_of_tenant(tenant), *filter(None, parts)])
    words = joined.count(" ") + 1
    at_most = 4 * len(joined) + (1 + 2 * OF_A_PLACE) * words  # bytes: nearly every card is far from the limit
    if words <= MOST_WORDS and at_most <= MOST_BYTES:
        return joined
    return " ".join(_as_far_as_it_goes(itertools.islice(joined.split(" "), MOST_WORDS)))


def words_of(card: JobCard) -> list[str]:
    """The same of a card that is at hand."""
    return indexed_words(card.tenant, map(spelled, _texts(card))).split(" ")


def _as_far_as_it_goes(words: Iterable[str]) -> Iterator[str]:
    """A word takes its letters, filled up to an even number, and how often it comes; each time that it comes takes a place."""
    left, met = MOST_BYTES, set[str]()
    for word in words:
        left -= OF_A_PLACE if word in met else len(word.encode()) + 1 + 2 * OF_A_PLACE
        if left < 0:
            return
        met.add(word)
        yield word


def every_word(card: JobCard) -> Iterator[str]:
    """The index's and those that it leaves out, so that a hold finds all that an erasure of the card would take: the names under which
    values stand, and the tools that were offered."""
    return _words(card.tenant, itertools.chain(_texts(card), _names(card)))


def _words(tenant: str, texts: Iterable[str]) -> Iterator[str]:
    """The tenant's own word first."""
    yield word_of_tenant(tenant)
    for text in texts:
        yield GAP
        yield from words_in(text)


def stands_in(text: Text, words: Sequence[str]) -> bool:
    """Whether these words have the text's next to each other, as the index would say if it held them all."""
    asked = _ends(text)
    return any(
        all(
            there.startswith(word) if begins else there == word
            for there, (word, begins) in zip(words[first : first + len(asked)], asked, strict=True)
        )
        for first in range(len(words) - len(asked) + 1)
    )


def word_of_tenant(tenant: str) -> str:
    """Beside each question, so that a search in a large store stays with one tenant's cards."""
    return f"tenant{hashlib.sha256(tenant.encode()).hexdigest()[:16]}"


def _texts(card: JobCard) -> Iterator[str]:
    """All that was asked, said, called and found. Last comes what many cards have alike: it must not take the place of the card's own."""
    rollout = card.rollout
    yield from (message.content for message in rollout.opening if message.role == "user")
    yield rollout.answer
    for turn in rollout.turns:
        yield turn.text
        for call in turn.calls:
            yield call.name
            yield from strings_in(call.arguments)
        for result in turn.results.values():
            yield result.output or ""
            yield result.error or ""
    yield rollout.reason
    yield from strings_in(card.reference_answer)
    yield from strings_in(card.metadata)
    yield from (message.content for message in rollout.opening if message.role != "user")
    yield from strings_in(card.item)


def _names(card: JobCard) -> Iterator[str]:
    rollout = card.rollout
    tools = msgspec.to_builtins(rollout.tools)
    yield from strings_in(tools)
    calls = [call.arguments for turn in rollout.turns for call in turn.calls]
    for value in (tools, calls, card.reference_answer, card.metadata, card.item):
        yield from _keys(value)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from map(str, value)
    if isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _keys(one)


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from strings_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from strings_in(one)
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


def walkable(query: Query) -> bool:
    """Made of words only, and of some that must be there: what an index of words can be asked for by itself."""
    match query:
        case Text():
            return True
        case And(parts):
            return any(map(walkable, parts)) and all(walkable(part) or _absent(part) for part in parts)
        case Or(parts):
            return all(map(walkable, parts))
        case _:
            return False


def _absent(query: Query) -> bool:
    return isinstance(query, Not) and walkable(query.part)


def of_words(query: Query) -> tuple[Query | None, Query]:
    """What the index of words can be asked for, if anything, and what is to be asked of the cards that it finds."""
    parts = query.parts if isinstance(query, And) else (query,)
    if not any(map(walkable, parts)):
        return None, query
    asked = [part for part in parts if walkable(part) or _absent(part)]
    return all_of(asked), all_of([part for part in parts if part not in asked])


def as_tsquery(query: Query, tenant: str | None) -> str:
    of_tenant = f" & '{word_of_tenant(tenant)}'" if tenant is not None else ""
    return _tsquery(query) + of_tenant


def _tsquery(query: Query) -> str:
    match query:
        case Text():
            return "(" + " <-> ".join(f"'{word}'{':*' * last}" for word, last in _ends(query)) + ")"
        case And(parts):
            return "(" + " & ".join(map(_tsquery, parts)) + ")"
        case Or(parts):
            return "(" + " | ".join(map(_tsquery, parts)) + ")"
        case Not(part):
            return "!" + _tsquery(part)
        case Term():
            raise ValueError("a term is no word")


def as_match(query: Query, tenant: str | None) -> str:
    """For FTS5, whose NOT stands between what is there and what is not."""
    of_tenant = f' AND "{word_of_tenant(tenant)}"' if tenant is not None else ""
    return _match(query) + of_tenant


def _match(query: Query) -> str:
    match query:
        case Text():
            return "(" + " + ".join(f'"{word}"{" *" * last}' for word, last in _ends(query)) + ")"
        case And(parts):
            there = " AND ".join(_match(part) for part in parts if not isinstance(part, Not))
            return f"(({there})" + "".join(f" NOT {_match(part.part)}" for part in parts if isinstance(part, Not)) + ")"
        case Or(parts):
            return "(" + " OR ".join(map(_match, parts)) + ")"
        case _:
            raise ValueError("the index cannot be asked for what is not there alone")


def _ends(text: Text) -> list[tuple[str, bool]]:
    """The words, and of each whether it is a beginning."""
    words = words_in(text.words)
    return [(word, text.prefix and place == len(words)) for place, word in enumerate(words, 1)]
