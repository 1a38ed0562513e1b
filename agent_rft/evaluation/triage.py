"""Whose fault it is that a try was scored as it was, and what follows from that.

Stored as a review whose note begins with the fault: the reviewer's words, the ledger and every page know reviews already.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Literal, TypeAlias

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, did_you_mean
from agent_rft.contracts.jobcards import DEFAULT_STORE

Blamed: TypeAlias = Literal["model", "grader", "dataset", "tool"]
BLAMED: dict[Blamed, str] = {
    "model": "it did the wrong thing, and the grade is fair",
    "grader": "the grade is wrong",
    "dataset": "the row is wrong: its reference, its question or its evidence",
    "tool": "a tool misled it",
}
BY_NAME: dict[str, Blamed] = {one: one for one in BLAMED}
MARK = "triage: "
MUST_SAY: tuple[Blamed, ...] = ("dataset", "tool")
"""The words are what is wanted of whoever mends it."""


def read_blamed(typed: str, words: str) -> Blamed:
    """As a person typed it; every fault of it at once."""
    blamed = BY_NAME.get(typed)
    faults = [] if blamed else [Fault("fault", f"{typed[:40]!r} is none", did_you_mean(typed[:40], BLAMED))]
    if typed in MUST_SAY and not words.strip():
        faults.append(Fault("note", f"nothing says what is wrong with the {typed}", "write what should be changed: it becomes a request"))
    if faults or blamed is None:
        raise FaultsFound("the triage cannot be taken:", faults, exit_code=2)
    return blamed


def verdict_on(blamed: Blamed, right: bool) -> Literal["accept", "reject"]:
    """Of the answer. Where the grade or the row is wrong, the truth is the other way round; `right` is what the grade says."""
    mistaken = blamed in ("grader", "dataset")
    return "accept" if mistaken and not right else "reject"


def note_of(blamed: Blamed, words: str) -> str:
    return f"{MARK}{blamed}\n{words.strip()}".strip()


def blamed_in(note: str) -> Blamed | None:
    """None of a review that is no triage."""
    first = note.split("\n", 1)[0].removeprefix(MARK).strip() if note.startswith(MARK) else ""
    return BY_NAME.get(first)


class Where(msgspec.Struct, frozen=True):
    """The store and the tenant that a command is about. It names only what it would not take by itself."""

    store: str = DEFAULT_STORE
    """Its address."""
    tenant: str = "default"

    @property
    def options(self) -> str:
        """Of commands about one tenant's cards; begins with a space where there is one."""
        named = {"--store": (self.store, DEFAULT.store), "--tenant": (self.tenant, DEFAULT.tenant)}
        return "".join(f" {option} {shlex.quote(value)}" for option, (value, known) in named.items() if value != known)

    @property
    def setting(self) -> str:
        """Of commands that take settings; graders are of no tenant."""
        return shlex.quote(f"store.url={self.store}") if self.store != DEFAULT.store else ""


DEFAULT = Where()


class Mending(msgspec.Struct, frozen=True, kw_only=True):
    """How a grader that was found wrong comes to be right, and the run to be seen through it."""

    case: str
    """The try as a line of a file of cases, which the mended grader has to get right."""
    commands: tuple[str, ...]


def mending(run_id: str, grader: str, version: str, case: str, where: Where = DEFAULT) -> Mending:
    """A version that counts up is named next."""
    fixed, run = shlex.quote(f"{grader}@{int(version) + 1 if version.isdecimal() else 'NEXT'}"), shlex.quote(run_id)
    by, words = (f" --set {where.setting}", f" {where.setting}") if where.setting else ("", "")
    return Mending(
        case=case,
        commands=(
            f"rft grader register FIXED.json --as {fixed} --by YOU{by}",
            f"rft grader check {fixed} --cases CASES.jsonl --run {run}{by}",
            f"rft grader approve {fixed} --by ANOTHER{by}",
            f"rft grader activate {fixed} --by ANOTHER{by}",
            f"rft regrade --run {run} --grader {fixed}{words}",
            f"rft inspect {run}{where.options}",
        ),
    )


def case_of(item: dict[str, Any], answer: str, *, right: bool, words: str) -> str:
    case = {"item": item, "sample": {"output_text": answer}, "reward": int(right), "why": words.strip() or "found in triage"}
    return json.dumps(case, ensure_ascii=False, default=str)
