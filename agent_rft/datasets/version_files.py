"""Versions of data sets on disk: the rows' files and the card beside them. A version that is there is never written over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agent_rft.contracts.errors import Fault, FaultsFound, UserError
from agent_rft.contracts.rows import Row
from agent_rft.datasets.leaks import Placed
from agent_rft.datasets.rows import dataset_hash, version_of
from agent_rft.datasets.rows_io import read_placed, read_rows, write_lines, write_rows
from agent_rft.datasets.versions import DatasetCard, Origin, describe, placed_in

CARD = "dataset.json"


def write_version(folder: Path, splits: Mapping[str, Sequence[Row]], origin: Origin) -> DatasetCard:
    """train.jsonl, val.jsonl, and the card last: a folder with a card is whole. The same content again changes nothing."""
    if (folder / CARD).exists():
        there = read_card(folder)
        if there.hash != version_of(splits):
            raise UserError(f"{folder} holds version {there.hash} of '{there.origin.name}' already", "name another folder for the new one")
        return there
    files = {split: f"{split}.jsonl" for split in splits}
    if taken := [name for name in files.values() if (folder / name).exists()]:
        cure = f"name another folder; or `rft data card --train {folder / 'train.jsonl'}` gives what is there its card"
        raise UserError(f"{folder} holds {' and '.join(taken)} without a card", cure)
    for split, rows in splits.items():
        write_rows(folder / files[split], rows)
    placed = {split: placed_in(str(folder / files[split]), rows) for split, rows in splits.items()}
    return _write_card(folder, describe(placed, files, origin, _now()))


def card_files(splits: Mapping[str, Path], origin: Origin) -> DatasetCard:
    """A card for rows that are there, beside the first file. Was there another version's card, it is kept and is the parent."""
    folder = next(iter(splits.values())).parent
    if strangers := [str(path) for path in splits.values() if path.parent != folder]:
        raise UserError(f"{', '.join(strangers)} is not in {folder}", "a version's files are in one folder, the card beside them")
    placed: dict[str, list[Placed]] = {split: read_placed(path) for split, path in splits.items()}
    if (folder / CARD).exists():
        before = read_card(folder)
        if before.hash == version_of({split: [row for _, row in held] for split, held in placed.items()}):
            return before
        origin = msgspec.structs.replace(origin, parents=(*origin.parents, before.hash))
        (folder / CARD).replace(folder / f"dataset-{before.hash}.json")
    return _write_card(folder, describe(placed, {split: path.name for split, path in splits.items()}, origin, _now()))


def read_card(folder: Path) -> DatasetCard:
    path = folder / CARD
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatasetCard)
    except OSError as error:
        cure = f"`rft data card --train {folder / 'train.jsonl'} --val {folder / 'val.jsonl'}` makes one"
        raise UserError(f"no data set's card at {path}: {error.strerror}", cure) from None
    except msgspec.MsgspecError as error:
        raise UserError(f"{path} is not a data set's card: {error}", "remove it, and make it again with `rft data card`") from None


def read_version(folder: Path) -> tuple[DatasetCard, dict[str, list[Row]]]:
    """The card and the rows that it describes; rows that were changed since are refused."""
    card = read_card(folder)
    rows = {split: read_rows(folder / part.file) for split, part in card.splits.items()}
    changed = [
        Fault(str(folder / part.file), f"holds {dataset_hash(rows[split])}, its card says {part.hash}")
        for split, part in card.splits.items()
        if dataset_hash(rows[split]) != part.hash
    ]
    if changed:
        raise FaultsFound(f"{folder / CARD} describes other rows", changed, "put them back, or give them a card: `rft data card`")
    return card, rows


def _write_card(folder: Path, card: DatasetCard) -> DatasetCard:
    write_lines(folder / CARD, [msgspec.json.format(msgspec.json.encode(card)).decode()])
    return card


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
