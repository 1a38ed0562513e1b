"""Redaction on the labelled sample that ships, beside its limits: precision 0.98, recall 0.95, 10 MB a second of one core.

Precision and recall count a span only where kind, beginning and end are all as labelled; every text that went wrong is printed.
Speed is taken on what a store mostly takes in, texts in which nothing is to be found: filings, log lines and tables of figures.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from agent_rft.datasets.filings import company_names, make_filings
from observability.redaction.measured import Score, measure, read_sample
from observability.redaction.redact import redact

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "redaction" / "sample.jsonl"
LEAST_PRECISION, LEAST_RECALL, LEAST_SPEED = 0.98, 0.95, 10.0


def filings(rng: random.Random) -> str:
    return "\n".join(filing.html() for filing in make_filings(company_names(400, rng), rng))


def log_lines(rng: random.Random) -> str:
    line = (
        '2026-11-21T04:{:02d}:{:02d}Z INFO call-{}-{} {{"tool": "search", "seconds": {:.4f}, "score": {:.2f}, "path": "filings/{}.html"}}\n'
    )
    draw = rng.randrange
    return "".join(line.format(draw(60), draw(60), draw(999), draw(9), rng.random(), draw(9999) / 100, draw(10**6)) for _ in range(8000))


def tables(rng: random.Random) -> str:
    return "".join(f"Net sales, segment {row}: " + "  ".join(f"{rng.randrange(10**9):,}" for _ in range(6)) + "\n" for row in range(12000))


TEXTS: dict[str, Callable[[random.Random], str]] = {"filings": filings, "log lines": log_lines, "tables": tables}


def megabytes_a_second(text: str, repeats: int) -> list[float]:
    rates = list[float]()
    for _ in range(repeats + 1):  # the first round warms up and is not counted
        began = time.process_time()
        if redact(text).removed:
            raise SystemExit("something was removed from a text in which nothing is to be found")
        rates.append(len(text.encode()) / 1e6 / (time.process_time() - began))
    return rates[1:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    repeats = options.parse_args().repeats
    sample = read_sample(SAMPLE.read_bytes())
    scores, misses = measure(sample)
    overall = sum(scores.values(), Score())
    for miss in misses:
        print(f"overlooked {list(miss.overlooked)} wrongly taken {list(miss.wrongly_taken)} in {miss.text!r}")
    print(f"{'kind':12}{'precision':>11}{'recall':>9}{'spans':>8}")
    for kind, score in {**scores, "overall": overall}.items():
        print(f"{kind:12}{score.precision:>11.3f}{score.recall:>9.3f}{score.right + score.overlooked:>8}")
    rng, speeds = random.Random(0), dict[str, list[float]]()
    for name, make in TEXTS.items():
        speeds[name] = megabytes_a_second(make(rng), repeats)
        spread = f"{statistics.median(speeds[name]):.1f} ({min(speeds[name]):.1f} to {max(speeds[name]):.1f})"
        print(f"{name:12}{spread:>28} MB/s of one core")
    slowest = min(statistics.median(rates) for rates in speeds.values())
    line = {
        "bench": "redaction",
        "peer": f"limit: {LEAST_SPEED:g} MB/s; precision {LEAST_PRECISION}, recall {LEAST_RECALL}",
        "ratio": round(slowest / LEAST_SPEED, 2),
        "unit": "MB per CPU-second of clean text, the slowest kind",
        "conditions": {
            "texts": len(sample),
            "precision": round(overall.precision, 4),
            "recall": round(overall.recall, 4),
            "mb_per_second": {name: round(statistics.median(rates), 1) for name, rates in speeds.items()},
            "repeats": repeats,
        },
    }
    print(json.dumps(line))
    if overall.precision < LEAST_PRECISION or overall.recall < LEAST_RECALL:
        raise SystemExit("below the limits of precision and recall")


if __name__ == "__main__":
    main()
