"""Checkpoints that are whole or not there: written beside, synced, then renamed into place; a manifest of hashes goes last.

checkpoints/step-000040/   weights, tokenizer, optimizer.pt, state.json, manifest.json
checkpoints/.step-000044/  one being written, or left behind by a kill: never read, cleared by the next one
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import Versions
from agent_rft.evaluation.next_step import found_by

MANIFEST = "manifest.json"
PREFIX = "step-"
CHUNK = 1 << 20


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    step: int
    files: dict[str, str]
    """sha256 of each file, by its path within the checkpoint."""
    versions: Versions | None = None
    """What the run stands on; its checkpoint is the base."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int, versions: Versions | None = None) -> None:
        self._folder = folder
        self._versions = versions
        self._keep = max(1, keep)

    def steps(self) -> list[int]:
        """Of the checkpoints in place, oldest first."""
        names = (path.name for path in self._folder.glob(f"{PREFIX}*"))
        return sorted(int(name.removeprefix(PREFIX)) for name in names if name.removeprefix(PREFIX).isdigit())

    def folder_of(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step:06d}"

    def newest(self) -> Path | None:
        steps = self.steps()
        return self.folder_of(steps[-1]) if steps else None

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        """`fill` writes the files into a folder of its own; they count once all of them are on disk."""
        place = self.folder_of(step)
        draft = self._folder / f".{place.name}"
        self._clear_drafts()
        try:
            draft.mkdir(parents=True)
            fill(draft)
            files = {path.relative_to(draft).as_posix(): _sha256(path) for path in _files(draft)}
            (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(Manifest(step, files, self._versions))))
            _sync(draft)
            if place.exists():
                self._discard(place)
            draft.rename(place)
            _sync_folder(self._folder)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            goes_on = f"make room on the disk, then `make resume RUN={found_by(str(self._folder.parent))}`"
            raise UserError(f"checkpoint {place} could not be written: {error}", f"{goes_on}; {self._last_whole(step)}") from error
        for old in self.steps()[: -self._keep]:
            self._discard(self.folder_of(old))
        return place

    def checked(self, folder: Path) -> Path:
        """The folder, if every file in it is as it was written; else what is broken and where to go on from."""
        manifest_path = folder / MANIFEST
        try:
            manifest = msgspec.json.decode(manifest_path.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise self._cut_short(folder, manifest_path) from error
        for name, digest in manifest.files.items():
            if not (folder / name).is_file() or _sha256(folder / name) != digest:
                raise self._cut_short(folder, folder / name)
        return folder

    def _cut_short(self, folder: Path, file: Path) -> UserError:
        step = folder.name.removeprefix(PREFIX)
        what = "is missing" if not file.exists() else "is not what was written (cut short or changed)"
        return UserError(
            f"checkpoint {folder} is broken: {file} {what}",
            f"remove {folder} and resume; {self._last_whole(int(step) if step.isdigit() else 0)}",
        )

    def _last_whole(self, before: int) -> str:
        """Said in cures: what is still there."""
        for step in reversed([step for step in self.steps() if step < before]):
            try:
                return f"the checkpoint before it, {self.checked(self.folder_of(step))}, is whole"
            except UserError:
                continue
        return "there is no whole checkpoint before it: resuming starts from the beginning"

    def _discard(self, place: Path) -> None:
        """Out of sight at once, then off the disk: a kill in between leaves no half checkpoint in place."""
        gone = place.with_name(f".{place.name}-old")
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _clear_drafts(self) -> None:
        for draft in self._folder.glob(f".{PREFIX}*"):
            shutil.rmtree(draft, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        _sync_folder(inner)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
