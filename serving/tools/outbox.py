"""`publish`: puts a note into a folder from which others take it. The example of a tool that a person has to allow.

A note never replaces one that is there, and stands there whole or not at all. No part of its path is followed through a link, so what
somebody puts into the folder cannot lead a note out of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.messages import ToolSpec

LONGEST_TEXT, LONGEST_PATH = 100_000, 300
SPEC = ToolSpec(
    "publish",
    "Publish a note under a name. A person has to allow it first, and what is published cannot be taken back.",
    {
        "type": "object",
        "required": ["name", "text"],
        "properties": {
            "name": {"type": "string", "description": "Such as results.md"},
            "text": {"type": "string", "description": "The note, whole."},
        },
    },
)
Said = tuple[str, str | None]


class OutboxTools:
    specs = (SPEC,)
    version = hashlib.sha256(repr((SPEC, LONGEST_TEXT)).encode()).hexdigest()[:16]
    changes = frozenset({SPEC.name})

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"tools.outbox: there is no folder {folder}", "make it, or name another")
        self._folder = folder

    def check(self, name: str, arguments: dict[str, Any]) -> Said | None:
        """What is wrong with a call, before a person is asked to allow it."""
        path, text = arguments.get("name"), arguments.get("text")
        if not isinstance(path, str) or not isinstance(text, str) or not text.strip():
            return "Error: name and text are required, and have to be words", "model_error"
        if extra := arguments.keys() - {"name", "text"}:
            return f"Error: publish takes name and text only, and no {', '.join(sorted(extra))}", "model_error"
        if len(text) > LONGEST_TEXT:
            return f"Error: a note has at most {LONGEST_TEXT} characters; this one has {len(text)}", "model_error"
        if len(path.encode("utf-8", "replace")) > LONGEST_PATH or not path.isprintable():
            return f"Error: a name has at most {LONGEST_PATH} printable characters", "model_error"
        if "\\" in path or any(part in ("", ".", "..") or part.startswith(".") for part in path.split("/")):
            return f"Error: {path!r} does not name a note in the outbox: no leading slash, no dots before a name, no ..", "policy_denied"
        return None

    def call(self, name: str, arguments: dict[str, Any]) -> Said:
        if wrong := self.check(name, arguments):
            return wrong
        path, body = arguments["name"], arguments["text"].encode("utf-8", "replace")
        try:
            with _folder_of(self._folder, path) as folder:
                _put(folder, path.rpartition("/")[2], body)
        except FileExistsError:
            return f"Error: there is a note {path} already; choose another name", "model_error"
        except (FileNotFoundError, NotADirectoryError):
            return f"Error: the outbox has no folder for {path}; leave the folder out", "model_error"
        return f"Published {path}, {len(body)} bytes.", None


@contextlib.contextmanager
def _folder_of(root: Path, path: str) -> Generator[int]:
    """The folder in which the path ends, entered step by step: a link on the way is no folder."""
    with contextlib.ExitStack() as opened:

        def enter(part: str | Path, inside: int | None = None) -> int:
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if inside is not None else 0), dir_fd=inside)
            opened.callback(os.close, folder)
            return folder

        here = enter(root)
        for part in path.split("/")[:-1]:
            here = enter(part, here)
        yield here


def _put(folder: int, name: str, body: bytes) -> None:
    """Under a name of its own first; then it gets the name that was asked for, if nothing has it."""
    draft = f".{secrets.token_hex(8)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(draft, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
    os.fsync(folder)
