"""Whether two sets of prompts are drawn from the same mixture: training and validation, or either and what production is asked.

Each part looks at one side of the prompts: their slices, their length, their words, their embeddings where there are some. A part
measures one gap between the two sets, and the same gap for the pooled prompts dealt out anew at random many times. It differs where
two things hold: chance hardly makes a gap so wide (all parts together raise a false alarm in at most ALPHA of fair splits), and beyond
what chance makes on average the gap is wider than the part bears. Without the second a large sample would alarm over nothing.

Dealing out is fair where prompts are drawn one by one. Prompts of one session are alike, so of a session only the first should come in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.messages import Message
from agent_rft.contracts.rows import Row
from agent_rft.datasets.curriculum import COPY_OF

What = Literal["slices", "length", "vocabulary", "embedding"]
ALPHA = 0.01
"""The chance, at most, that two fair samples are told apart."""
DEALS = 1999
LEAST = 20
"""Prompts, without which a sample says nothing."""
MOST = 1_000
"""Prompts of a sample that are looked at, drawn by lot: more would be dealt out for minutes and tell no more. Each second one, say, of
a file in which two kinds of prompts take turns would be of one kind."""
MOST_WORDS = 1_000
"""Of the two samples, the most frequent; all others count as one."""
TOLD = 4
"""Words or slices that are named."""
WORD = re.compile(r"[^\W\d_]{2,}")
UNNAMED = "unspecified"
Floats: TypeAlias = NDArray[np.float32]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    """As people call it: train, val, production of research."""
    prompts: tuple[str, ...]
    slices: tuple[str, ...] = ()
    """One a prompt; none where nobody sorted them."""
    embeddings: tuple[tuple[float, ...], ...] = ()
    """One a prompt; none where there is no embedder."""
    drawn_from: int = 0
    """How many there were, where these were drawn of them."""

    @property
    def count(self) -> int:
        return self.drawn_from or len(self.prompts)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One side of the prompts, compared."""

    what: What
    statistic: str
    figure: float
    """The gap, 0 where both are the same."""
    by_chance: float
    """The gap that a fair split of the same sizes has on average."""
    limit: float
    """What is borne beyond that."""
    p: float
    """How often a fair split has a gap as wide."""
    verdict: Literal["alike", "differ"]
    words: str
    """Where the gap is, for people."""


class DistributionCheck(msgspec.Struct, frozen=True, kw_only=True):
    name_a: str
    name_b: str
    n_a: int
    n_b: int
    parts: tuple[Part, ...]
    verdict: Literal["alike", "differ", "too few"]

    @property
    def differing(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.verdict == "differ")


class _Side(NamedTuple):
    """How a part is measured: `features` of each prompt, and the gap between the means of two sets of them."""

    what: What
    statistic: str
    limit: float
    features: Floats
    gap: Callable[[Floats], Floats]
    """Of each row of differences of means."""
    words: Callable[[Floats], str]
    """Of the differences as they are: b's mean less a's."""


# --- samples ------------------------------------------------------------------------------------------------------------------


def sample_of_rows(name: str, rows: Sequence[Row]) -> Sample:
    """A curriculum's copies weigh a row and are no rows: they would make one prompt look like a common one."""
    rows = [row for row in rows if COPY_OF not in row.metadata]
    return Sample(
        name=name,
        prompts=tuple(_asked(row.opening()) for row in rows),
        slices=_named(f"{row.task_type}, {row.difficulty}" for row in rows),
    )


def sample_of_cards(name: str, cards: Sequence[JobCard]) -> Sample:
    """The first of each session. Cards of production seldom say what kind of question was asked: then nothing is said of slices."""
    first = {str(card.metadata.get("session") or card.rollout_id): card for card in reversed(cards)}
    chosen = list(reversed(first.values()))
    kinds = ((card.metadata.get("task_type", UNNAMED), card.metadata.get("difficulty", UNNAMED)) for card in chosen)
    return Sample(
        name=name,
        prompts=tuple(_asked(card.rollout.opening) for card in chosen),
        slices=_named(f"{task}, {difficulty}" for task, difficulty in kinds),
    )


