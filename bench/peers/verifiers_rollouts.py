# Run with verifiers' types alone at hand, by a Python that this project's tools do not look into:
# ruff: noqa: ANN001, ANN003, ANN201
"""verifiers' side of bench/rollouts.py, run by the Python of its own environment: a ToolEnv evaluated as its documentation has it."""

import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import tqdm
import verifiers as vf
from datasets import Dataset
from rollout_work import ANSWER, CALLS, MODEL, SYSTEM, TOOLS, questions
from verifiers.types import ClientConfig


def exact(completion, answer, **_) -> float:
    return float(completion[-1].content == answer)


def evaluated(url: str, count: int, in_flight: int, folder: str):
    """Without its progress bar, which is drawn anew at each rollout and costs it time."""
    rows = Dataset.from_list([{"question": question, "answer": ANSWER} for question in questions(count)])
    rubric = vf.Rubric(funcs=[exact])
    env = vf.ToolEnv(dataset=rows, tools=list(TOOLS.values()), max_turns=CALLS + 4, system_prompt=SYSTEM, rubric=rubric)
    kept = {"save_results": True, "results_path": Path(folder)} if folder else {}
    done = env.evaluate_sync(
        client=ClientConfig(api_base_url=url, api_key_var="BENCH_KEY"),
        model=MODEL,
        sampling_args={"temperature": 1.0, "max_tokens": 512},
        max_concurrent=in_flight,
        **kept,
    )
    return done["outputs"]


def main(url: str, count: int, in_flight: int, warm_up: int, folder: str) -> None:
    logging.disable(logging.INFO)
    os.environ["BENCH_KEY"] = "bench"
    tqdm.tqdm = partial(tqdm.tqdm, disable=True)
    evaluated(url, warm_up, in_flight, "")
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = evaluated(url, count, in_flight, folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    right = sum(one["reward"] == 1.0 and one["metrics"]["total_tool_calls"] == CALLS for one in outputs)
    print(json.dumps({"wall": wall, "cpu": cpu, "right": right, "rollouts": len(outputs)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
