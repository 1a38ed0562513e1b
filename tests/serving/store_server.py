"""A real server over a store, in a process of its own: `store_server.py PORT URL`. It ends with `kill -9` at the latest."""

import sys
from contextlib import closing

from litestar import Litestar, get

from observability.follower import Follower
from observability.intake import Intake
from observability.redaction.detectors import detectors_of
from observability.roots import LedgerFiles
from observability.store import open_store
from serving.app import store_routes
from serving.server import serve


@get("/health")
async def health() -> str:
    return "ok"


if __name__ == "__main__":
    store, detectors = open_store(sys.argv[2]), detectors_of(True)
    with closing(store), closing(Intake(store, detectors)) as intake, closing(Follower(store, detectors, busy=intake.busy)):
        app = Litestar([store_routes(store, LedgerFiles.of(store, None), intake), health], logging_config=None)
        serve(app, "127.0.0.1", int(sys.argv[1]))