def _asked(opening: Sequence[Message]) -> str:
    """What the user said last: before it the conversation stands, which grows with the session."""
    return next((message.content for message in reversed(opening) if message.role == "user"), "")


def _named(slices: Iterable[str]) -> tuple[str, ...]:
    found = tuple(slices)
    return () if {*found} <= {f"{UNNAMED}, {UNNAMED}"} else found


# --- comparing ----------------------------------------------------------------------------------------------------------------


def compare_samples(a: Sample, b: Sample, seed: int = 0) -> DistributionCheck:
    """`a` is what the other is held against: the words tell where b is unlike it."""
    if min(len(a.prompts), len(b.prompts)) < LEAST:
        return _check(a, b, (), "too few")
    one, other = drawn(a, seed), drawn(b, seed)
    dealt = _dealt(len(one.prompts), len(other.prompts), seed)
    sides = list(_sides(one, other))
    parts = tuple(_compared(side, dealt, ALPHA / len(sides)) for side in sides)
    return _check(a, b, parts, "differ" if any(part.verdict == "differ" for part in parts) else "alike")


def _check(a: Sample, b: Sample, parts: tuple[Part, ...], verdict: Literal["alike", "differ", "too few"]) -> DistributionCheck:
    return DistributionCheck(name_a=a.name, name_b=b.name, n_a=a.count, n_b=b.count, parts=parts, verdict=verdict)


def drawn(sample: Sample, seed: int = 0) -> Sample:
    """What is looked at of it. Whoever embeds the prompts does it after this."""
    count = len(sample.prompts)
    if count <= MOST:
        return sample
    kept = [int(place) for place in np.random.default_rng(seed).choice(count, MOST, replace=False)]

    def of(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[place] for place in kept) if values else ()

    vectors = tuple(sample.embeddings[place] for place in kept) if sample.embeddings else ()
    return Sample(name=sample.name, prompts=of(sample.prompts), slices=of(sample.slices), embeddings=vectors, drawn_from=count)


def _dealt(n_a: int, n_b: int, seed: int) -> Floats:
    """Weights that turn the prompts' features into b's mean less a's: first as the samples are, then dealt out anew."""
    weights = np.concatenate([np.full(n_a, -1 / n_a), np.full(n_b, 1 / n_b)]).astype(np.float32)
    luck = np.random.default_rng(seed)
    return np.concatenate([weights[None, :], luck.permuted(np.tile(weights, (DEALS, 1)), axis=1)])


def _compared(side: _Side, dealt: Floats, alpha: float) -> Part:
    differences = dealt @ side.features
    gaps = side.gap(differences)
    figure, by_chance = round(float(gaps[0]), 6), round(float(gaps[1:].mean()), 6)
    p = float((gaps >= gaps[0] * (1 - 1e-5)).mean())  # of all deals, the real one among them; float32 rounds
    differs = p <= alpha and figure - by_chance > side.limit
    return Part(
        what=side.what,
        statistic=side.statistic,
        figure=figure,
        by_chance=by_chance,
        limit=side.limit,
        p=p,
        verdict="differ" if differs else "alike",
        words=side.words(differences[0]),
    )


def _sides(a: Sample, b: Sample) -> Iterator[_Side]:
    if a.slices and b.slices:
        yield _slices(a, b)
    yield _length(a, b)
    yield _vocabulary(a, b)
    if a.embeddings and b.embeddings and len(a.embeddings[0]) == len(b.embeddings[0]):
        yield _embedding(a, b)


def _moved(differences: Floats) -> Floats:
    """Total variation: the share of one that would have to change for the other."""
    return np.abs(differences).sum(axis=1) / 2


