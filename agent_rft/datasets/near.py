"""Prompts that ask the same in nearly the same words.

Near means: the numbers agree, the proper names agree, and of the remaining words at least nine tenths are shared, each word
weighing as much as it is rare among the rows. Case, sentence marks, spacing, the order of the words, filler words and one wrong
letter in an ordinary word do not matter. A number is every word with a sign or digit in it (2023, Q3, -5%, x+2); a proper name is a
word that stands capitalised within sentences at least half of the time. So questions made from one template about other
companies, years or metrics are not near each other, however much of their phrasing they share.

The order of words does not matter, for a rewording moves phrases about; but two orders tell another question, and a pair that differs
in one is called turned. A number stands before another of the words that both say ("5 kg in g" and "5 g in kg", in any frame). Or two
phrases have changed places and all the rest, filler too, stands where it stood ("Did Oslo buy Atlas?", "Did Atlas buy Oslo?"): who
rewords a question changes the frame, who fills a template anew leaves it. The sides of "and" may change places, and so may what asks
("Porto has how many bridges?").

Which pairs are worth a look is found by MinHash: the same two words have the same smallest clock, and prompts of weighted
similarity s agree in one of its draws with probability s. Two prompts meet if they agree in all draws of a band. With 16 bands of
8 draws a pair of similarity 0.9 meets with probability 1 - (1 - 0.9^8)^16 = 0.9999, one of 0.5 with 0.06.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import pairwise, product

import msgspec
import numpy as np

NEAR = 0.9
BANDS, DRAWS = 16, 8
LOOSEST = 0.75
"""Share of the draws below which a pair that met is not compared word by word: five standard errors under NEAR."""
LOOKED_AT = 32
"""Of the training prompts that meet a validation prompt in one band, or have its words. Where more do, any of them is as good a twin."""
LONGEST_TURNED = 8
"""Words of a phrase that has changed places with another."""
PHRASING = 0.5
"""Words in more than this share of the rows are phrasing (a common instruction, say), once there are rows enough to tell."""
ENOUGH_ROWS = 50
SHORTEST_MISSPELT, LONGEST_MISSPELT = 5, 24
SLIP = 20
"""A word that another one letter away outnumbers so many times is taken for a slip."""
AT_ONCE = 100_000
"""Words whose clocks are looked at in one step, so that a hundred thousand prompts, or very long ones, need little memory."""
FILLER = frozenset(
    "a an the of in on at for to by was were is are be been did does do has had have what which how much many who when where "
    "i me my we our you your it its that this please tell give find say know can could would will and as with".split()
)
EVEN = frozenset(("and", "or"))
"""What stands on their two sides may change places."""
ASKING = frozenset("what which how who whom whose when where why".split())
"""The phrase that holds one may stand anywhere: "5 kg are how many g"."""
MARKS = re.compile(r"(?<!\d)\.|\.(?!\d)|,(?=\d{3}(?!\d))|[,;:!?\"'“”‘’()\[\]]")
POSSESSIVE = re.compile(r"(?<=\w)['’]s\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?:;](?=\s|$)|\n")
Kept = tuple[tuple[str, ...], tuple[str, ...]]
"""What a prompt is compared by: what must agree (sorted, repeats kept), and the other words (sorted, each once)."""
Said = tuple[str, ...]
"""A prompt's words, filler too, as they stand."""
Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Keys = np.ndarray[tuple[int], np.dtype[np.uint64]]


class Twins(msgspec.Struct, frozen=True):
    """A validation prompt and the training prompt that it is near to, by their positions."""

    val: int
    train: int
    similarity: float
    turned: bool = False
    """Their words stand in an order that tells another question."""


def near_duplicates(train: Sequence[str], val: Sequence[str]) -> list[Twins]:
    """One training twin for every validation prompt that has any, the same for the same prompts; a turned one where all are."""
    kept, said, telling = _kept([*train, *val])
    of_train, of_val = kept[: len(train)], kept[len(train) :]
    alike: dict[Kept, list[int]] = {}
    for position, words in enumerate(of_train):
        if len(same := alike.setdefault(words, [])) < LOOKED_AT:
            same.append(position)

    def turned(val_at: int, train_at: int) -> bool:
        return is_turned(said[len(train) + val_at], said[train_at], telling)

    found: dict[int, Twins] = {}
    for at, words in enumerate(of_val):
        if words in alike and words != ((), ()):
            straight = next((twin for twin in alike[words] if not turned(at, twin)), None)
            found[at] = Twins(at, alike[words][0], 1.0, turned=True) if straight is None else Twins(at, straight, 1.0)
    # What must agree is looked up first: only prompts that share it with somebody on the other side are drawn for.
    open_yet = {at for at in range(len(val)) if at not in found or found[at].turned}
    meeting = {fixed for fixed, _ in of_train} & {fixed for at, (fixed, _) in enumerate(of_val) if at in open_yet}
    left = [at for at, (fixed, others) in enumerate(of_val) if at in open_yet and fixed in meeting and others]
    right = [at for at, (fixed, others) in enumerate(of_train) if fixed in meeting and others]
    if left and right:
        for met in _met(kept, right, left, len(train)):
            twins = msgspec.structs.replace(met, turned=turned(met.val, met.train))
            if twins.val not in found or _rank(found[twins.val]) < _rank(twins):
                found[twins.val] = twins
    return [found[at] for at in sorted(found)]


