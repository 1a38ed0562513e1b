"""A process that records for a server that is away, and prints the ids of cards once they are in the spool: something to kill."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from sample_cards import make_card

from observability.remote import CardServer, HttpRecorder

url, folder, prefix = sys.argv[1:]
recorder = HttpRecorder(CardServer(url, "the-key"), Path(folder))
for number in itertools.count():
    before = sum(path.stat().st_size for path in Path(folder).glob("*.spool"))
    recorder.record(make_card(f"{prefix}-{number}"))
    while sum(path.stat().st_size for path in Path(folder).glob("*.spool")) == before:
        time.sleep(0.001)
    print(f"{prefix}-{number}", flush=True)
