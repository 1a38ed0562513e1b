"""`make bench`: every bench in turn, each beside its peer. With --write their last lines go into docs/measurements.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "docs" / "measurements.md"


def run(bench: Path) -> dict[str, object]:
    """What a bench says of itself in its last line; everything it prints is shown as it comes."""
    last = ""
    with subprocess.Popen([sys.executable, str(bench)], stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            last = line if line.strip() else last
    if running.returncode:
        sys.exit(f"{bench.name} ended with code {running.returncode}")
    return json.loads(last)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"append the results to docs/{RECORD.name}")
    write = parser.parse_args().write
    results = [run(bench) for bench in sorted(HERE.glob("[a-z]*.py"))]
    if write:
        rows = [f"| {r['bench']} | {r['peer']} | {r['ratio']} | {r['unit']} | `{json.dumps(r['conditions'])}` |" for r in results]
        table = [
            "",
            f"## {datetime.now(UTC):%Y-%m-%d}",
            "",
            "| bench | peer | ratio | unit | conditions |",
            "| --- | --- | --- | --- | --- |",
        ]
        with RECORD.open("a", encoding="utf-8") as record:
            record.write("\n".join([*table, *rows]) + "\n")


if __name__ == "__main__":
    main()
