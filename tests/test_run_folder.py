"""A run's folder: whole files or none, and no mixing of worlds."""

import json
import stat

import msgspec
import pytest

from agent_rft.commands.run_folder import RunFolder
from agent_rft.compose import settings_for
from agent_rft.contracts.errors import UserError
from agent_rft.contracts.jobcards import Versions

WORLD = Versions(code="1", checkpoint="base@1", dataset="d", tool_set="t", grader="g", seed=1)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.new(settings_for("research_tiny", [f"run.folder={tmp_path}/runs", "run.id=mine"]))


def test_a_name_is_used_once(folder: RunFolder, tmp_path):
    with pytest.raises(UserError, match=f"make resume RUN={tmp_path}/runs/mine"):
        RunFolder.new(settings_for("research_tiny", [f"run.folder={tmp_path}/runs", "run.id=mine"]))


def test_runs_without_a_name_that_begin_in_one_second_have_a_folder_each(tmp_path):
    settings = settings_for("research_tiny", [f"run.folder={tmp_path}/runs"])
    made = [RunFolder.new(settings) for _ in range(4)]
    assert len({folder.path for folder in made}) == 4 and made[0].run_id < made[3].run_id


def test_a_run_that_is_refused_before_it_began_leaves_its_name_free_and_one_that_began_stays(tmp_path):
    settings = settings_for("research_tiny", [f"run.folder={tmp_path}/runs", "run.id=mine"])
    with pytest.raises(UserError, match="refused"), RunFolder.begun(settings):
        raise UserError("refused")
    with RunFolder.begun(settings) as folder:
        folder.hold_to(WORLD)
    assert {held.name for held in (tmp_path / "runs/mine").iterdir()} == {"settings.yaml", "versions.json"}


def test_settings_may_hold_a_password_and_are_for_their_owner(folder: RunFolder):
    assert stat.S_IMODE((folder.path / "settings.yaml").stat().st_mode) == 0o600


def test_changed_settings_leave_the_old_ones_beside(folder: RunFolder):
    folder.hold_to(WORLD)
    assert folder.settings(["algorithm.kl_coef=0.03"]).algorithm.kl_coef == 0.03
    folder.hold_to(WORLD)
    assert folder.settings([]).algorithm.kl_coef == 0.03
    assert "kl_coef: 0.05" in (folder.path / "settings-before-1.yaml").read_text()


def test_what_is_kept_comes_back_and_what_is_broken_is_named(folder: RunFolder):
    assert folder.kept("a/b.json", json.loads) is None
    folder.keep("a/b.json", b"[1, 2]")
    assert folder.kept("a/b.json", json.loads) == [1, 2]
    (folder.path / "prior.json").write_bytes(b'{"verdict": ')
    with pytest.raises(UserError, match=r"prior\.json cannot be read"):
        folder.kept("prior.json", msgspec.json.decode)


def test_code_may_be_mended_in_a_run_but_its_world_stays(folder: RunFolder):
    folder.hold_to(WORLD)
    folder.hold_to(msgspec.structs.replace(WORLD, code="2"))
    with pytest.raises(UserError, match="dataset was d, is e"):
        folder.hold_to(msgspec.structs.replace(WORLD, dataset="e"))
    folder.settings(["algorithm.kl_coef=0.03"])
    with pytest.raises(UserError, match="checkpoint was base@1, is base@2"):
        folder.hold_to(msgspec.structs.replace(WORLD, checkpoint="base@2"))
    assert folder.settings([]).algorithm.kl_coef == 0.05, "what was refused leaves no trace"
