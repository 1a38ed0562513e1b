"""Takes out of texts and JSON values what the detectors find, and records what was there without keeping it.

A removal says of what kind it was, where, and how long. It keeps neither the value nor a hash: a phone's or a card's number has
so few possible values that a hash is as good as the number.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import re2

from observability.redaction.detector import Detector, Found
from observability.redaction.detectors import BUILT_IN
from observability.redaction.names import LONGEST_NAME, Key, key_named
from observability.redaction.secrets import without_surrogates
from observability.texts import from_json

DEEPEST = 100
SHORT, MOST_CLEAN = 100, 10_000
"""Characters of a text that is remembered from one value to the next, and how many are."""
TOO_DEEP = "TOO_DEEP"
NO_KEY = Key()


class Removal(msgspec.Struct, frozen=True):
    kind: str
    start: int
    """Where its placeholder begins in the redacted text."""
    length: int
    """Characters that were taken out. 0 of what is TOO_DEEP, which nobody measured."""
    path: str = ""
    """A JSON pointer to the text in what was redacted; `#` and a second one lead on into a text that is JSON itself."""

    @property
    def end(self) -> int:
        return self.start + len(placeholder(self.kind))


class Redacted(msgspec.Struct, frozen=True):
    text: str
    removed: tuple[Removal, ...]


class RedactedValue(msgspec.Struct, frozen=True):
    value: Any
    removed: tuple[Removal, ...]


class _Cut(NamedTuple):
    kind: str
    length: int


def placeholder(kind: str) -> str:
    return f"[{kind}]"


# --- texts ------------------------------------------------------------------------------------------------------------


def redact(text: str, detectors: Sequence[Detector] = BUILT_IN) -> Redacted:
    """The text with [KIND] for everything found. Doing it again changes nothing, whatever the detectors.

    What stands between two placeholders is looked at as a text of its own until nothing is found in it, so that a second
    redaction, which sees the same texts between the same placeholders, finds nothing either.
    """
    done, place, removed = list[str](), 0, list[Removal]()
    for piece in _pieces(text, detectors):
        if isinstance(piece, _Cut):
            removed.append(Removal(piece.kind, place, piece.length))
        done.append(placeholder(piece.kind) if isinstance(piece, _Cut) else piece)
        place += len(done[-1])
    return Redacted("".join(done), tuple(removed)) if removed else Redacted(text, ())


def _pieces(text: str, detectors: Sequence[Detector]) -> Iterator[str | _Cut]:
    """What stays and what goes, in order. A placeholder that stood there before stays."""
    if not screen_of(tuple(detectors)).suspects(text):  # nor could there be anything between two placeholders, which end words
        yield text
        return
    parts = _placeholders(detectors).split(text) if "[" in text else [text]
    for number, part in enumerate(parts):
        if number % 2:
            yield part
            continue
        ahead: list[str | _Cut] = [part]
        while ahead:
            piece = ahead.pop()
            if isinstance(piece, str) and (found := _apart(piece, detectors)):
                ahead += reversed(list(_cut(piece, found)))
            else:
                yield piece


def _apart(text: str, detectors: Sequence[Detector]) -> list[Found]:
    """In order, and what overlaps as one: half of a number is as telling as the whole. The longest names the kind."""
    found = [one for detector in screen_of(tuple(detectors)).suspects(text) for one in detector.find(text)]
    apart = list[Found]()
    for one in sorted(found, key=lambda one: (one.start, -one.end)):
        if apart and one.start < apart[-1].end:
            before = apart[-1]
            kind = before.kind if before.end - before.start >= one.end - one.start else one.kind
            apart[-1] = Found(kind, before.start, max(before.end, one.end))
        else:
            apart.append(one)
    return apart


def _cut(text: str, found: Sequence[Found]) -> Iterator[str | _Cut]:
    end = 0
    for one in found:
        if one.start > end:
            yield text[end : one.start]
        yield _Cut(one.kind, one.end - one.start)
        end = one.end
    if end < len(text):
        yield text[end:]


def _placeholders(detectors: Sequence[Detector]) -> re.Pattern[str]:
    return _written(tuple(sorted({TOO_DEEP, *(kind for detector in detectors for kind in detector.kinds)})))


@functools.cache
def _written(kinds: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(\[(?:{'|'.join(kinds)})\])")


class Screen:
    """Which of some detectors could find anything in a text, from one reading of it."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self._always = [detector for detector in detectors if not detector.sign]
        self._signed = [detector for detector in detectors if detector.sign]
        self._signs: Any = re2.Set.SearchSet()
        for detector in self._signed:
            self._signs.Add(detector.sign)
        self._signs.Compile()
        self.key_passes = functools.lru_cache(maxsize=4096)(self._key_passes)
        self.clean = set[str]()
        """Texts in which nothing was found before. Names of agents, services and callers come with every card, and look like numbers."""

    def learn(self, text: str) -> None:
        """JSON is not learnt: whether it is too deep depends on where it stands."""
        if len(text) <= SHORT and text[:1] not in ("{", "["):
            if len(self.clean) >= MOST_CLEAN:
                self.clean.clear()
            self.clean.add(text)

    def _key_passes(self, name: str) -> bool:
        """Whether neither it nor what stands under it has to go because of it."""
        key = key_named(name, name)
        return not (key.secret or key.number) and self.passes([name])

    def suspects(self, text: str) -> list[Detector]:
        try:
            plain = text.encode()
        except UnicodeEncodeError:
            plain = without_surrogates(text).encode()
        return [*self._always, *(self._signed[place] for place in self._signs.Match(plain) or ())]

    def passes(self, texts: Collection[str]) -> bool:
        """Whether nothing can be found in any of them. What a sign is part of ends at a NUL as it does at the end of a text."""
        if any(True for detector in self._always for text in texts for _ in detector.find(text)):
            return False
        return len(self.suspects("\0".join(texts))) == len(self._always)