def _rank(twins: Twins) -> tuple[bool, float]:
    return not twins.turned, twins.similarity


# --- order --------------------------------------------------------------------------------------------------------------


def is_turned(some: Said, others: Said, telling: Set[str]) -> bool:
    """Of two prompts of nearly the same words. `telling`: the words that are not filler."""
    return _numbers_stand_otherwise(some, others, telling) or _changed_places(some, others, telling)


def _numbers_stand_otherwise(some: Said, others: Said, telling: Set[str]) -> bool:
    """What a number counts comes after it, where anything does: "5 kg". A number that ends one of the prompts tells nothing, nor does a
    word that the other prompt lacks: who puts one in behind a year has turned nothing."""
    one, other, said_twice = _counted(some, telling), _counted(others, telling), {*some} & {*others}
    return any(one[number] != other[number] and said_twice.issuperset(one[number] + other[number]) for number in one.keys() & other.keys())


def _counted(said: Said, telling: Set[str]) -> dict[str, list[str]]:
    counted: dict[str, list[str]] = {}
    for number, word in pairwise(said):
        if _is_number(number) and word in telling:
            counted.setdefault(number, []).append(word)
    return {number: sorted(words) for number, words in counted.items()}


def _changed_places(some: Said, others: Said, telling: Set[str]) -> bool:
    """Whether one is X A Y B Z and the other X B Y A Z, where A and B tell something and Y is there: else one phrase was moved."""
    if len(some) != len(others) or some == others:
        return False
    begin = next(at for at, (one, other) in enumerate(zip(some, others, strict=True)) if one != other)
    end = next(at for at in range(len(some), 0, -1) if some[at - 1] != others[at - 1])
    one, other = some[begin:end], others[begin:end]
    sizes = range(1, min(LONGEST_TURNED, len(one)) + 1)
    return any(
        (one[:a], one[a:-b], one[-b:]) == (other[-a:], other[b:-a], other[:b])
        and not EVEN.issuperset(one[a:-b])
        and all(telling & {*phrase} and not ASKING & {*phrase} for phrase in (one[:a], one[-b:]))
        for a, b in product(sizes, sizes)
        if a + b < len(one)
    )


# --- words --------------------------------------------------------------------------------------------------------------


def _kept(prompts: Sequence[str]) -> tuple[list[Kept], list[Said], set[str]]:
    """What prompts are compared by, all that they say, and which of the words are not filler."""
    read, names = _read(prompts)
    rows_with = Counter(word for words in read for word in set(words))
    phrasing = {word for word, rows in rows_with.items() if rows > PHRASING * len(prompts)} if len(prompts) >= ENOUGH_ROWS else set[str]()
    dropped = FILLER | {word for word in phrasing if not _is_number(word)}
    fixed = {word for word in rows_with if _is_number(word) or (word in names and word not in dropped)}
    ordinary = {word: rows for word, rows in rows_with.items() if word not in fixed and word not in names}
    spelt = _spellings(ordinary)
    said = [tuple(spelt.get(word, word) for word in words) for words in read]
    kept = [
        (
            tuple(sorted(word for word in words if word in fixed)),
            tuple(sorted({word for word in words if word in ordinary} - dropped)),
        )
        for words in said
    ]
    return kept, said, rows_with.keys() - dropped


def _read(prompts: Iterable[str]) -> tuple[list[tuple[str, ...]], set[str]]:
    """Each prompt's words in small letters, every word held once; and which of them are proper names."""
    held: dict[str, str] = {}
    within, capitals = Counter[str](), Counter[str]()
    read: list[tuple[str, ...]] = []
    for prompt in prompts:
        folded: list[str] = []
        for word, begins in _words(prompt):
            small = word.casefold()
            folded.append(held.setdefault(small, small))
            within[small] += not begins
            capitals[small] += not begins and word[0].isupper()
        read.append(tuple(folded))
    return read, {word for word, count in capitals.items() if count and 2 * count >= within[word]}


def _words(prompt: str) -> Iterator[tuple[str, bool]]:
    """Each word, and whether it begins a sentence (where a capital letter tells nothing)."""
    for sentence in SENTENCE_END.split(POSSESSIVE.sub("", unicodedata.normalize("NFKC", prompt))):
        words = MARKS.sub(lambda mark: "" if mark.group() == "," and _between_digits(mark) else " ", sentence).split()
        yield from ((word, number == 0) for number, word in enumerate(words) if word.strip("-–—"))


