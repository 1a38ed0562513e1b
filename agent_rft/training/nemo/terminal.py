"""Keeps NeMo RL's many lines out of the terminal: they go to a file of the run, ours stay. And has the last one said."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class _Sorted(io.TextIOBase):
    """Writes of the main thread go on to the terminal; those of every other thread into the file."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file

    @property
    def _target(self) -> TextIO:
        return self._terminal if threading.current_thread() is threading.main_thread() else self._file

    def write(self, text: str) -> int:
        return self._target.write(text)

    def flush(self) -> None:
        self._target.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._terminal.encoding


@contextmanager
def other_threads_into(path: Path) -> Generator[None]:
    before = sys.stdout, sys.stderr
    with path.open("a", encoding="utf-8", buffering=1) as file:
        sys.stdout, sys.stderr = _Sorted(sys.stdout, file), _Sorted(sys.stderr, file)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


TELLER = "import sys\nif not sys.stdin.buffer.read(1): print(sys.argv[1], file=sys.stderr)"


@contextmanager
def last_words(words: str) -> Generator[None]:
    """Said on standard error where this process ends inside the block with no chance to speak, as at kill -9: by another process,
    whose pipe then breaks. In a session of its own, so that Ctrl-C is not its affair."""
    command = [sys.executable, "-I", "-S", "-c", TELLER, words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as teller:
        try:
            yield
        finally:
            teller.communicate(b".")
