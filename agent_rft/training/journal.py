"""metrics.jsonl: one line a step, durable line by line, the same for every engine. A step at which a guard ended the run, and which was
made again since, has a line for each time; all but the last say that they are undone."""

from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.guards import ENDING
from agent_rft.contracts.training import StepMetrics


class MetricsFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, metrics: StepMetrics) -> None:
        with self._path.open("ab") as file:
            file.write(_encoded(metrics))
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[StepMetrics]:
        """The run as it stands, one a step."""
        return [line for line in self._whole() if not line.undone]

    def undone(self) -> list[StepMetrics]:
        """Steps at which a guard ended the run and which were made again since: why it was ended is told by these alone."""
        return [line for line in self._whole() if line.undone]

    def rewind(self, step: int) -> list[StepMetrics]:
        """Keep the lines before `step`, and forget what a killed run wrote after them; what ended a run is kept, as undone."""
        kept = [_rewound(line, step) for line in self._whole() if line.undone or line.step < step or _ended(line)]
        whole = self._path.with_suffix(".tmp")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(b"".join(map(_encoded, kept)))
        whole.replace(self._path)
        return [line for line in kept if not line.undone]

    def _whole(self) -> list[StepMetrics]:
        """Lines that are whole: a run killed while writing leaves half a line at most, which is the last and has no end."""
        found: list[StepMetrics] = []
        raws = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        for number, raw in enumerate(raws, 1):
            try:
                found.append(msgspec.json.decode(raw, type=StepMetrics))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                if raw.endswith(b"\n"):
                    cure = "it was changed by another hand: put the line right, or take it out, and nothing after it is lost"
                    raise UserError(f"{self._path}, line {number} cannot be read: {error}", cure) from None
        return found


def _encoded(line: StepMetrics) -> bytes:
    """JSON has no infinity: where a line's own field is then null, a figure that is no number is left out."""
    numbers = {key: value for key, value in line.figures.items() if math.isfinite(value)}
    return msgspec.json.encode(msgspec.structs.replace(line, figures=numbers)) + b"\n"


def _ended(line: StepMetrics) -> bool:
    return any(finding.action in ENDING for finding in line.findings)


def _rewound(line: StepMetrics, step: int) -> StepMetrics:
    return line if line.step < step else msgspec.structs.replace(line, undone=True)
