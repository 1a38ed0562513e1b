"""A process that opens a store when told to, records some cards and closes. Several of it start at the same moment."""

from __future__ import annotations

import sys

from sample_cards import make_card

from observability.ingest import StoreRecorder
from observability.store import open_store

url, prefix, count = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with StoreRecorder(open_store(url)) as recorder:
    for number in range(int(count)):
        recorder.record(make_card(f"{prefix}-{number}"))
