"""Tries that an evaluation has made, kept on disk as each ends: what was run is not run again, whatever stopped the evaluation.

An agent has a folder, named by its id, with files that only grow, a line of JSON a record:

    tries.jsonl           a rollout under the hash of all that decides it: what the model is told and what it draws from
    grades-<hash>.jsonl   what one grader gave, under the hash of the rollout and of all that a grader sees of the row
    recorded-<hash>       which of these grades stand on job cards that the store has acknowledged

A line is with the system as soon as its try has ended, so that a killed process loses none, and on the disk within a second. What
infrastructure spoilt is not kept: it is run again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from agent_rft.contracts.agents import Agent
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.contracts.rollouts import Rollout
from agent_rft.rollouts.driver import Try

SYNC_SECONDS = 1.0
HASH_DIGITS = 32
T = TypeVar("T")


class _Line(msgspec.Struct, Generic[T]):
    key: str
    kept: T


class _Journal(Generic[T]):
    """A file that only grows, and what stands in it."""

    def __init__(self, path: Path, kind: type[_Line[T]]) -> None:
        self.held: dict[str, T] = {}
        self.unreadable = 0
        """Whole lines that are no record: the disk has lost them, and what stood there is made again."""
        _cut_off_half_a_line(path)
        for raw in path.read_bytes().splitlines() if path.exists() else ():
            try:
                line = msgspec.json.decode(raw, type=kind)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.unreadable += 1
                continue
            self.held[line.key] = line.kept
        self._file = path.open("ab", buffering=0)

    def add(self, key: str, kept: T) -> None:
        self.held[key] = kept
        left = memoryview(msgspec.json.encode(_Line(key, kept)) + b"\n")
        while left:
            left = left[self._file.write(left) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _cut_off_half_a_line(path: Path) -> None:
    """Whoever was killed while writing left half a line at most, at the end."""
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)


class KeptTries:
    """What `collect` keeps of one agent under one grader. Made by `opened`."""

    def __init__(self, folder: Path, weights: str, grader: GraderRef) -> None:
        self._place, self._weights = folder, weights
        self._tries = _Journal(folder / "tries.jsonl", _Line[Rollout])
        self._grades = _Journal(folder / f"grades-{grader.hash}.jsonl", _Line[Grade])
        self._mark = folder / f"recorded-{grader.hash}"
        self._recorded = set(self._mark.read_text().split()) if self._mark.exists() else set[str]()
        self._failed: OSError | None = None
        self._over = threading.Event()
        self._syncing = threading.Thread(target=self._sync_for_ever, name="kept-tries", daemon=True)
        self._syncing.start()

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, agent: Agent, grader: GraderRef, weights: str = "") -> Generator[KeptTries]:
        """Of an agent, below `folder`, for this process alone. `weights`: a hash of them, where their name alone does not tell them
        from others: a run's folder may be removed, and its name be given again."""
        place = folder / agent.id
        with ExitStack() as stack:
            try:
                place.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_alone_in(place))
                (place / "agent.json").write_bytes(msgspec.json.format(msgspec.json.encode(agent)) + b"\n")
                kept = cls(place, weights, grader)
            except OSError as error:
                raise _cannot_keep(place, error) from error
            stack.callback(kept.close)
            yield kept

    @property
    def unreadable(self) -> int:
        return self._tries.unreadable + self._grades.unreadable

    def rollout(self, attempt: Try) -> Rollout | None:
        return self._tries.held.get(self._key(attempt))

    def grade(self, attempt: Try) -> Grade | None:
        return self._grades.held.get(self._grade_key(attempt))

    def recorded(self, attempt: Try) -> bool:
        """Whether its job card, with this grade, has been acknowledged."""
        return self._grade_key(attempt) in self._recorded

    def ended(self, attempt: Try, rollout: Rollout) -> None:
        if rollout.ending is not None and rollout.ending.graded:
            self._add(self._tries, self._key(attempt), _without_token_ids(rollout))

    def graded(self, attempt: Try, grade: Grade) -> None:
        """A grader that gave no score is asked again another time."""
        if grade.reward is not None and (key := self._grade_key(attempt)) not in self._grades.held:
            self._add(self._grades, key, grade)

    def note_recorded(self, tries: Iterable[Try]) -> None:
        """The grades of these, where they have one, stand on cards that have been acknowledged. Others may be kept from a command that
        was killed before the store had their cards."""
        self._recorded |= {key for key in map(self._grade_key, tries) if key in self._grades.held}
        try:
            self._mark.write_text("\n".join(sorted(self._recorded)))
        except OSError as error:
            raise _cannot_keep(self._place, error) from error

    def close(self) -> None:
        self._over.set()
        self._syncing.join()
        if self._failed is None:
            self._sync()
        self._tries.close()
        self._grades.close()
        if self._failed:
            raise _cannot_keep(self._place, self._failed) from self._failed

    def _key(self, attempt: Try) -> str:
        """All that decides the rollout beside the agent. Its seed says which try at which row it is."""
        return _hash((self._weights, attempt.row.opening(), attempt.row.tools, attempt.seed))

    def _grade_key(self, attempt: Try) -> str:
        """A right answer that was mended is another grade of the same try. So is a try that was run again: the disk may lose a rollout
        and keep its grade."""
        rollout = self.rollout(attempt)
        return _hash((rollout.rollout_id if rollout else "", attempt.row.item()))

    def _add(self, journal: _Journal[T], key: str, kept: T) -> None:
        """After a failure nothing more: half a line may stand at the end, and the next would continue it."""
        if self._failed is None:
            try:
                return journal.add(key, kept)
            except OSError as error:
                self._failed = error
        raise _cannot_keep(self._place, self._failed) from self._failed

    def _sync_for_ever(self) -> None:
        """In a thread: rollouts go on while a disk takes its time. What it says against it is said where the next try is kept."""
        while self._failed is None and not self._over.wait(SYNC_SECONDS):
            self._sync()

    def _sync(self) -> None:
        try:
            self._tries.sync()
            self._grades.sync()
        except OSError as error:
            self._failed = error


def _cannot_keep(place: Path, error: OSError) -> UserError:
    what = f"tries cannot be kept in {place}: {error.strerror or error}"
    return UserError(what, "make room there, or name another folder with run.folder=FOLDER; what was kept stays")


@contextmanager
def _alone_in(place: Path) -> Generator[None]:
    """By a lock that the system takes back from a process that is killed, and that its children do not inherit."""
    with (place / "lock").open("a+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            what = f"process {lock.read().strip() or '?'} is evaluating this agent just now: {place}"
            raise UserError(what, "wait until it is done: what it has run is then here, too") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _hash(told: object) -> str:
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()[:HASH_DIGITS]


def _without_token_ids(rollout: Rollout) -> Rollout:
    """Training alone reads them, and they are most of a rollout."""
    turns = [msgspec.structs.replace(turn, context_ids=[], sampled_ids=[], logprobs=[]) for turn in rollout.turns]
    return msgspec.structs.replace(rollout, turns=turns)
