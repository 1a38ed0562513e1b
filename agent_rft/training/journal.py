"""metrics.jsonl: one line a step, durable line by line, the same for every engine."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from agent_rft.contracts.training import StepMetrics


class MetricsFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, metrics: StepMetrics) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(metrics) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[StepMetrics]:
        """Those that are whole: a run killed while writing leaves half a line at most."""
        found: list[StepMetrics] = []
        for raw in self._path.read_bytes().splitlines() if self._path.exists() else ():
            try:
                found.append(msgspec.json.decode(raw, type=StepMetrics))
            except msgspec.DecodeError:
                break
        return found

    def rewind(self, step: int) -> list[StepMetrics]:
        """Keep the lines before `step`, and forget what a killed run wrote after them."""
        kept = [line for line in self.lines() if line.step < step]
        whole = self._path.with_suffix(".tmp")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
        whole.replace(self._path)
        return kept
