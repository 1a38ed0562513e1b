"""Whose fault it is. Three kinds, never mixed: the user's, the infrastructure's, ours (any other exception)."""

from __future__ import annotations

import datetime as dt
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

SHOWN = 12
"""Names that are listed where none is near."""


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


class _Travels(Exception):
    """Goes from process to process as it is. Exception's own way is to make it anew from its message, which takes more here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unfilled, (type(self), self.args), vars(self)


def _unfilled(kind: type[_Travels], arguments: tuple[Any, ...]) -> _Travels:
    return kind.__new__(kind, *arguments)


class UserError(_Travels):
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


class InfraError(_Travels):
    """Ours, not the model's: a tool, grader, model server or store that did not do its work."""

    def __init__(self, part: str, what: str, cure: str = "") -> None:
        super().__init__(f"{part}: {what}")
        self.part = part
        self.what = what
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.part}: {self.what}" + (f"\n  cure: {self.cure}" if self.cure else "")


class NeedsApproval(_Travels):
    """A tool call waits until a person has allowed it. Nobody's fault: it is sent again once they have decided."""

    def __init__(self, approval_id: int, expires_at: dt.datetime) -> None:
        super().__init__(approval_id, expires_at)
        self.approval_id = approval_id
        self.expires_at = expires_at
        """From when on it is refused, if nobody has decided."""

    def __str__(self) -> str:
        return f"approval {self.approval_id} is waited for until {self.expires_at:%Y-%m-%d %H:%M} UTC"


class Halted(UserError):
    """A guard stopped the run on purpose. Exit code 3, so that a script can tell it from a mistake."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what, cure, exit_code=3)


class Diverged(Halted):
    """The weights are no longer worth keeping."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The cure for a misspelt name: the nearest known one, else the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"one of: {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
