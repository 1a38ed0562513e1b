"""Grades per second of one core: numeric, multi, and python in the warm pool beside a cold start of the same sandbox.

The peer is the sandbox as it would be without a pool: started for one grading and ended after it. Both run the same grader
on the same cases in turns. What counts is gradings per CPU-second of everything that took part, the sandbox's processes
included, which other work on the machine disturbs little; the median time of one grading stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.ports import Grader
from agent_rft.graders.multi import MultiGrader
from agent_rft.graders.numeric import NumericGrader
from agent_rft.graders.python_grader import PythonGrader
from agent_rft.graders.sandbox import Sandbox
from agent_rft.graders.text import StringCheckGrader

SOURCE = """
import re

def grade(sample, item):
    found = re.findall(r"-?[0-9.]+", sample["output_text"])
    wanted = re.findall(r"-?[0-9.]+", item["reference_answer"])
    return 1.0 if found and float(found[-1]) == float(wanted[-1]) else 0.0
"""
Case = tuple[dict[str, Any], dict[str, Any]]
NUMERIC, MULTI, POOL, COLD = "numeric", "multi", "python, warm pool", "python, cold start"


def cases() -> list[Case]:
    """Half of them right: each of a hundred percentages against itself and against its neighbour."""
    texts = [f"{number / 10:.1f}%" for number in range(100)]
    pairs = [(text, said) for number, text in enumerate(texts) for said in (text, texts[number - 1])]
    return [({"reference_answer": reference}, {"output_text": said}) for reference, said in pairs]


def cpu_seconds() -> float:
    """Of this process and of every process that it has seen end."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def multi() -> Grader:
    same = StringCheckGrader("{{sample.output_text}}", "{{item.reference_answer}}", "eq")
    return MultiGrader({"same": same, "value": NumericGrader()}, "0.5 * same + 0.5 * value")


def in_process(make: Callable[[], Grader], count: int) -> Callable[[], list[float]]:
    return lambda: timed(make().grade, count)


def pooled(count: int) -> list[float]:
    with Sandbox(workers=1) as sandbox:
        return timed(PythonGrader(SOURCE, sandbox).grade, count)


def cold(count: int) -> list[float]:
    def start_and_grade(item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        with Sandbox(workers=1) as sandbox:
            return PythonGrader(SOURCE, sandbox).grade(item, sample)

    return timed(start_and_grade, count)


def timed(grade: Callable[[dict[str, Any], dict[str, Any]], Grade], count: int) -> list[float]:
    """Seconds of each grading. A bench of wrong grades would measure nothing, so each is looked at."""
    seconds, known = list[float](), cases()
    for number in range(count):
        item, sample = known[number % len(known)]
        began = time.perf_counter()
        given = grade(item, sample)
        seconds.append(time.perf_counter() - began)
        if given.reward is None or (given.reward == 1.0) != (item["reference_answer"] == sample["output_text"]):
            raise SystemExit(f"{given.grader.name} graded {sample} against {item} as {given}")
    return seconds


def measure(work: Callable[[], list[float]]) -> dict[str, float]:
    before = cpu_seconds()
    seconds = work()
    return {"per_cpu_second": len(seconds) / (cpu_seconds() - before), "median_ms": statistics.median(seconds) * 1e3}


def report(results: dict[str, list[dict[str, float]]], conditions: dict[str, object]) -> None:
    print(f"{'grader':22}{'grades per CPU-second':>36}{'median ms of one':>20}")
    middle: dict[str, dict[str, float]] = {}
    for name, runs in results.items():
        middle[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rates = [run["per_cpu_second"] for run in runs]
        spread = f"{middle[name]['per_cpu_second']:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"{name:22}{spread:>36}{middle[name]['median_ms']:>20.3f}")
    line = {
        "bench": "graders",
        "peer": "the same sandbox started for each grading (limit: 5)",
        "ratio": round(middle[POOL]["per_cpu_second"] / middle[COLD]["per_cpu_second"], 2),
        "unit": "python grades per CPU-second",
        "conditions": {
            **conditions,
            "ratio_of_median_time": round(middle[COLD]["median_ms"] / middle[POOL]["median_ms"], 2),
            "grades_per_cpu_second": {name: round(values["per_cpu_second"], 1) for name, values in middle.items()},
        },
    }
    print(json.dumps(line))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--grades", type=int, default=400, help="by the warm pool, a repeat; a cold start grades a tenth of that")
    given = options.parse_args()
    work: Sequence[tuple[str, Callable[[], list[float]]]] = (
        (NUMERIC, in_process(NumericGrader, 5000)),
        (MULTI, in_process(multi, 5000)),
        (POOL, lambda: pooled(given.grades)),
        (COLD, lambda: cold(given.grades // 10)),
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name, _ in work}
    for repeat in range(given.repeats + 1):  # the first round warms up and is not counted
        for name, grade in work:
            seen = measure(grade)
            if repeat:
                results[name].append(seen)
    version = subprocess.run(["bwrap", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    report(results, {"repeats": given.repeats, "grades": given.grades, "cpus": len(os.sched_getaffinity(0)), "bubblewrap": version})


if __name__ == "__main__":
    main()
