"""Everything that is wrong with a dataset, at once, each with file and line; what is doubtful; and what is in it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from agent_rft.contracts.errors import Fault, did_you_mean
from agent_rft.contracts.ports import Grader
from agent_rft.contracts.rows import Row
from agent_rft.datasets.curriculum import COPY_OF
from agent_rft.datasets.leaks import Leak, Placed, leaks_and_turned, normalised, turned_told
from agent_rft.datasets.rows import Line, parse_line
from agent_rft.datasets.split import stratum_of
from agent_rft.graders.samples import SAID_NOTHING

FEWEST_ROWS, MOST_ROWS = 200, 1000
LEAST_HELD_OUT, MOST_HELD_OUT = 0.10, 0.20
SAMPLE = "{{sample."
"""How a template begins to name what a try has brought, and no row."""


class Count(msgspec.Struct, frozen=True):
    """One line of the distribution table."""

    split: str
    task_type: str
    difficulty: str
    rows: int
    share: float
    """Of the split's rows."""


class Report(msgspec.Struct, frozen=True):
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    counts: tuple[Count, ...]
    sizes: dict[str, int]
    """Rows that could be read, by split."""
    shared_evidence: int
    """Validation rows that ask for the same metric of the same document as a training row: allowed, but told."""
    leaks: tuple[Leak, ...] = ()
    """Told above as faults (the same question) and warnings (nearly the same)."""


def validate(
    contents: Mapping[str, Sequence[tuple[str, bytes]]], known_tools: Collection[str] | None = None, grader: Grader | None = None
) -> Report:
    """`contents`: the files of each split ("train", "val") as (name, bytes)."""
    lines = {split: [line for name, content in files for line in parse_lines(name, content)] for split, files in contents.items()}
    every = [line for of_split in lines.values() for line in of_split]
    faults = [fault for split, files in contents.items() if not lines[split] for fault in _no_rows(split, files)]
    faults += [fault for line in every for fault in line.faults] + _duplicate_ids(every)
    for line in every:
        faults += _unknown_tools(line, known_tools) if known_tools is not None else []
    faults += _unusable(every, grader) if grader else []
    rows = {split: [(line.where, line.row) for line in of_split if line.row] for split, of_split in lines.items()}
    train, val = rows.get("train", []), rows.get("val", [])
    leaks, turned = leaks_and_turned(train, val)
    same, near = ([leak.fault() for leak in leaks if leak.kind == kind] for kind in ("same", "near"))
    return Report(
        faults=tuple(_in_order(faults + same, every)),
        warnings=(
            *_size_advice(rows),
            *_lopsided(train, val),
            *near,
            *filter(None, [turned_told(turned, len(val))]),
            *(warning for placed in rows.values() for warning in _asked_twice(placed)),
        ),
        counts=tuple(count for split, placed in rows.items() for count in counts_of(split, placed)),
        sizes={split: len(placed) for split, placed in rows.items()},
        shared_evidence=_shared_evidence(train, val),
        leaks=tuple(leaks),
    )


