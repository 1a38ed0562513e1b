"""Tests marked `nemo` run NeMo RL itself, where it can be had."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_rft.training.nemo import find

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
HELPERS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "local")]
sys.path[:0] = HELPERS  # scripted, letters, small_world ...


@pytest.fixture(scope="session")
def nemo_rl() -> None:
    """Ask for it before importing anything of NeMo RL."""
    find.prepare()
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], *HELPERS])  # Ray's workers import them too


@pytest.fixture(scope="session")
def ray_here(nemo_rl: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of the tests' own, on this machine."""
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = find.why_not()
    for item in items:
        if missing and item.get_closest_marker("nemo"):
            item.add_marker(pytest.mark.skip(reason=f"{missing.what}: {missing.cure}"))
