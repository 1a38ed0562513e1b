"""Judges' replies kept: the same question is paid for once, and its grade is the same each time."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator
from pathlib import Path

from agent_rft.graders.deadline import longest_wait


class Replies:
    """The latest `max_replies` in memory; with a folder also there, one file each, shared by processes and by runs.

    The folder is held to the same number when it is opened. A file that cannot be read or written is a question asked again.
    """

    def __init__(self, max_replies: int = 100_000, folder: Path | None = None) -> None:
        self._recipe = (max_replies, folder)
        self._max_replies, self._folder = max_replies, folder
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._asked: dict[str, threading.Event] = {}
        """What somebody of this process is asking now, each with the event of its end."""
        self._lock = threading.Lock()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            _forget_oldest(folder, max_replies)

    def __reduce__(self) -> tuple[type[Replies], tuple[int, Path | None]]:
        """Sent to another process it begins empty there, and reads the same folder."""
        return Replies, self._recipe

    def get(self, key: str) -> str | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        reply = self._read(key)
        if reply is not None:
            self._remember(key, reply)
        return reply

    def put(self, key: str, reply: str) -> None:
        self._remember(key, reply)
        if self._folder:
            with contextlib.suppress(OSError):
                _write(self._folder / key, reply)

    @contextlib.contextmanager
    def asking(self, key: str) -> Generator[None]:
        """The first goes ahead; whoever has the same question meanwhile waits, and finds the reply kept. Where the first kept
        none they ask side by side: its failure is not theirs, and in a queue each would wait for the retries of all before."""
        done = threading.Event()
        with self._lock:
            ahead = self._asked.setdefault(key, done)
        if ahead is not done:
            ahead.wait(longest_wait())
            yield
            return
        try:
            yield
        finally:
            with self._lock:
                del self._asked[key]
            done.set()

    def _remember(self, key: str, reply: str) -> None:
        with self._lock:
            self._kept[key] = reply
            self._kept.move_to_end(key)
            while len(self._kept) > self._max_replies:
                self._kept.popitem(last=False)

    def _read(self, key: str) -> str | None:
        if self._folder:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                return (self._folder / key).read_text(encoding="utf-8")
        return None


def _write(path: Path, text: str) -> None:
    """Whole or not at all: another process may be reading."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "replace"))
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        raise


def _forget_oldest(folder: Path, keep: int) -> None:
    with contextlib.suppress(OSError):
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[keep:]:
            path.unlink(missing_ok=True)
