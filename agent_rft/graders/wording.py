"""What a grader's file says in words: what it looks for, and what its judges are told. A policy that has learnt to say just that is paid
for the words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from agent_rft.graders.spec import GraderSpec

TEMPLATE = re.compile(r"\{\{.*?\}\}", re.DOTALL)
LOOKED_FOR, TOLD = "reference", "content"
"""Keys whose values are words: of a check, and of a message to a judge."""
LEAST_TOLD = 5
"""Words; a judge is told shorter things ("Answer:") that an answer may well say."""


def texts_of(spec: GraderSpec) -> tuple[str, ...]:
    """In their order, each once, without what the templates put in: the reference answer is no word of the grader's."""
    return tuple(dict.fromkeys(_texts(msgspec.to_builtins(spec))))


def _texts(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, held in cast(dict[str, Any], value).items():
            yield from _texts(held, name)
    elif isinstance(value, list | tuple):
        for held in cast(list[Any], value):
            yield from _texts(held, key)
    elif isinstance(value, str) and key in (LOOKED_FOR, TOLD):
        least = LEAST_TOLD if key == TOLD else 1
        yield from (piece.strip() for piece in TEMPLATE.split(value) if len(re.findall(r"\w+", piece)) >= least)
