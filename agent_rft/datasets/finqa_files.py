"""FinQA's files made into a corpus and a data set on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.datasets.finqa import Adapted, Entry, adapt, read_finqa
from agent_rft.datasets.rows_io import write_lines
from agent_rft.datasets.version_files import write_version
from agent_rft.datasets.versions import DatasetCard, Origin

YES_NO = "yes_no_qa"


def write_finqa(paths: Mapping[str, Path], folder: Path, origin: Origin, keep_yes_no: bool = False) -> DatasetCard:
    """`paths`: FinQA's file of each split. Questions answered yes or no are left out unless kept: the numeric grader reads none.

    Stopped half-way it goes on when it is asked again.
    """
    adapted = adapt(_entries(paths))
    rows = {split: [row for row in held if keep_yes_no or row.task_type != YES_NO] for split, held in adapted.rows.items()}
    left_out = sum(map(len, adapted.rows.values())) - sum(map(len, rows.values()))
    card = write_version(folder, rows, _with_left_out(origin, left_out))
    _write_documents(folder, adapted)
    return card


def _entries(paths: Mapping[str, Path]) -> dict[str, list[Entry]]:
    """Of every file, or the faults of all of them."""
    entries: dict[str, list[Entry]] = {}
    faults: list[Fault] = []
    for split, path in paths.items():
        try:
            entries[split] = read_finqa(path.read_text(encoding="utf-8"), str(path))
        except FaultsFound as found:
            faults += found.faults
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}", "name FinQA's published files: train.json, dev.json") from None
    faults = faults or _shared_ids(entries)
    if faults:
        raise FaultsFound("FinQA's files cannot be used", faults)
    return entries


def _shared_ids(entries: Mapping[str, list[Entry]]) -> list[Fault]:
    first: dict[str, str] = {}
    found: list[Fault] = []
    for split, held in entries.items():
        for entry in held:
            if entry.row.id in first:
                found.append(Fault(split, f"id '{entry.row.id}' is already taken in {first[entry.row.id]}"))
            first.setdefault(entry.row.id, split)
    return found


def _with_left_out(origin: Origin, yes_no: int) -> Origin:
    left_out = {"answered yes or no": yes_no} if yes_no else {}
    return msgspec.structs.replace(origin, left_out=left_out)


def _write_documents(folder: Path, adapted: Adapted) -> None:
    for path, document in adapted.documents.items():
        write_lines(folder / path, [document.rstrip("\n")])
