"""A training in a process of its own whose raylet is killed after the first step. What is raised of it is told as `rft` tells it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from agent_rft.training.nemo import find

FOLDER = Path(__file__).parent
HELPERS = [str(FOLDER), str(FOLDER.parent / "local")]
sys.path[:0] = HELPERS
os.environ["CUDA_VISIBLE_DEVICES"] = ""
find.prepare()
os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], *HELPERS])

import psutil  # noqa: E402
import small_world  # noqa: E402
from letters import LettersOnly  # noqa: E402

from agent_rft.contracts.errors import InfraError  # noqa: E402
from agent_rft.contracts.layouts import Cluster, Layout  # noqa: E402
from agent_rft.training.nemo.backend import NemoBackend  # noqa: E402
from observability.ingest import StoreRecorder  # noqa: E402
from observability.store import open_store  # noqa: E402


def kill_raylet() -> None:
    next(child for child in psutil.Process().children() if child.name() == "raylet").send_signal(signal.SIGKILL)


def main(folder: Path) -> None:
    (folder / "run").mkdir()
    job = small_world.make_job(small_world.save_base(folder / "base"), folder / "run", algorithm={"epochs": 9})
    backend = NemoBackend(Layout(workers="cpu", cluster=Cluster(gpus_per_node=0), micro_batch=4), job.limits)
    try:
        with StoreRecorder(open_store(f"sqlite:///{folder}/cards.db")) as recorder:
            asyncio.run(backend.train(job, LettersOnly(), small_world.LikesA(), recorder, lambda line, total: kill_raylet()))
    except InfraError as error:
        sys.exit(f"error: infrastructure: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
