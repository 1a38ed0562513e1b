"""Makes NeMo RL importable, here and in the processes that Ray starts, or says how to get it."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from agent_rft.contracts.errors import UserError

VERSION = "0.7.0"
SOURCE_VARIABLE = "NEMO_RL_SRC"
CURE = (
    f"run in NVIDIA's NeMo RL v{VERSION} container; or, for CPU workers: clone NVIDIA-NeMo/RL, check out v{VERSION}, set "
    f"{SOURCE_VARIABLE}=FOLDER and run `make nemo-cpu`; docs/nemo.md tells more"
)
SHIM = Path(__file__).resolve().parent / "below_3_12"
ROOT = Path(__file__).resolve().parents[3]


def why_not() -> UserError | None:
    """Why NeMo RL cannot be used, if it cannot. What is needed to import it is set up on the way."""
    source = os.environ.get(SOURCE_VARIABLE, "")
    if source and not (Path(source) / "nemo_rl" / "package_info.py").is_file():
        return UserError(f"{SOURCE_VARIABLE}={source} is no checkout of NeMo RL", CURE)
    if source:
        _put_on_path(str(Path(source).resolve()))  # Ray's workers have another working folder
    spec = importlib.util.find_spec("nemo_rl")
    if spec is None or not spec.origin:
        return UserError("NeMo RL is not installed", CURE)
    if (found := _version(Path(spec.origin).parent)) != VERSION:
        return UserError(f"NeMo RL {found} is installed, and this code is held to {VERSION}, whose insides it knows", CURE)
    if importlib.util.find_spec("ray") is None:
        return UserError("Ray is not installed, which NeMo RL runs on", CURE)
    return None


def prepare() -> None:
    """Call it before anything of NeMo RL is imported."""
    if error := why_not():
        raise error
    _shim_typed_dict()
    _put_on_path(str(ROOT))  # for Ray's workers: an editable install reaches them only so
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # what is still under way when Ray has ended would start another
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of several that fail at once, the first is told


def _version(package: Path) -> str:
    """As its own file says, unread by an import that would load half of it."""
    said: dict[str, object] = {}
    exec((package / "package_info.py").read_text(encoding="utf-8"), {"__file__": str(package / "package_info.py")}, said)
    return str(said.get("__shortversion__", "of an unknown version"))


def _put_on_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*inherited, folder])


def _shim_typed_dict() -> None:
    if sys.version_info >= (3, 12):
        return
    import typing

    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict  # pyright: ignore[reportAttributeAccessIssue]
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if str(SHIM) not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SHIM), *inherited])
