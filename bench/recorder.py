"""Training at full speed with the recorder on and off, in turns: the same loop, model, rows and seed, so that each step does the
same work both ways, down to the token.

On: every rollout's card goes through `StoreRecorder` as in a run of `make train`, to a process of its own, with redaction and the
ledger, into a store on the disk, while training goes on. Off: nobody takes the cards. The tools are called in process, which makes a
step shorter than a run over HTTP and the recorder's share larger. Beside wall time stand the CPU seconds of the training's process,
which other work on the machine disturbs little, and those of the process that writes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import statistics
import tempfile
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from agent_rft.commands.parts import job_of, read_data
from agent_rft.compose import settings_for
from agent_rft.contracts.jobcards import JobCard, Versions
from agent_rft.contracts.ports import Recorder
from agent_rft.contracts.training import StepMetrics
from agent_rft.datasets.filings import TOOLS
from agent_rft.graders.numeric import NumericGrader
from agent_rft.rollouts.in_process import InProcessTools
from agent_rft.training.local.backend import LocalBackend
from observability.ingest import StoreRecorder
from observability.settler_process import SettlerProcess
from observability.store import open_store
from serving.tools.corpus import CorpusTools

LIMIT = 3.0
"""Percent."""


class Nobody:
    """Takes no card."""

    def record(self, card: JobCard) -> None:
        pass

    def flush(self, timeout: float = 60.0) -> None:
        pass


class Steps(NamedTuple):
    """Of one training, without the first step, which warms up and validates."""

    wall: list[float]
    cpu: list[float]
    cards: int = 0
    writer: float = 0.0
    """CPU seconds of the process that writes the cards, in all, its start too."""


def trained(steps: int, threads: int, recording: bool) -> Steps:
    changed = [f"algorithm.max_steps={steps}", "evaluation.every=1000", "backend.checkpoint_every=1000", f"model.threads={threads}"]
    settings = settings_for("research_tiny", changed)
    grader = NumericGrader()
    data = read_data(settings, grader)
    data = msgspec.structs.replace(data, val=data.val[:4])
    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-recorder-") as folder:
        job = job_of(settings, data, "bench", folder, Versions(code="bench", checkpoint="base", seed=settings.seed), resume=False)
        tools = InProcessTools(CorpusTools.from_folder(Path(settings.tools.corpus), TOOLS))

        def train(recorder: Recorder) -> None:
            def mark(_line: StepMetrics, _last: int) -> None:
                marks.append((time.perf_counter(), time.process_time()))

            asyncio.run(LocalBackend().train(job, tools, grader, recorder, mark))

        if not recording:
            train(Nobody())
            recorded, writer = 0, 0.0
        else:
            ended = cpu_of_ended_processes()
            with (
                closing(open_store(f"sqlite:///{folder}/cards.db")) as store,
                StoreRecorder(store, settling=SettlerProcess) as recorder,
            ):
                train(recorder)
                recorder.flush()
            recorded, writer = recorder.acknowledged, cpu_of_ended_processes() - ended
    wall, cpu = ([after[which] - before[which] for before, after in pairwise(marks[:steps])] for which in (0, 1))
    return Steps(wall, cpu, recorded, writer)


def cpu_of_ended_processes() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def more(off: list[list[float]], on: list[list[float]]) -> dict[str, float]:
    """Percent that it takes more with the recorder on: of each step's least over all turns, and the middle of the turns' own."""
    least = [sum(map(min, zip(*runs, strict=True))) for runs in (off, on)]
    turns = [100 * (sum(one_on) / sum(one_off) - 1) for one_off, one_on in zip(off, on, strict=True)]
    return {"of_least": round(100 * (least[1] / least[0] - 1), 2), "median": round(statistics.median(turns), 2),
            "lowest": round(min(turns), 2), "highest": round(max(turns), 2)}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=6, help="of each training; the first does not count")
    options.add_argument("--threads", type=int, default=1, help="of the training, which on a machine with other work wait for each other")
    options.add_argument("--turns", type=int, default=4, help="trainings of each kind")
    given = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    runs: dict[bool, list[Steps]] = {False: [], True: []}
    for turn in range(given.turns):
        for recording in (False, True):
            one = trained(given.steps, given.threads, recording)
            runs[recording].append(one)
            what = f"recorder on, {one.cards} cards" if recording else "recorder off"
            print(
                f"turn {turn + 1}  {what:28}{statistics.fmean(one.wall):8.2f} s a step{statistics.fmean(one.cpu):8.2f} s of CPU", flush=True
            )
    of_wall, of_cpu = (more(*([getattr(one, kind) for one in runs[recording]] for recording in (False, True))) for kind in ("wall", "cpu"))
    middle = {
        name: round(statistics.median(statistics.fmean(one.wall) for one in runs[recording]), 3)
        for name, recording in (("off", False), ("on", True))
    }
    line = {
        "bench": "recorder",
        "peer": f"the same training without a recorder (limit: {LIMIT:g}% more)",
        "ratio": round(1 + of_wall["of_least"] / 100, 4),
        "unit": "seconds a step",
        "conditions": {
            "wall_percent_more": of_wall,
            "cpu_percent_more": of_cpu,
            "seconds_a_step": middle,
            "writer_cpu_ms_a_card": round(statistics.median(1e3 * one.writer / one.cards for one in runs[True]), 2),
            "cards": runs[True][0].cards,
            "steps": given.steps - 1,
            "turns": given.turns,
            "threads": given.threads,
            "cpus": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        },
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
