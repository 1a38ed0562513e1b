"""A process that records for ever and prints the ids that `flush` has acknowledged: something to kill."""

from __future__ import annotations

import itertools
import sys

from sample_cards import make_card

from observability.ingest import StoreRecorder
from observability.store import open_store

url, prefix = sys.argv[1:]
recorder = StoreRecorder(open_store(url))
for number in itertools.count():
    ids = [f"{prefix}-{number}-{i}" for i in range(7)]
    for rollout_id in ids:
        recorder.record(make_card(rollout_id))
    recorder.flush()
    print("\n".join(ids), flush=True)
