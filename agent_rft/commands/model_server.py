"""`rft model-server`: a checkpoint behind OpenAI's chat API, by our own engine, on the CPU or one GPU."""

from __future__ import annotations

import os
from pathlib import Path

from agent_rft.commands.parts import console
from agent_rft.contracts.training import Model
from serving.model_server import Faults, model_app
from serving.server import serve


def serve_model(
    checkpoint: str, name: str | None, port: int, temperature: float, device: str, threads: int | None, seed: int | None, faults: Faults
) -> None:
    from agent_rft.training.local.backend import LocalBackend  # loads torch

    model = Model(path=checkpoint, device=device, dtype="float32", threads=threads)
    backend = LocalBackend()
    folder = checkpoint if Path(checkpoint).is_dir() else None
    called = backend.name_of(model, folder)
    served = name or called
    sampler_at = backend.samplers(model, folder)
    for warning in _warnings(faults):
        console.print(warning, style="bold red")
    console.print(
        f"{called} as {served!r} on http://127.0.0.1:{port}/v1 (OpenAI's chat API; /health); Ctrl-C stops it (process {os.getpid()})"
    )
    serve(model_app(sampler_at, served, temperature=temperature, faults=faults, seed=seed), "127.0.0.1", port)


def _warnings(faults: Faults) -> list[str]:
    said = {
        "latency_seconds": f"answers come {faults.latency_seconds:g} s late",
        "failure_rate": f"{faults.failure_rate:.0%} of requests fail",
        "hang_rate": f"{faults.hang_rate:.0%} of requests are never answered",
        "crash_after": f"the process ends at request {faults.crash_after + 1}",
        "leak_rate": f"{faults.leak_rate:.0%} of answers give away a made-up credential",
    }
    return [f"ON PURPOSE: {words}" for fault, words in said.items() if getattr(faults, fault)]
