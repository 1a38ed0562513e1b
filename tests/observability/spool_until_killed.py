"""A process that fills a spool and empties it into a server, for ever, and prints what `keep` has accepted: something to kill.

The server is a file of ids. It goes wrong at random: it takes nothing, or takes the cards and the answer is lost.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
from pathlib import Path

import structlog

from agent_rft.contracts.retries import TryAgain
from observability.spool import Patience, Sender, Spool

folder, server, prefix = sys.argv[1:]
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
spool = Spool(Path(folder), max_bytes=50_000_000, segment_bytes=20_000)
taken = os.open(server, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def post(cards):
    if random.random() < 0.1:
        raise TryAgain("busy")
    for card in cards:
        name, _, body = card.partition(b" ")
        assert body == name * 50, "a card came out other than it went in"
    os.write(taken, b"".join(card.partition(b" ")[0] + b"\n" for card in cards))
    if random.random() < 0.1:
        raise TryAgain("the answer was lost")
    return {}


def send() -> None:
    Sender(spool, post, Patience(batch_cards=7, backoff_seconds=0.001, longest_seconds=0.01, idle_seconds=0.001)).run(threading.Event())


threading.Thread(target=send, daemon=True).start()
for number in itertools.count():
    names = [f"{prefix}-{number}-{i}" for i in range(random.randint(1, 5))]
    spool.keep([f"{name} {name * 50}".encode() for name in names])
    print("\n".join(names), flush=True)