def _slices(a: Sample, b: Sample) -> _Side:
    every = (*a.slices, *b.slices)
    names = sorted({*every})
    features = np.array([[name == one for name in names] for one in every], np.float32)
    counts, other = Counter(a.slices), Counter(b.slices)

    def words(difference: Floats) -> str:
        widest = sorted(range(len(names)), key=lambda at: -abs(float(difference[at])))[:TOLD]
        told = [f"{names[at]} {counts[names[at]] / len(a.slices):.0%} and {other[names[at]] / len(b.slices):.0%}" for at in widest]
        return f"{'; '.join(told)} (of {a.name} and of {b.name})"

    return _Side("slices", "total variation", 0.1, features, _moved, words)


def _length(a: Sample, b: Sample) -> _Side:
    lengths = np.array([len(prompt) for prompt in (*a.prompts, *b.prompts)])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 101)))
    features = (lengths[:, None] <= edges[None, :]).astype(np.float32)
    middles = [median(len(prompt) for prompt in sample.prompts) for sample in (a, b)]

    def words(_: Floats) -> str:
        return f"half of {a.name} have at most {middles[0]:g} characters, half of {b.name} at most {middles[1]:g}"

    return _Side("length", "Kolmogorov-Smirnov", 0.15, features, lambda differences: np.abs(differences).max(axis=1), words)


def _vocabulary(a: Sample, b: Sample) -> _Side:
    said = [Counter(WORD.findall(prompt.casefold())) for prompt in (*a.prompts, *b.prompts)]
    seen = Counter(word for words in said for word in words)
    names = sorted(seen, key=lambda word: (-seen[word], word))[:MOST_WORDS]
    place = {word: at for at, word in enumerate(names)}
    features = np.zeros((len(said), len(names) + 1), np.float32)
    for at, words_of in enumerate(said):
        for word, count in words_of.items():
            features[at, place.get(word, len(names))] += count / words_of.total()
    known = {word for words_of in said[: len(a.prompts)] for word in words_of}
    of_b = sum(said[len(a.prompts) :], Counter[str]())
    unknown = sum(count for word, count in of_b.items() if word not in known) / (of_b.total() or 1)

    def words(difference: Floats) -> str:
        order = np.argsort(-difference[:-1], kind="stable")
        more = [names[at] for at in order[:TOLD] if difference[at] > 0]
        less = [names[at] for at in order[::-1][:TOLD] if difference[at] < 0]
        told = [f"{name} says more often {', '.join(these)}" for name, these in ((b.name, more), (a.name, less)) if these]
        return "; ".join([f"{unknown:.0%} of the words of {b.name} stand nowhere in {a.name}", *told])

    return _Side("vocabulary", "total variation", 0.1, features, _moved, words)


def _embedding(a: Sample, b: Sample) -> _Side:
    """Their centres' distance, where 1 is what a prompt is away from the centre of all, by the root of the mean square."""
    vectors = np.array((*a.embeddings, *b.embeddings), np.float32)
    centred = vectors - vectors.mean(axis=0)
    spread = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0

    def words(difference: Floats) -> str:
        return f"the centres of {a.name} and of {b.name} are {float(np.linalg.norm(difference)):.2f} spreads apart"

    return _Side("embedding", "distance of the centres", 0.3, centred / spread, lambda found: np.linalg.norm(found, axis=1), words)


# --- told -----------------------------------------------------------------------------------------------------------------------


def describe(check: DistributionCheck) -> str:
    """A line of verdict, and a line a part."""
    sizes = f"{check.name_a} ({check.n_a:,}) and {check.name_b} ({check.n_b:,})"
    if check.verdict == "too few":
        return f"{sizes}: too few to compare, {LEAST} of each are needed"
    verdict = "alike" if check.verdict == "alike" else f"they differ in {' and '.join(part.what for part in check.differing)}"
    return "\n".join([f"{sizes}: {verdict}", *(f"  {_line(part)}" for part in check.parts)])


def _line(part: Part) -> str:
    measured = f"{part.statistic} {part.figure:.2f}, by chance {part.by_chance:.2f}, {part.limit:g} beyond is borne, p {part.p:.2g}"
    return f"{part.what} {part.verdict}: {measured}; {part.words}"
