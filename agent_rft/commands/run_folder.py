"""A run's folder: what it keeps survives a kill whole or is not there, and nothing of another world is mixed in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from agent_rft.compose import changed, load, save
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import Versions
from agent_rft.evaluation.next_step import found_by
from agent_rft.settings import Settings

T = TypeVar("T")
SETTINGS, ON_TRIAL, VERSIONS = "settings.yaml", "settings-on-trial.yaml", "versions.json"
SAME_SECOND = 100
"""Runs without a name that may begin in one second."""
MAY_CHANGE = ("code", "seed")
"""What a run may go on with although it is another: code that was mended, and the seed, which the settings hold."""


def _made(folder: Path, names: Sequence[str]) -> Path | None:
    """By the first of the names that is free."""
    for name in names:
        try:
            (folder / name).mkdir(parents=True)
            return folder / name
        except FileExistsError:
            continue
        except OSError as error:
            cure = "name another with run.folder=FOLDER"
            raise UserError(f"the run's folder {folder / name} cannot be made: {error.strerror}", cure) from None
    return None


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name

    @classmethod
    def named(cls, run: str, runs: Path) -> RunFolder:
        """By the name of its folder among `runs`, or by where it lies."""
        return cls(Path(run) if "/" in run else runs / run)

    @property
    def found_by(self) -> str:
        """By a command that the user is told to type."""
        return found_by(str(self.path))

    @classmethod
    def new(cls, settings: Settings, prefix: str = "") -> RunFolder:
        """A folder of the run's own, with the settings in it; its name is the run's id."""
        unnamed = f"{prefix}{settings.recipe}-{datetime.now(UTC):%Y%m%d-%H%M%S}-s{settings.seed}"
        names = [settings.run.id] if settings.run.id else [unnamed, *(f"{unnamed}-{again}" for again in range(2, SAME_SECOND))]
        path = _made(Path(settings.run.folder), names)
        if path is None:
            path = Path(settings.run.folder) / names[0]
            cure = f"go on with it: `make resume RUN={cls(path).found_by}`; or name another: run.id=NAME"
            raise UserError(f"there is a run {path.name} in {path.parent} already", cure)
        save(settings, path / SETTINGS)
        return cls(path)

    @classmethod
    @contextmanager
    def begun(cls, settings: Settings, prefix: str = "") -> Generator[RunFolder]:
        """A new one; gone again where the run was refused before anything else was in it, so that its name is free."""
        folder = cls.new(settings, prefix)
        try:
            yield folder
        finally:
            if folder.untouched:
                shutil.rmtree(folder.path)

    @property
    def untouched(self) -> bool:
        """Nothing of the run is in it, but how it was to be."""
        return [held.name for held in self.path.iterdir()] == [SETTINGS]

    @classmethod
    def found(cls, run_id: str) -> RunFolder | None:
        """Where runs usually lie; a store may hold cards of runs whose folder is elsewhere, or is no more."""
        folder = cls(Path("runs") / run_id)
        return folder if folder.settings_file.exists() else None

    def settings(self, overrides: list[str]) -> Settings:
        """As the run was started, with what is to be other from now on: on trial, until `hold_to` has found nothing against it."""
        settings = load(self.path / SETTINGS)
        (self.path / ON_TRIAL).unlink(missing_ok=True)
        if overrides:
            settings = changed(settings, overrides)
            save(settings, self.path / ON_TRIAL)
        return settings

    @property
    def settings_file(self) -> Path:
        on_trial = self.path / ON_TRIAL
        return on_trial if on_trial.exists() else self.path / SETTINGS

    def _adopt(self) -> None:
        """What was on trial holds from now on; what held before stays beside it."""
        if (self.path / ON_TRIAL).exists():
            number = len(list(self.path.glob("settings-before-*"))) + 1
            (self.path / f"settings-before-{number}.yaml").hardlink_to(self.path / SETTINGS)
            (self.path / ON_TRIAL).replace(self.path / SETTINGS)

    def keep(self, name: str, content: bytes) -> None:
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        draft = place.with_name(f".{place.name}")
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)

    def evaluations(self, of: str) -> dict[int, Path]:
        """By round, the tries of `base-*` or `tuned-*`."""
        return {int(file.stem.rpartition("-")[2]): file for file in self.path.glob(f"evaluation/{of}.msgpack")}

    def kept(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        """What was kept under the name; None where nothing was."""
        place = self.path / name
        if not place.exists():
            return None
        try:
            return decode(place.read_bytes())
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise UserError(f"{place} cannot be read: {error}", "remove it and resume: it is made again") from None

    def hold_to(self, versions: Versions) -> None:
        """Refuse to go on with other data, tools, grader or base than the run began with: its figures would compare nothing."""
        began = self.kept(VERSIONS, lambda content: msgspec.json.decode(content, type=Versions))
        if began is None:
            self.keep(VERSIONS, msgspec.json.format(msgspec.json.encode(versions)))
            self._adopt()
            return
        names = [name for name in Versions.__struct_fields__ if name not in MAY_CHANGE]
        if other := [name for name in names if getattr(began, name) != getattr(versions, name)]:
            told = "; ".join(f"{name} was {getattr(began, name)}, is {getattr(versions, name)}" for name in other)
            raise UserError(f"run {self.run_id} began in another world: {told}", "put that back, or start a new run with `make train`")
        self._adopt()
