"""How often an interval of 95% holds the truth, on the rewards that agents get: 0 or 1, some 0.5, most rows alike or at an end.

The product's interval beside Student's (scipy) on the same samples, and beside scipy's BCa bootstrap on a few of them: 30 to 200 rows, one
to four tries a row. `ratio` is how often Student's misses in its worst setting over how often ours does in its own.

    python bench/intervals.py [--samples 2000]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from agent_rft.evaluation.statistics import mean_interval

Samples = NDArray[np.float64]
"""A row a sample, a column a dataset row: the mean of its tries."""

ROWS, TRIES = (30, 60, 123, 200), (1, 2, 4)
SHARES = (0.02, 0.05, 0.1, 0.3, 0.7, 0.9, 0.95, 0.98)
CHANGES = {"small": (0.05, 0.08), "large": (0.5, 0.7), "near the top": (0.93, 0.98)}
ENOUGH = 0.93
BCA_SAMPLES = 400


class Setting(NamedTuple):
    kind: str
    rows: int
    tries: int
    truth: float
    samples: Samples
    least: float


def rewards(luck: np.random.Generator, samples: int) -> Iterator[Setting]:
    for rows, tries, share in itertools.product(ROWS, TRIES, SHARES):
        shape = (samples, rows)
        yield Setting("reward, rows alike", rows, tries, share, luck.binomial(tries, share, shape) / tries, 0.0)
        chances = luck.beta(share, 1 - share, shape)
        yield Setting("reward, rows at an end", rows, tries, share, luck.binomial(tries, chances) / tries, 0.0)
        halves = luck.choice([0.0, 0.5, 1.0], p=[1 - share, 0.6 * share, 0.4 * share], size=(*shape, tries)).mean(axis=2)
        yield Setting("reward, some 0.5", rows, tries, 0.7 * share, halves, 0.0)


def changes(luck: np.random.Generator, samples: int) -> Iterator[Setting]:
    for rows, tries in itertools.product(ROWS, TRIES):
        shape = (samples, rows)
        for before, after in CHANGES.values():
            moved = (luck.binomial(tries, after, shape) - luck.binomial(tries, before, shape)) / tries
            yield Setting("change, rows alike", rows, tries, after - before, moved, -1.0)
        for before, after in ((0.3, 0.6), (0.05, 0.15), (0.05, 0.05)):
            first = luck.beta(before, 1 - before, shape)
            second = np.where(luck.random(shape) < 0.7, first, luck.beta(after, 1 - after, shape))
            moved = (luck.binomial(tries, second) - luck.binomial(tries, first)) / tries
            yield Setting("change, on 3 rows of 10", rows, tries, 0.3 * (after - before), moved, -1.0)
        for solved, turned in ((0.3, 0.05), (0.5, 0.1), (0.1, 0.02)):
            first = (luck.random(shape) < solved) * 1.0
            moved = np.where(luck.random(shape) < turned, 1.0, first) - first
            yield Setting("change, on few rows", rows, tries, turned * (1 - solved), moved, -1.0)


def ours(setting: Setting) -> tuple[float, float]:
    """Coverage and mean width."""
    found = [mean_interval(sample, least=setting.least) for sample in setting.samples.tolist()]
    held = [one.low <= setting.truth <= one.high for one in found]
    return float(np.mean(held)), float(np.mean([one.high - one.low for one in found]))


def students(setting: Setting) -> tuple[float, float]:
    middle, error = setting.samples.mean(axis=1), stats.sem(setting.samples, axis=1)
    reach = stats.t.ppf(0.975, setting.rows - 1) * error
    return float(np.mean(np.abs(middle - setting.truth) <= reach)), float(np.mean(2 * reach))


def bca(setting: Setting) -> float:
    varied = setting.samples[:BCA_SAMPLES]
    varied = varied[varied.std(axis=1) > 0]  # without any spread it has no interval: a miss
    found = stats.bootstrap((varied,), np.mean, axis=1, n_resamples=999, batch=100, rng=np.random.default_rng(1)).confidence_interval
    return float(np.sum((found.low <= setting.truth) & (setting.truth <= found.high)) / BCA_SAMPLES)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=2000)
    samples, luck, began = options.parse_args().samples, np.random.default_rng(7), time.process_time()
    seen: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {}
    few: dict[str, tuple[float, float, float]] = {}
    for setting in itertools.chain(rewards(luck, samples), changes(luck, samples)):
        both = ours(setting), students(setting)
        seen.setdefault(setting.kind, []).append(both)
        if setting.rows == ROWS[0] and setting.tries == 1 and setting.kind not in few:
            few[setting.kind] = both[0][0], both[1][0], bca(setting)
    print(f"how often an interval of 95% holds the truth; {samples:,} samples a setting")
    columns = f"{'mean':>7}{'< 93%':>7}{'width':>7}"
    print(f"  {'':24}{'settings':>9}{'ours: least':>13}{columns}{'Student: least':>16}{columns}")
    for kind, found in seen.items():
        print(f"  {kind:24}{len(found):9}{_told([one for one, _ in found], 13)}{_told([one for _, one in found], 16)}")
    print(f"  the first setting of each kind at {ROWS[0]} rows, one try, beside BCa: ours, Student, BCa")
    for kind, (mine, theirs, bootstrap) in few.items():
        print(f"  {kind:24}{mine:9.3f}{theirs:9.3f}{bootstrap:9.3f}")
    least = [min(one[at][0] for found in seen.values() for one in found) for at in (0, 1)]
    conditions = {
        "samples": samples,
        "settings": sum(map(len, seen.values())),
        "least_coverage": round(least[0], 4),
        "students_least": round(least[1], 4),
        "below_93": sum(one[0][0] < ENOUGH for found in seen.values() for one in found),
        "students_below_93": sum(one[1][0] < ENOUGH for found in seen.values() for one in found),
        "cpu_seconds": round(time.process_time() - began),
    }
    unit = "misses in the worst setting"
    ratio = round((1 - least[1]) / (1 - least[0]), 2)
    print()
    print(json.dumps({"bench": "intervals", "peer": "Student's interval (scipy)", "ratio": ratio, "unit": unit, "conditions": conditions}))


def _told(found: list[tuple[float, float]], first: int) -> str:
    coverage = [one for one, _ in found]
    width = np.mean([one for _, one in found])
    return f"{min(coverage):{first}.3f}{np.mean(coverage):7.3f}{sum(one < ENOUGH for one in coverage):7}{width:7.3f}"


if __name__ == "__main__":
    main()
