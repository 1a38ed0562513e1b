"""100,000 rows read, validated, split and leak-checked, beside the limits: a minute and 1 GB.

Half the rows are the running example's generated questions, which share nearly all of their phrasing; half are free prose. Copies
of training rows are planted in validation, each changed in one known way. What was found of each kind, and what was called a leak
without being one, is counted: by construction no two other rows ask the same. Each repeat is a process of its own, so that its
memory is its own; the first line of the table is the median.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent_rft.contracts.rows import Row
from agent_rft.datasets.filings import as_row, company_names, make_filings, make_questions
from agent_rft.datasets.near import FILLER, SHORTEST_MISSPELT
from agent_rft.datasets.rows_io import read_rows, validate_files, write_rows
from agent_rft.datasets.split import split_rows

LIMIT_SECONDS, LIMIT_MB = 60.0, 1000.0
TRAIN, VAL = "train.jsonl", "val.jsonl"
Change = Callable[[str, random.Random], str]


# --- what is planted ----------------------------------------------------------------------------------------------------


def same_but_for_its_looks(prompt: str, rng: random.Random) -> str:
    return "  ".join(prompt.upper().split()).rstrip("?.") + " !"


def other_order(prompt: str, rng: random.Random) -> str:
    """The second half first, which is what a rewording mostly does; a word at the front loses nothing by it."""
    words = prompt.rstrip("?.").split()
    return " ".join(words[len(words) // 2 :] + words[: len(words) // 2])


def other_filler(prompt: str, rng: random.Random) -> str:
    return f"Please tell me: {' '.join(word for word in prompt.split() if word.casefold() not in FILLER)}"


def one_wrong_letter(prompt: str, rng: random.Random) -> str:
    """In an ordinary word: in a name or a number it would be another one."""
    words = prompt.rstrip("?").split()
    at = rng.choice(ordinary(words, SHORTEST_MISSPELT))
    place = rng.randrange(1, len(words[at]))
    words[at] = words[at][:place] + "x" + words[at][place + 1 :]
    return " ".join(words)


def one_word_less(prompt: str, rng: random.Random) -> str:
    words = prompt.rstrip("?").split()
    at = rng.choice(ordinary(words))
    return " ".join(words[:at] + words[at + 1 :])


def ordinary(words: Sequence[str], shortest: int = 1) -> list[int]:
    return [at for at, word in enumerate(words) if word.isalpha() and word.islower() and len(word) >= shortest]


def fits(kind: str, row: Row) -> bool:
    """A question that is short but for its names and numbers has no word to misspell, and none to spare."""
    shortest = {"letter": SHORTEST_MISSPELT, "word less (prose)": 1}.get(kind, 0)
    return bool(ordinary(row.prompt.rstrip("?").split(), shortest)) and (row.task_type == "prose" or kind != "word less (prose)")


CHANGES: dict[str, Change] = {
    "looks": same_but_for_its_looks,
    "order": other_order,
    "filler": other_filler,
    "letter": one_wrong_letter,
    "word less (prose)": one_word_less,
}


def planted(rows: Sequence[Row], count: int, rng: random.Random) -> list[Row]:
    """`count` copies of each kind; their ids say of what they are copies."""
    copies: list[Row] = []
    for kind, change in CHANGES.items():
        for row in rng.sample([row for row in rows if fits(kind, row)], count):
            copies.append(msgspec.structs.replace(row, id=f"{kind}/{row.id}", prompt=change(row.prompt, rng)))
    return copies


# --- the rows -----------------------------------------------------------------------------------------------------------


def templated(count: int, rng: random.Random) -> list[Row]:
    filings = make_filings(company_names(4000, rng), rng)
    questions = make_questions(filings, {"easy": count // 4, "medium": count // 2, "hard": count - count // 4 - count // 2}, 0.15, rng)
    return [as_row(question, f"templated-{number}") for number, question in enumerate(questions)]


def prose(count: int, rng: random.Random) -> list[Row]:
    """Twenty to sixty words drawn as languages draw them: few words often, many seldom."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({"".join(rng.choices(letters, k=rng.randint(3, 11))) for _ in range(40_000)})
    rng.shuffle(words)
    shares = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
    rows: list[Row] = []
    for number in range(count):
        said = rng.choices(words, cum_weights=shares, k=rng.randint(20, 60))
        said[0] = said[0].capitalize()
        metadata = {"task_type": "prose", "difficulty": rng.choice(("easy", "hard"))}
        rows.append(Row(f"prose-{number}", f"{' '.join(said)}?", str(number), metadata=metadata))
    return rows


