"""A tool server in production, in a process of its own: `production_server.py PORT URL FILE`. `append` adds a line to the file, then
takes as long as its arguments say. It ends with `kill -9` at the latest."""

import os
import sys
import time
from contextlib import closing
from pathlib import Path

from agent_rft.contracts.messages import ToolSpec
from observability.store import open_store
from serving.app import create_app
from serving.production_tools import Rules
from serving.server import serve


class Appending:
    specs = (ToolSpec("append", "Adds a line.", {"type": "object", "properties": {"line": {"type": "string"}}}),)
    version = "1"
    changes = frozenset({"append"})

    def __init__(self, file):
        self.file = file

    def call(self, name, arguments):
        with self.file.open("a") as out:
            out.write(arguments["line"] + "\n")
        time.sleep(arguments.get("seconds", 0))
        return f"wrote {arguments['line']}", None


if __name__ == "__main__":
    with closing(open_store(sys.argv[2])) as store:
        rules = Rules(high_impact=frozenset({"append"}))
        tools = Appending(Path(sys.argv[3]))
        app = create_app(tools, {}, os.environ["TOOL_BEARER"], store=store, production=rules, call_deadline_seconds=2.0)
        serve(app, "127.0.0.1", int(sys.argv[1]))
