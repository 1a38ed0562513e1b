"""Versions: a card beside the files that says what they are, and nothing written over."""

from __future__ import annotations

import json

import pytest

from agent_rft.contracts.errors import FaultsFound, UserError
from agent_rft.contracts.rows import Row
from agent_rft.datasets.rows import dataset_hash, version_of
from agent_rft.datasets.rows_io import write_rows
from agent_rft.datasets.validate import Count
from agent_rft.datasets.version_files import CARD, card_files, read_card, read_version, write_version
from agent_rft.datasets.versions import Origin, SplitPart

ORIGIN = Origin(name="towns", source="made up", made_by="rft data split", parents=("0123456789abcdef",), left_out={"asked twice": 2})


def row(number: int, prompt: str, difficulty: str = "easy") -> Row:
    return Row(f"row-{number}", prompt, "1", metadata={"task_type": "qa", "difficulty": difficulty})


TRAIN = [row(1, "How many people live in Bergen?"), row(2, "How many bridges has Porto?", "hard"), row(3, "Who governs Ghent?")]
VAL = [row(4, "how many people live in bergen"), row(5, "Porto has how many bridges?", "hard")]


def test_the_card_tells_what_is_in_the_version_and_is_read_back(tmp_path):
    card = write_version(tmp_path, {"train": TRAIN, "val": VAL}, ORIGIN)
    assert (card.hash, card.rows, card.origin) == (version_of({"train": TRAIN, "val": VAL}), 5, ORIGIN)
    assert card.splits == {
        "train": SplitPart("train.jsonl", 3, dataset_hash(TRAIN)),
        "val": SplitPart("val.jsonl", 2, dataset_hash(VAL)),
    }
    assert card.slices == (
        Count("train", "qa", "easy", 2, 2 / 3),
        Count("train", "qa", "hard", 1, 1 / 3),
        Count("val", "qa", "easy", 1, 0.5),
        Count("val", "qa", "hard", 1, 0.5),
    )
    assert (card.leaks.same, card.leaks.near) == (1, 1)
    assert [(leak.where, leak.twin) for leak in card.leaks.named] == [
        (f"{tmp_path}/val.jsonl:1", f"{tmp_path}/train.jsonl:1"),
        (f"{tmp_path}/val.jsonl:2", f"{tmp_path}/train.jsonl:2"),
    ]
    assert read_version(tmp_path) == (card, {"train": TRAIN, "val": VAL})


def test_a_version_is_never_written_over_and_the_same_content_changes_nothing(tmp_path):
    card = write_version(tmp_path, {"train": TRAIN}, ORIGIN)
    before = (tmp_path / CARD).read_bytes()
    assert write_version(tmp_path, {"train": TRAIN}, Origin(name="other", source="", made_by="")) == card
    with pytest.raises(UserError, match=f"holds version {card.hash} of 'towns' already"):
        write_version(tmp_path, {"train": VAL}, ORIGIN)
    assert (tmp_path / CARD).read_bytes() == before
    (tmp_path / CARD).unlink()
    with pytest.raises(UserError, match=r"holds train\.jsonl without a card"):
        write_version(tmp_path, {"train": VAL}, ORIGIN)


def test_rows_that_were_changed_under_their_card_are_refused_and_told(tmp_path):
    write_version(tmp_path, {"train": TRAIN, "val": VAL}, ORIGIN)
    write_rows(tmp_path / "val.jsonl", VAL[:1])
    with pytest.raises(FaultsFound) as caught:
        read_version(tmp_path)
    assert [fault.where for fault in caught.value.faults] == [f"{tmp_path}/val.jsonl"]


def test_changed_files_get_a_new_card_and_the_old_version_is_its_parent(tmp_path):
    old = write_version(tmp_path, {"train": TRAIN, "val": VAL}, ORIGIN)
    write_rows(tmp_path / "train.jsonl", TRAIN[1:])
    files = {"train": tmp_path / "train.jsonl", "val": tmp_path / "val.jsonl"}
    new = card_files(files, Origin(name="towns", source="by hand", made_by="rft data card"))
    assert new.origin.parents == (old.hash,)
    assert new.hash != old.hash
    assert read_card(tmp_path) == new == card_files(files, ORIGIN)
    assert json.loads((tmp_path / f"dataset-{old.hash}.json").read_text())["hash"] == old.hash
    assert new.leaks.same == 0


def test_the_order_of_keys_in_a_file_makes_no_other_version(tmp_path):
    for folder, keys in (("a", ("id", "prompt", "reference_answer", "metadata")), ("b", ("metadata", "reference_answer", "prompt", "id"))):
        value = {"id": "1", "prompt": "p", "reference_answer": "1", "metadata": {"x": 1, "y": 2} if folder == "a" else {"y": 2, "x": 1}}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(json.dumps({key: value[key] for key in keys}))
    one, other = (card_files({"train": tmp_path / folder / "rows.jsonl"}, ORIGIN) for folder in "ab")
    assert one.hash == other.hash


def test_what_is_no_card_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="no data set's card"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text('{"hash": 5}')
    with pytest.raises(UserError, match="is not a data set's card"):
        read_card(tmp_path)
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "train.jsonl", tmp_path / "other" / "val.jsonl"):
        write_rows(path, TRAIN)
    with pytest.raises(UserError, match="files are in one folder"):
        card_files({"train": tmp_path / "train.jsonl", "val": tmp_path / "other" / "val.jsonl"}, ORIGIN)