screen_of = functools.lru_cache(maxsize=64)(Screen)


def _json(text: str) -> Any:
    """None where it is none."""
    try:
        return from_json(text)
    except (ValueError, RecursionError):
        return None


# --- JSON values ------------------------------------------------------------------------------------------------------


def redact_value(value: Any, detectors: Sequence[Detector] = BUILT_IN, path: str = "") -> RedactedValue:
    """A JSON value with every text in it redacted: keys, whole numbers, and texts that are JSON themselves."""
    redacting = Redacting(detectors)
    redacted = redacting.value(value, path)
    return RedactedValue(redacted, tuple(redacting.removed))


class Redacting:
    """Goes through values that belong together, and collects what it removes from them.

    It remembers the texts in which nothing was found, for a conversation repeats itself: each turn brings all that was said before.
    """

    def __init__(self, detectors: Sequence[Detector] = BUILT_IN, after: Redacting | None = None, names: Iterable[str] = ()) -> None:
        """`after`: what has gone through much of it already, in another shape. `names`: texts that stay wherever they stand."""
        self.removed: list[Removal] = []
        self._detectors = tuple(detectors)
        self._screen = screen_of(self._detectors)
        self._clean: set[str] = after._clean if after else set()
        self._clean.update(names)

    def value(self, value: Any, path: str) -> Any:
        """The same object where nothing had to go."""
        if self.passes(value):
            return value
        before = len(self.removed)
        redacted = self._value(value, path, 0)
        return value if len(self.removed) == before else redacted

    def passes(self, value: Any) -> bool:
        """Whether there is nothing to remove, as of most values there is: told for all of it at once, and so a tenth of the work.
        False where that is not certain."""
        texts: set[str] = set()
        if not self._gather(value, texts):
            return False
        if texts and not self._screen.passes(texts) and not self._nothing_in(texts):
            return False
        self._clean.update(texts)
        return True

    def _nothing_in(self, texts: Collection[str]) -> bool:
        """Whether nothing is found where some sign was, as in most figures and ids: they need not be gone through by their paths."""
        for text in texts:
            if redact(text, self._detectors).removed:
                return False
            self._screen.learn(text)
        return True

    def _gather(self, value: Any, texts: set[str]) -> bool:
        """Every text in it that is not known. False where a key promises something, or it is too deep."""
        level = [value]
        for _ in range(DEEPEST + 1):
            level = self._gather_level(level, texts)
            if not level:
                return level is not None
        return False

    def _gather_level(self, level: list[Any], texts: set[str]) -> list[Any] | None:
        """What is inside of these; None where it is not certain that nothing has to go."""
        inner: list[Any] = []
        clean, known, key_passes = self._clean, self._screen.clean, self._screen.key_passes
        for one in level:
            kind: type[Any] = type(one)
            if kind is str:
                if one in known or one in clean:
                    continue
                texts.add(one)
                if one[:1] in ("{", "[") and (inside := _json(one)) is not None:
                    inner.append(inside)
            elif kind is dict:
                for name in one:
                    if type(name) is not str or len(name) > LONGEST_NAME or not key_passes(name):
                        return None
                inner += one.values()
            elif kind is list or kind is tuple:
                inner += one
            elif kind is int:
                if one >= 10**8:
                    texts.add(str(one))
            elif not (one is None or kind is float or kind is bool):
                return None
        return inner

    def _value(self, value: Any, path: str, depth: int, key: Key = NO_KEY) -> Any:
        if depth > DEEPEST and isinstance(value, dict | list | tuple):
            self.removed.append(Removal(TOO_DEEP, 0, 0, path))
            return placeholder(TOO_DEEP)
        if isinstance(value, dict):
            return self._object(cast(dict[Any, Any], value), path, depth)
        if isinstance(value, list | tuple):
            return [self._value(one, f"{path}/{place}", depth + 1, key) for place, one in enumerate(cast(Sequence[Any], value))]
        if isinstance(value, str):
            return self._string(value, path, depth, key)
        return self._number(value, path, key) if type(value) is int else value

    def _string(self, value: str, path: str, depth: int, key: Key) -> Any:
        promising = key.secret or key.number
        if not promising and (value in self._clean or value in self._screen.clean):
            return value
        before = len(self.removed)
        said = self._by_its_key(key, value, self._text(self._json_inside(value, path, depth), path), path, before)
        if len(self.removed) == before and not promising:
            self._clean.add(value)
            self._screen.learn(value)
        return said

    def _object(self, value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
        redacted = dict[str, Any]()
        for name, inner in value.items():
            key = self._key(str(name), path, redacted)
            here = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            redacted[key] = self._value(inner, here, depth + 1, key_named(str(name), key))
        return redacted

    def _key(self, name: str, path: str, taken: Mapping[str, Any]) -> str:
        """Two keys that have become the same are told apart by a number: neither value may be lost."""
        key = unique = self._text(name, path)
        number = 1
        while unique in taken:
            number += 1
            unique = f"{key} {number}"
        return unique

    def _by_its_key(self, key: Key, was: int | str, said: Any, path: str, before: int) -> Any:
        """The value of `password` is one, whatever it looks like. The judgement leaves placeholders out, so that it stands for good."""
        if not (key.secret or key.number):
            return said
        kind = key.kind_of(_placeholders(self._detectors).sub("", str(said)))
        is_a_count = kind == "KEY" and isinstance(was, int)
        if is_a_count or not any(kind in detector.kinds for detector in self._detectors):
            return said
        del self.removed[before:]
        self.removed.append(Removal(kind, 0, len(str(was)), path))
        return placeholder(kind)

    def _json_inside(self, text: str, path: str, depth: int) -> str:
        """Escapes hide what is inside from the detectors. A text in which nothing is found stays as it was written."""
        if text[:1] not in ("{", "["):
            return text
        inside, before = _json(text), len(self.removed)
        if inside is None:
            return text
        try:
            redacted = self._value(inside, f"{path}#", depth + 1)
            return text if len(self.removed) == before else json.dumps(redacted, ensure_ascii=False)
        except (ValueError, RecursionError):
            return text

    def _text(self, text: str, path: str) -> str:
        if not self._screen.suspects(text):
            return text
        done = redact(text, self._detectors)
        self.removed += [msgspec.structs.replace(one, path=path) for one in done.removed]
        return done.text

    def _number(self, value: int, path: str, key: Key) -> Any:
        """A whole number that is somebody's, such as a card's; none so long that it is only a calculation."""
        if not 0 <= value < 10**19:
            return value
        before, said = len(self.removed), value
        if value >= 10**8 and not key.figure:
            text = self._text(str(value), path)
            said = value if text == str(value) else text
        return self._by_its_key(key, value, said, path, before)