# --- one repeat ---------------------------------------------------------------------------------------------------------


def work(folder: Path, plants: int, seed: int) -> dict[str, object]:
    """What counts is the time of the reading, splitting and checking; making the planted copies is not in it."""
    began = time.perf_counter()
    report = validate_files({"train": folder / "rows.jsonl"})
    assert not report.faults
    read_and_validated = time.perf_counter()
    rows = read_rows(folder / "rows.jsonl")
    train, val = split_rows(rows, 0.2, seed)
    del rows
    split = time.perf_counter()
    copies = planted(train, plants, random.Random(seed))
    write_rows(folder / TRAIN, train)
    write_rows(folder / VAL, [*val, *copies])
    del train, val, copies
    written = time.perf_counter()
    leaks = validate_files({"train": folder / TRAIN, "val": folder / VAL}).leaks
    checked = time.perf_counter()
    found = Counter(leak.row_id.partition("/")[0] for leak in leaks if "/" in leak.row_id)
    return {
        "seconds": {"validate": read_and_validated - began, "split": split - read_and_validated, "leak check": checked - written},
        "total": checked - written + split - began,
        "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "recall": {kind: found[kind] / plants for kind in CHANGES},
        "false_alarms": sum("/" not in leak.row_id for leak in leaks),
    }


def report(runs: Sequence[dict[str, dict[str, float]]], rows: int, plants: int) -> None:
    totals, peaks = [float(run["total"]) for run in runs], [float(run["mb"]) for run in runs]  # pyright: ignore[reportArgumentType]
    seconds, peak = statistics.median(totals), max(peaks)
    print(f"{rows:,} rows: {seconds:.1f} s ({min(totals):.1f} to {max(totals):.1f}), at most {peak:.0f} MB")
    for part in runs[0]["seconds"]:
        print(f"  {part:12}{statistics.median(run['seconds'][part] for run in runs):6.1f} s")
    recall = {kind: round(statistics.mean(run["recall"][kind] for run in runs), 4) for kind in CHANGES}
    for kind, share in recall.items():
        print(f"  found of planted, {kind:20}{share:8.1%}")
    alarms = max(run["false_alarms"] for run in runs)
    print(f"  called a leak without being one: {alarms} of {rows // 5:,} validation rows")
    line = {
        "bench": "datasets",
        "peer": "limits: 60 s and 1 GB for 100,000 rows",
        "ratio": round(min(LIMIT_SECONDS * rows / 100_000 / seconds, LIMIT_MB / peak), 2),
        "unit": "limit over measured, the tighter of time and memory",
        "conditions": {
            "rows": rows,
            "seconds": round(seconds, 1),
            "peak_mb": round(peak),
            "repeats": len(runs),
            "planted_of_each_kind": plants,
            "recall": recall,
            "false_alarms": alarms,
        },
    }
    print(json.dumps(line))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--plants", type=int, default=400, help="copies of each kind")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given, _ = options.parse_known_args()
    if given.work:
        print(json.dumps(work(given.work, given.plants, given.seed)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(0)
        rows = [*templated(given.rows // 2, rng), *prose(given.rows - given.rows // 2, rng)]
        rng.shuffle(rows)
        write_rows(Path(folder) / "rows.jsonl", rows)
        del rows
        runs: list[dict[str, dict[str, float]]] = []
        for seed in range(given.repeats):
            command = [sys.executable, __file__, "--work", folder, "--plants", str(given.plants), "--seed", str(seed)]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    report(runs, given.rows, given.plants)


if __name__ == "__main__":
    main()
