"""Whose fault it is. Three kinds, never mixed: the user's, the infrastructure's, ours (any other exception)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import msgspec


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong with what the user gave us, said so that it can be mended."""

    where: str
    """File and line, setting key, flag: the place to look."""
    what: str
    """What is wrong there, with the value found."""
    cure: str = ""
    """What would be right."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.cure})" if self.cure else "")


class UserError(Exception):
    """Something the user can mend. The command line prints it without a stack trace and exits with 2."""

    def __init__(self, what: str, cure: str = "", exit_code: int = 2) -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure
        self.exit_code = exit_code

    def __str__(self) -> str:
        return self.what + (f"\n  cure: {self.cure}" if self.cure else "")


class FaultsFound(UserError):
    """Several faults found in one pass: all are shown at once."""

    def __init__(self, title: str, faults: Sequence[Fault], cure: str = "", exit_code: int = 1) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        super().__init__(f"{title}\n{lines}", cure, exit_code)


class InfraError(Exception):
    """Ours, not the model's: a tool, grader, model server or store that did not do its work."""

    def __init__(self, part: str, what: str) -> None:
        super().__init__(f"{part}: {what}")
        self.part = part
        self.what = what


class Halted(UserError):
    """A guard stopped the run on purpose. Exit code 3, so that a script can tell it from a mistake."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what, cure, exit_code=3)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The cure for a misspelt name: the nearest known one, else the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"one of: {', '.join(names)}"