def _between_digits(mark: re.Match[str]) -> bool:
    return mark.string[mark.start() - 1 : mark.start()].isdigit() and mark.string[mark.end() : mark.end() + 1].isdigit()


def _is_number(word: str) -> bool:
    return not word.replace("-", "").isalpha()


def _spellings(rows_with: dict[str, int]) -> dict[str, str]:
    """A slip, to what was meant: the commonest word that is the same once both have lost a letter at most, if it is far commoner or
    the slip stands in one row only."""
    by_shorter: dict[str, str] = {}
    for word in sorted(rows_with, key=lambda word: (-rows_with[word], word)):
        for shorter in _shortened(word):
            by_shorter.setdefault(shorter, word)
    meant = {word: min((by_shorter[s] for s in _shortened(word)), key=lambda w: (-rows_with[w], w), default=word) for word in rows_with}
    return {
        word: near for word, near in meant.items() if word != near and (rows_with[word] == 1 or SLIP * rows_with[word] <= rows_with[near])
    }


def _shortened(word: str) -> set[str]:
    if not SHORTEST_MISSPELT <= len(word) <= LONGEST_MISSPELT:
        return set()
    return {word} | {word[:at] + word[at + 1 :] for at in range(len(word))}


# --- which pairs meet ---------------------------------------------------------------------------------------------------


def _met(kept: Sequence[Kept], train: Sequence[int], val: Sequence[int], val_begins: int) -> Iterator[Twins]:
    """Every pair that meets in a band and is near. `val` counts from `val_begins`."""
    places = [*train, *(val_begins + at for at in val)]
    weights = _weights([others for _, others in kept])
    draws = _draws([kept[at][1] for at in places], weights)
    numbers = {fixed: number for number, fixed in enumerate({kept[at][0]: None for at in places})}
    fixed = np.array([numbers[kept[at][0]] for at in places], dtype=np.uint64)
    seen = set[tuple[int, int]]()
    for band in range(BANDS):
        keys = _band_keys(draws[:, band * DRAWS : (band + 1) * DRAWS], fixed)
        for left, right in _same_keys(keys[: len(train)], keys[len(train) :]):
            pair = val[right], train[left]
            alike = float(np.mean(draws[left] == draws[len(train) + right]))
            if pair in seen or alike < LOOSEST or kept[train[left]][0] != kept[val_begins + val[right]][0]:
                continue
            seen.add(pair)
            similarity = _similarity(kept[train[left]][1], kept[val_begins + val[right]][1], weights)
            if similarity >= NEAR:
                yield Twins(*pair, similarity)


def _weights(sets: Sequence[tuple[str, ...]]) -> dict[str, float]:
    rows_with = Counter(word for words in sets for word in words)
    return {word: math.log((len(sets) + 1) / rows) for word, rows in rows_with.items()}


def _draws(sets: Sequence[tuple[str, ...]], weights: dict[str, float]) -> Floats:
    """In each draw every word has an exponential clock that runs as fast as the word weighs; a set keeps its smallest."""
    ids = {word: number for number, word in enumerate(sorted({word for words in sets for word in words}))}
    clocks = np.random.default_rng(0).standard_exponential((len(ids), BANDS * DRAWS), dtype=np.float32)
    clocks /= np.array([weights[word] for word in ids], dtype=np.float32)[:, None]
    draws = np.empty((len(sets), BANDS * DRAWS), dtype=np.float32)
    ends = np.cumsum([len(words) for words in sets])
    begin = 0
    while begin < len(sets):
        before = ends[begin] - len(sets[begin])
        end = max(begin + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        some = [ids[word] for words in sets[begin:end] for word in words]
        starts = np.concatenate(([0], ends[begin : end - 1] - before))
        draws[begin:end] = np.minimum.reduceat(clocks[some], starts, axis=0)
        begin = end
    return draws


def _band_keys(draws: Floats, fixed: Keys) -> Keys:
    keys = fixed + np.uint64(1)
    for column in np.ascontiguousarray(draws.T).view(np.uint32).astype(np.uint64):
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _same_keys(train: Keys, val: Keys) -> Iterator[tuple[int, int]]:
    order = np.argsort(train, kind="stable")
    begins, ends = (np.searchsorted(train[order], val, side=side) for side in ("left", "right"))
    for right in np.flatnonzero(begins < ends):
        for left in order[begins[right] : min(ends[right], begins[right] + LOOKED_AT)]:
            yield int(left), int(right)


def _similarity(some: tuple[str, ...], others: tuple[str, ...], weights: dict[str, float]) -> float:
    """Weighted Jaccard: what both say, of what either says."""
    both, either = set(some) & set(others), set(some) | set(others)
    return sum(weights[word] for word in sorted(both)) / sum(weights[word] for word in sorted(either))
