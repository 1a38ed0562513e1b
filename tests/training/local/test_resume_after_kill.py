"""kill -9, then resume: the run ends as if nothing had happened, to the last bit of all that is no time and no rollout's id."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_world as world

from agent_rft.training.local.backend import LocalBackend

HERE = Path(__file__).parent
TIMES = ("seconds", "rollout_seconds", "train_seconds")


def run_and_kill(base, run_dir, when) -> None:
    command = [sys.executable, str(HERE / "resume_child.py"), base, str(run_dir), when]
    env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[2]}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


async def run(base, run_dir, resume: bool) -> None:
    job = world.make_killable_job(base, run_dir, resume)
    await LocalBackend().train(job, world.Look(), world.LikesA(), world.Cards(), lambda line, total: None)


def figures(run_dir) -> list[dict]:
    """What guards said is among them; of the rollouts that they named, how many."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["audit"] = len(line["audit"])
        for finding in line["findings"]:
            finding["rollouts"] = len(finding["rollouts"])
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.mark.parametrize("when", ["line:4", "checkpoint:4"])
async def test_the_steps_after_are_those_of_the_uninterrupted_run(tmp_path, when):
    """Killed after its fourth line, before checkpoint 4 is begun; or half-way through writing that checkpoint."""
    base, whole, killed = world.save_base(tmp_path / "base"), tmp_path / "whole", tmp_path / "killed"
    await run(base, whole, resume=False)
    assert [line["step"] for line in figures(whole)] == [0, 1, 2, 3, 4, 5, 6]
    assert all(line["tool_calls"] and line["loss"] for line in figures(whole)[:-1])

    run_and_kill(base, killed, when)
    assert len(figures(killed)) == 4
    assert [path.name for path in (killed / "checkpoints").glob("step-*")] == ["step-000002"]

    await run(base, killed, resume=True)
    assert figures(killed) == figures(whole)
    assert [finding["guard"] for line in figures(killed) for finding in line["findings"]] == ["leaked_row"], "said once, not again"
    weights = Path("checkpoints") / "step-000006" / "model.safetensors"
    assert world.digest(killed / weights) == world.digest(whole / weights)


async def test_killed_before_any_checkpoint_it_starts_anew(tmp_path):
    base, whole, killed = world.save_base(tmp_path / "base"), tmp_path / "whole", tmp_path / "killed"
    await run(base, whole, resume=False)
    killed.mkdir()
    first, second = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:2]
    (killed / "metrics.jsonl").write_bytes(first + second[:40])  # all that such a run leaves
    await run(base, killed, resume=True)
    assert figures(killed) == figures(whole)
