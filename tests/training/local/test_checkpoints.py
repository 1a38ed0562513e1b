"""A checkpoint is whole or it is not there; a broken one is named, with the last whole one before it."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.training import Model
from agent_rft.training.local.backend import LocalBackend
from agent_rft.training.local.checkpoints import Checkpoints


def filled(text: str):
    def fill(folder) -> None:
        (folder / "weights").write_text(text)
        (folder / "part").mkdir()
        (folder / "part" / "tokenizer").write_text("t")

    return fill


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_the_newest_are_kept(checkpoints):
    for step in (5, 10, 100):
        checkpoints.write(step, filled(str(step)))
    assert checkpoints.steps() == [10, 100]
    assert checkpoints.newest().name == "step-000100"
    assert checkpoints.checked(checkpoints.newest())


def test_there_may_be_none(checkpoints):
    assert checkpoints.newest() is None


@pytest.mark.parametrize("file", ["weights", "part/tokenizer", "manifest.json"])
def test_a_file_cut_short_is_named_with_the_whole_checkpoint_before(checkpoints, file):
    checkpoints.write(5, filled("five"))
    broken = checkpoints.write(10, filled("ten"))
    (broken / file).write_bytes((broken / file).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{file} is not what was written") as caught:
        checkpoints.checked(broken)
    assert "step-000005, is whole" in caught.value.cure


def test_a_missing_file_is_named_and_broken_ones_are_not_offered(checkpoints):
    for step in (5, 10):
        (checkpoints.write(step, filled("x")) / "weights").unlink()
    with pytest.raises(UserError, match="weights is missing") as caught:
        checkpoints.checked(checkpoints.newest())
    assert "no whole checkpoint before it" in caught.value.cure


def test_a_full_disk_is_said_and_the_one_before_stays(checkpoints):
    checkpoints.write(5, filled("five"))

    def disk_full(folder) -> None:
        (folder / "weights").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="No space left on device") as caught:
        checkpoints.write(10, disk_full)
    assert "make room" in caught.value.cure and "step-000005, is whole" in caught.value.cure
    assert checkpoints.steps() == [5]
    assert [path.name for path in checkpoints.newest().parent.iterdir()] == ["step-000005"]


def test_what_a_kill_left_behind_is_not_a_checkpoint_and_goes_with_the_next(checkpoints, tmp_path):
    draft = tmp_path / "checkpoints" / ".step-000010"
    draft.mkdir(parents=True)
    (draft / "weights").write_text("half")
    assert checkpoints.newest() is None
    checkpoints.write(15, filled("x"))
    assert not draft.exists()


def test_every_file_is_on_the_disk_before_the_checkpoint_is_in_place(checkpoints, monkeypatch):
    synced = []
    sync = os.fsync

    def noted(handle) -> None:
        assert not checkpoints.steps() or Path(os.readlink(f"/proc/self/fd/{handle}")).name == "checkpoints"
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    checkpoints.write(5, filled("x"))
    assert sorted(synced) == [".step-000005", "checkpoints", "manifest.json", "part", "tokenizer", "weights"]
    assert synced[-1] == "checkpoints"  # the renaming itself, last


def test_a_step_may_be_written_again(checkpoints):
    checkpoints.write(5, filled("first"))
    assert (checkpoints.write(5, filled("second")) / "weights").read_text() == "second"
    assert checkpoints.checked(checkpoints.newest())


def test_a_checkpoint_that_was_copied_away_is_named_by_its_place_and_weights(tmp_path, monkeypatch):
    """Within its run it is called by the run and the step; a copy may be called anything, and lie beside others of that name."""
    model = Model(path="nowhere", device="cpu", dtype="float32")
    empty = b"\x02" + bytes(7) + b"{}"  # of a safetensors file: how long its header is, and that
    named = list[str]()
    for place in ("mine/checkpoints/step-000040", "best", "of-others/step-000040"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for name, content in (("config.json", b"{}"), ("model.safetensors", empty), ("manifest.json", b"{}")):
            (folder / name).write_bytes(content)
        named.append(LocalBackend().name_of(model, str(folder)))
    weights = hashlib.sha256(hashlib.sha256(empty).digest()).hexdigest()[:12]
    assert named == ["mine/step-40", f"{tmp_path}/best@{weights}", f"{tmp_path}/of-others/step-000040@{weights}"]
    monkeypatch.chdir(tmp_path / "mine")
    assert LocalBackend().name_of(model, "checkpoints/step-000040") == "mine/step-40"
