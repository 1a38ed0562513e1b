"""The card server that is killed: `server.py URL PORT` starts one for each line that it reads, and prints its process id.

It has imported everything once and forks: two hundred starts are two hundred new processes, but take no hour.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from agent_rft.datasets.filings import TOOLS
from observability.follower import Follower
from observability.intake import Intake
from observability.redaction.detectors import detectors_of
from observability.store import open_store
from serving.app import create_app
from serving.server import serve
from serving.tools.corpus import CorpusTools

SET_DEATH_SIGNAL = 1


def serve_cards(url: str, port: int) -> None:
    """As `rft serve` does, over tools that are made at once."""
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)  # no longer than this program
    store, detectors = open_store(url), detectors_of(True)
    Follower(store, detectors)
    serve(create_app(CorpusTools({"a.html": "revenue"}, TOOLS), {}, "x", store=store, intake=Intake(store, detectors)), "127.0.0.1", port)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    for _ in sys.stdin:
        if child := os.fork():
            print(child, flush=True)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve_cards(sys.argv[1], int(sys.argv[2]))
            os._exit(0)
