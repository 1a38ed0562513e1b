"""What a detector is: some kinds of things, and a function that finds where they stand in a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec


class Found(NamedTuple):
    kind: str
    start: int
    end: int


class Detector(msgspec.Struct, frozen=True):
    kinds: tuple[str, ...]
    """What it finds; each is written [KIND] where it was."""
    find: Callable[[str], Iterable[Found]]
    """Takes time linear in the text, whatever the text."""
    sign: str = ""
    """A pattern of RE2's that is in every text in which this finds anything. The signs of all detectors are looked for in one
    reading of a text, and most texts need no other. Without one it is asked each time."""
