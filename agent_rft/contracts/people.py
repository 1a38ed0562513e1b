"""People: when two names are one person's, and what one found of a rollout."""

from __future__ import annotations

import msgspec

from agent_rft.contracts.letters import plain

AT_THE_MACHINE = "@cli"
"""Ends the name of a person who works on the store's own machine, and no user's."""


class PersonsLabel(msgspec.Struct, frozen=True):
    rollout_id: str
    who: str
    """As they write themselves."""
    score: float
    """0 to 1."""


def person(name: str) -> str:
    """The one spelling under which names are compared: capitals, spaces and letters that look alike make nobody a second person."""
    return " ".join(plain(name).split())


def same_person(one: str, other: str) -> bool:
    return person(one) == person(other)
