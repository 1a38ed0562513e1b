"""NeMo RL is found, or one error says how to get it. Each look has a process of its own: it changes what can be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_rft.training.nemo.find import VERSION

ROOT = Path(__file__).resolve().parents[3]
INSTALLED = subprocess.run(
    [sys.executable, "-c", "import importlib.util as i; print(i.find_spec('nemo_rl') is not None)"],
    env={"PATH": os.environ["PATH"]},
    capture_output=True,
    text=True,
    check=True,
).stdout.startswith("True")
LOOK = """
import json, os, sys
from agent_rft.contracts.errors import UserError
from agent_rft.training.nemo import find
for _ in range(2):
    try:
        find.prepare()
    except UserError as error:
        print(json.dumps({"what": error.what, "cure": error.cure}))
        sys.exit()
import importlib.util, typing
print(json.dumps({
    "path": os.environ["PYTHONPATH"].split(os.pathsep), "sys": sys.path, "origin": importlib.util.find_spec("nemo_rl").origin,
    "typed_dict": typing.TypedDict.__module__, "imported": "nemo_rl" in sys.modules,
    "ray": [os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"]],
}))
"""


def environment(source: object = None, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NEMO_RL_SRC", "PYTHONPATH", "RAY_AUTH_MODE")}
    return kept | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | ({} if source is None else {"NEMO_RL_SRC": str(source)}) | variables


def look(source: object = None, cwd: Path = ROOT, **variables: str) -> dict:
    command = [sys.executable, "-c", LOOK]
    done = subprocess.run(command, cwd=cwd, env=environment(source, **variables), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def checkout(folder: Path, version: str) -> Path:
    """A folder that looks like one; importing it would fail, so nothing may."""
    package = folder / "nemo_rl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('loaded while it was only to be found')\n")
    (package / "package_info.py").write_text(f"__shortversion__ = {version!r}\n__version__ = __shortversion__ + '+g123'\n")
    return folder


@pytest.mark.skipif(INSTALLED, reason="NeMo RL is installed here")
def test_without_it_one_error_says_how_to_get_it():
    said = look()
    assert said["what"] == "NeMo RL is not installed"
    for words in (f"NeMo RL v{VERSION} container", "NEMO_RL_SRC=FOLDER", "make nemo-cpu", "docs/nemo.md"):
        assert words in said["cure"]


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path):
    said = look(tmp_path)
    assert said["what"] == f"NEMO_RL_SRC={tmp_path} is no checkout of NeMo RL"
    assert "NEMO_RL_SRC=FOLDER" in said["cure"]


@pytest.mark.skipif(INSTALLED, reason="NeMo RL is installed here")
def test_another_version_is_refused_naming_both(tmp_path: Path):
    said = look(checkout(tmp_path, "0.8.0"))
    assert said["what"].startswith("NeMo RL 0.8.0 is installed, and this code is held to 0.7.0")
    assert "check out v0.7.0" in said["cure"]


@pytest.mark.skipif(INSTALLED, reason="NeMo RL is installed here")
def test_rays_workers_are_told_the_same_paths_and_each_once(tmp_path: Path):
    """Prepared twice, with paths of the user's own before; the project and the source come after those, the shim before all."""
    pytest.importorskip("ray")
    source = checkout(tmp_path / "RL", VERSION)
    mine = str(tmp_path / "mine")
    found = look(source, PYTHONPATH=os.pathsep.join([str(ROOT), mine]))
    shim = [str(ROOT / "agent_rft/training/nemo/below_3_12")] if sys.version_info < (3, 12) else []
    assert found["path"] == [*shim, str(ROOT), mine, str(source)]
    assert found["sys"].count(str(source)) == 1
    assert found["origin"] == str(source / "nemo_rl" / "__init__.py")
    assert not found["imported"]
    assert found["typed_dict"] == ("typing_extensions" if shim else "typing")
    assert found["ray"] == ["disabled", "0"]


@pytest.mark.skipif(INSTALLED, reason="NeMo RL is installed here")
def test_a_relative_folder_is_meant_from_here(tmp_path: Path):
    """Ray's workers have another working folder."""
    pytest.importorskip("ray")
    checkout(tmp_path / "RL", VERSION)
    assert str(tmp_path / "RL") in look("RL", cwd=tmp_path)["path"]


def test_the_shim_is_there_for_processes_that_ray_starts():
    """Python runs a sitecustomize that it finds on its path before anything else."""
    shim = ROOT / "agent_rft/training/nemo/below_3_12"
    command = [sys.executable, "-c", "import typing; print(typing.TypedDict.__module__)"]
    done = subprocess.run(command, env=environment(PYTHONPATH=str(shim)), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("typing_extensions" if sys.version_info < (3, 12) else "typing")


@pytest.mark.skipif(INSTALLED, reason="NeMo RL is installed here")
def test_training_with_another_version_ends_with_a_list_before_anything_is_made(tmp_path: Path):
    command = [sys.executable, "-m", "agent_rft", "train", "research_tiny_nemo", f"run.folder={tmp_path}/runs", "run.id=first"]
    variables = environment(checkout(tmp_path / "RL", "0.8.0"))
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "missing engine: NeMo RL 0.8.0 is installed, and this code is held to 0.7.0" in done.stdout
    assert "ok      data: 400 training rows, 100 held out" in done.stdout
    assert done.stderr.startswith("error: research_tiny_nemo cannot start:\n  engine: NeMo RL 0.8.0 is installed")
    assert not (tmp_path / "runs" / "first").exists()
    assert not list((tmp_path / "runs").glob("*"))
