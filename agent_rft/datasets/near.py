"""Prompts that ask the same in nearly the same words.

Near means: the numbers agree, the proper names agree, and of the remaining words at least nine tenths are shared, each word
weighing as much as it is rare among the rows. Case, sentence marks, spacing, the order of the words, filler words and one wrong
letter in an ordinary word do not matter. A number is every word with a sign or digit in it (2023, Q3, -5%, x+2); a proper name is a
word that stands capitalised within sentences at least half of the time. So questions made from one template about other
companies, years or metrics are not near each other, however much of their phrasing they share.

Which pairs are worth a look is found by MinHash: the same two words have the same smallest clock, and prompts of weighted
similarity s agree in one of its draws with probability s. Two prompts meet if they agree in all draws of a band. With 16 bands of
8 draws a pair of similarity 0.9 meets with probability 1 - (1 - 0.9^8)^16 = 0.9999, one of 0.5 with 0.06.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

NEAR = 0.9
BANDS, DRAWS = 16, 8
LOOSEST = 0.75
"""Share of the draws below which a pair that met is not compared word by word: five standard errors under NEAR."""
LOOKED_AT = 32
"""Of the training prompts that meet a validation prompt in one band. Where more do, any of them is as good a twin."""
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
    "i me my we our you your it its that this s please tell give find say know can could would will and as with s".split()
)
MARKS = re.compile(r"(?<!\d)\.|\.(?!\d)|,(?=\d{3}(?!\d))|[,;:!?\"'“”‘’()\[\]]")
SENTENCE_END = re.compile(r"[.!?:;](?=\s|$)|\n")
Kept = tuple[tuple[str, ...], tuple[str, ...]]
"""What a prompt is compared by: what must agree (sorted, repeats kept), and the other words (sorted, each once)."""
Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Keys = np.ndarray[tuple[int], np.dtype[np.uint64]]


class Twins(msgspec.Struct, frozen=True):
    """A validation prompt and the training prompt that it is near to, by their positions."""

    val: int
    train: int
    similarity: float


def near_duplicates(train: Sequence[str], val: Sequence[str]) -> list[Twins]:
    """One training twin for every validation prompt that has any, the same for the same prompts."""
    kept = _kept([*train, *val])
    of_train, of_val = kept[: len(train)], kept[len(train) :]
    first: dict[Kept, int] = {}
    for position, words in enumerate(of_train):
        first.setdefault(words, position)
    found = {at: Twins(at, first[words], 1.0) for at, words in enumerate(of_val) if words in first and words != ((), ())}
    # What must agree is looked up first: only prompts that share it with somebody on the other side are drawn for.
    meeting = {fixed for fixed, _ in of_train} & {fixed for at, (fixed, _) in enumerate(of_val) if at not in found}
    left = [at for at, (fixed, others) in enumerate(of_val) if at not in found and fixed in meeting and others]
    right = [at for at, (fixed, others) in enumerate(of_train) if fixed in meeting and others]
    if left and right:
        for twins in _met(kept, right, left, len(train)):
            if twins.val not in found or found[twins.val].similarity < twins.similarity:
                found[twins.val] = twins
    return [found[at] for at in sorted(found)]


# --- words --------------------------------------------------------------------------------------------------------------


def _kept(prompts: Sequence[str]) -> list[Kept]:
    read, names = _read(prompts)
    rows_with = Counter(word for words in read for word in set(words))
    phrasing = {word for word, rows in rows_with.items() if rows > PHRASING * len(prompts)} if len(prompts) >= ENOUGH_ROWS else set[str]()
    dropped = FILLER | {word for word in phrasing if not _is_number(word)}
    fixed = {word for word in rows_with if _is_number(word) or (word in names and word not in dropped)}
    ordinary = {word: rows for word, rows in rows_with.items() if word not in fixed and word not in names}
    spelt = _spellings(ordinary)
    return [
        (
            tuple(sorted(word for word in words if word in fixed)),
            tuple(sorted({spelt.get(word, word) for word in words if word in ordinary} - dropped)),
        )
        for words in read
    ]


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
    for sentence in SENTENCE_END.split(unicodedata.normalize("NFKC", prompt)):
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
