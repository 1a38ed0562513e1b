"""A training run in a process of its own: resume_child.py BASE RUN_DIR WHEN.

It kills itself with SIGKILL, as a machine that goes down would: `line:N` after N metrics lines, `checkpoint:N` half-way
through writing checkpoint N."""

import asyncio
import os
import signal
import sys

import small_world as world
import torch

from agent_rft.training.local.backend import LocalBackend


def main(base: str, run_dir: str, when: str) -> None:
    kind, _, number = when.partition(":")
    save = torch.save

    def on_step(line, total) -> None:
        if kind == "line" and line.step + 1 == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    def save_half(what, path) -> None:
        save(what, path)
        if kind == "checkpoint" and path.parent.name == f".step-{int(number):06d}":
            path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half
    job = world.make_killable_job(base, run_dir, resume=False)
    asyncio.run(LocalBackend().train(job, world.Look(), world.LikesA(), world.Cards(), on_step))


if __name__ == "__main__":
    main(*sys.argv[1:])
