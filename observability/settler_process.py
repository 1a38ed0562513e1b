"""Settles cards in a process of its own, so that redaction and the store's transactions take nothing from a training's interpreter.

Plan, batches and answers go through its pipes, each as its length and its pickle: both ends are this code, on one machine. Cards stay
with who recorded them until the answer says that they are safe. A process that ended, for whatever reason, is a store that is away: the
batch is given to the next one, and the store takes a card once.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import structlog

from observability.ingest import STORE_AWAY, Settled, Settler, is_away, reason
from observability.records import RecordedCard
from observability.store import Store, StoreAway, open_store

NICE = 5
"""Behind the training, where both want the same core."""
LENGTH = 8
"""Bytes before each pickle that say how long it is."""
PATIENCE = 2.0
"""Seconds that it has, once nothing more comes, to end by itself."""


class SettlerProcess:
    """Started with the first batch, and again whenever it has ended."""

    def __init__(
        self, store: Store, redacting: bool, patterns: Mapping[str, str] | None, tenant_patterns: Mapping[str, Mapping[str, str]] | None
    ) -> None:
        self._plan = (store.address, redacting, patterns, tenant_patterns)
        self._here = partial(Settler, store, redacting, patterns, tenant_patterns)
        self._child: subprocess.Popen[bytes] | None = None

    def settle(self, batch: Sequence[RecordedCard], rescue_file: Path) -> Settled:
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            body = pickle.dumps((batch, rescue_file), pickle.HIGHEST_PROTOCOL)
        except Exception:  # a row may hold anything: what cannot travel is settled, or refused, here
            return self._here().settle(batch, rescue_file)
        try:
            _send(child.stdin, body)
            answer = pickle.loads(_received(child.stdout))
        except (OSError, EOFError) as error:
            self.close()
            raise OSError(f"the process that writes the cards ended ({child.returncode})") from error
        if isinstance(answer, str):
            raise OSError(answer)
        return answer or self._here().settle(batch, rescue_file)

    def close(self) -> None:
        """What it was given and has not answered counts as not settled."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        with suppress(OSError):  # it is gone, and with it what was on the way to it
            child.stdin.close()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            command = [sys.executable, "-m", "observability.settler_process"]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )  # out of Ctrl-C's way
            assert self._child.stdin is not None
            _send(self._child.stdin, pickle.dumps(self._plan))
        return self._child


def _send(pipe: IO[bytes], body: bytes) -> None:
    pipe.write(len(body).to_bytes(LENGTH))
    pipe.write(body)
    pipe.flush()


def _received(pipe: IO[bytes]) -> bytes:
    """Raises EOFError where the other end is gone, or went in the middle of a word."""
    length = int.from_bytes(pipe.read(LENGTH))
    body = pipe.read(length)
    if not length or len(body) < length:
        raise EOFError
    return body


# --- the process --------------------------------------------------------------------------------------------------------


class Answering:
    """What it says to each batch: what became of it; why it has to be tried again; or None where the batch cannot be read here."""

    def __init__(self, address: str, *recipe: Any) -> None:
        self._address, self._recipe = address, recipe
        self._settler: Settler | None = None

    def __call__(self, body: bytes) -> Settled | str | None:
        try:
            batch, rescue_file = pickle.loads(body)
        except Exception:
            return None
        try:
            self._settler = self._settler or Settler(open_store(self._address), *self._recipe)
            return self._settler.settle(batch, rescue_file)
        except StoreAway as error:
            return error.what
        except STORE_AWAY as error:
            if not is_away(error):
                raise
            return reason(error)


def main() -> None:
    """Until nothing more comes, or nobody waits for an answer any more."""
    os.nice(NICE)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the answers have the other pipe
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    answering = Answering(*pickle.loads(_received(given)))
    with suppress(EOFError, BrokenPipeError):
        while True:
            _send(answers, pickle.dumps(answering(_received(given)), pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    main()
