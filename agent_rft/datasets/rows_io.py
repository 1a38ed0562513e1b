"""JSONL files of rows, read and written; and the running example's data folder. A file is there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rows import Row
from agent_rft.datasets.leaks import Placed
from agent_rft.datasets.research import WORLD_SEED, make_rows, make_world
from agent_rft.datasets.rows import encode_openai_row, encode_row
from agent_rft.datasets.validate import Report, parse_lines, validate


def read_rows(path: Path) -> list[Row]:
    """Every row, or every fault of the file at once."""
    return [row for _, row in read_placed(path)]


def read_placed(path: Path) -> list[Placed]:
    """Every row with its file and line, or every fault of the file at once."""
    lines = parse_lines(str(path), _content(path))
    if faults := [fault for line in lines for fault in line.faults]:
        raise FaultsFound(f"{path} cannot be used", faults, "`make validate` checks every file at once")
    return [(line.where, line.row) for line in lines if line.row]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_lines(path, map(encode_row, rows))


def write_openai_rows(path: Path, rows: Sequence[Row]) -> None:
    write_lines(path, map(encode_openai_row, rows))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
        half.replace(path)
    except OSError as error:
        with suppress(OSError):
            half.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}", "make room, or name another place") from None


def validate_files(
    paths: Mapping[str, Path | Sequence[Path]], known_tools: Collection[str] | None = None, grader: Grader | None = None
) -> Report:
    """`paths`: the files of each split, named "train" and "val"."""
    files = {split: [given] if isinstance(given, Path) else given for split, given in paths.items()}
    return validate({split: [(str(p), _content(p)) for p in group] for split, group in files.items()}, known_tools, grader)


def write_research(folder: Path, seed: int = WORLD_SEED, keep_rows: bool = False) -> None:
    """filings/, train.jsonl and val.jsonl in `folder`; killed half-way it leaves what was there before.

    `keep_rows` leaves row files that are there alone: somebody may have edited them.
    """
    filings = make_world(seed)
    train, val = make_rows(filings, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for left_by_a_kill in folder.glob(".making-*"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as making:
        for filing in filings:
            path = Path(making) / filing.path
            path.parent.mkdir(exist_ok=True)
            path.write_text(filing.html(), encoding="utf-8")
        corpus, old = folder / "filings", Path(making) / "old"
        if corpus.exists():
            corpus.rename(old)
        (Path(making) / "filings").rename(corpus)
        shutil.rmtree(old, ignore_errors=True)
    for name, rows in (("train.jsonl", train), ("val.jsonl", val)):
        if not (keep_rows and (folder / name).exists()):
            write_rows(folder / name, rows)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "`make data` makes the running example's data") from error