def parse_lines(name: str, content: bytes) -> list[Line]:
    """A byte-order mark, blank lines and CRLF are nobody's fault. Rows without an id are called FILE:LINE."""
    short = name.replace("\\", "/").rsplit("/", 1)[-1]
    lines = io.BytesIO(content.removeprefix(b"\xef\xbb\xbf"))
    return [parse_line(line.strip(), f"{name}:{n}", f"{short}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]


# --- faults -------------------------------------------------------------------------------------------------------------


def _no_rows(split: str, files: Sequence[tuple[str, bytes]]) -> list[Fault]:
    return [Fault(name, "holds no rows", f"the {split} split needs some, one JSON object a line") for name, _ in files]


def _duplicate_ids(lines: Sequence[Line]) -> list[Fault]:
    first: dict[str, str] = {}
    found: list[Fault] = []
    for line in lines:
        held = line.row.id if line.row else (line.value or {}).get("id")
        if not isinstance(held, str):
            continue
        if held in first:
            found.append(
                Fault(line.where, f"id '{held}' is already taken at {first[held]}", "each row needs an id of its own, over all files")
            )
        first.setdefault(held, line.where)
    return found


def _unknown_tools(line: Line, known: Collection[str]) -> list[Fault]:
    return [
        Fault(line.where, f"unknown tool '{name}'", did_you_mean(name, known))
        for name in (_tools_of(line.row) if line.row else _tool_names(line.value or {}))
        if name not in known
    ]


def _tools_of(row: Row) -> list[str]:
    return list(dict.fromkeys([*(tool.name for tool in row.tools), *row.expected.must_use_tools]))


def _tool_names(value: dict[str, Any]) -> list[str]:
    """Every tool that a row names, each once; whatever has another shape is told elsewhere."""
    tools, expected = value.get("tools"), value.get("expected")
    specs = [cast(dict[str, Any], tool) for tool in cast(list[Any], tools) if isinstance(tool, dict)] if isinstance(tools, list) else []
    bodies = [spec.get("function", spec) for spec in specs]
    required = cast(dict[str, Any], expected).get("must_use_tools") if isinstance(expected, dict) else None
    names = [cast(dict[str, Any], body).get("name") for body in bodies if isinstance(body, dict)]
    names += cast(list[Any], required) if isinstance(required, list) else []
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _unusable(lines: Sequence[Line], grader: Grader) -> list[Fault]:
    """Asks the grader itself, of a try that said nothing: what it cannot read it says so about. What no row can help is told once."""
    name, found = grader.ref.name, dict[str, Fault]()
    for line in lines:
        what = _unread(line, grader)
        if SAMPLE in what:
            found[SAMPLE + what] = Fault(f"grader '{name}'", what, f"a sample has {', '.join(sorted(SAID_NOTHING))} and output_json")
        elif what:
            cure = "mend the row, or name another grader by grader.file=FILE or grader.name=NAME"
            found[line.where] = Fault(line.where, f"grader '{name}' cannot use this row: {what}", cure)
    return list(found.values())


def _unread(line: Line, grader: Grader) -> str:
    value = line.value or {}
    if line.row is None and not value.get("reference_answer"):
        return ""
    errors = grader.grade(line.row.item() if line.row else value, SAID_NOTHING).errors
    return next((what for flag, what in errors.items() if flag.rpartition(".")[2] == "invalid_variable_error"), "")


def _in_order(faults: Iterable[Fault], lines: Sequence[Line]) -> list[Fault]:
    place = {line.where: position for position, line in enumerate(lines)}
    return sorted(faults, key=lambda fault: place.get(fault.where, -1))  # a whole file's come first


# --- warnings -----------------------------------------------------------------------------------------------------------


def _size_advice(rows: Mapping[str, Sequence[Placed]]) -> list[Fault]:
    train, val = len(rows.get("train", ())), len(rows.get("val", ()))
    found: list[Fault] = []
    if "train" in rows and not FEWEST_ROWS <= train <= MOST_ROWS:
        found.append(Fault("train", f"{train} rows", f"{FEWEST_ROWS} to {MOST_ROWS:,} work best"))
    if "train" in rows and "val" in rows and train + val:
        share = round(val / (train + val), 2)
        if not LEAST_HELD_OUT <= share <= MOST_HELD_OUT:
            found.append(Fault("val", f"{share:.0%} of the rows are held out", f"{LEAST_HELD_OUT:.0%} to {MOST_HELD_OUT:.0%} is usual"))
    return found


def _lopsided(train: Sequence[Placed], val: Sequence[Placed]) -> list[Fault]:
    """A stratum that only one side has: its gains or its losses would go unseen."""
    if not train or not val:
        return []
    of_train, of_val = ({stratum_of(row) for _, row in placed} for placed in (train, val))
    missing = [("val", stratum) for stratum in sorted(of_train - of_val)] + [("train", stratum) for stratum in sorted(of_val - of_train)]
    return [
        Fault(split, f"no row of task type '{task}', difficulty '{difficulty}'", "split by both") for split, (task, difficulty) in missing
    ]


def _asked_twice(placed: Sequence[Placed]) -> list[Fault]:
    first: dict[str, Placed] = {}
    found: list[Fault] = []
    for where, row in placed:
        before, other = first.setdefault(normalised(row), (where, row))
        if before != where and row.metadata.get(COPY_OF) != other.id:
            how = "" if other.reference_answer == row.reference_answer else ", and expects another answer"
            found.append(Fault(where, f"'{row.id}' asks the same as {before}{how}", "keep one of them"))
    return found


# --- counts -------------------------------------------------------------------------------------------------------------


def counts_of(split: str, placed: Sequence[Placed]) -> list[Count]:
    strata = Counter(stratum_of(row) for _, row in placed)
    return [Count(split, *stratum, rows, rows / len(placed)) for stratum, rows in sorted(strata.items())]


def _shared_evidence(train: Sequence[Placed], val: Sequence[Placed]) -> int:
    def asked(row: Row) -> tuple[object, object]:
        return row.expected.evidence_path, str(row.metadata.get("metric"))

    in_train = {asked(row) for _, row in train if row.expected.evidence_path}
    return sum(asked(row) in in_train for _, row in val)
