"""A real server over three filings, in a process of its own: `toy_server.py PORT [failure_rate=0.1 hang_rate=...]`."""

import sys

from agent_rft.contracts.grades import Grade, GraderRef
from agent_rft.datasets.filings import TOOLS
from serving.app import create_app
from serving.server import serve
from serving.tools.corpus import CorpusTools
from serving.tools.faults import FlakyTools

FILINGS = {
    "filings/atlas-10k-2024.html": "Atlas fiscal 2024\nrevenue: $400M\ngross margin: 28.7%",
    "filings/henderson-10q-2025-q3.html": "Henderson Q3 2025\nrevenue: $842M\noperating margin: 13.4%",
    "filings/henderson-10q-2024-q3.html": "Henderson Q3 2024\nrevenue: $790M\noperating margin: 12.0%",
}


class Exact:
    ref = GraderRef("exact", "1", "abc")

    def grade(self, item, sample):
        return Grade(self.ref, 1.0 if sample["output_text"] == item["reference_answer"] else 0.0, parts={"said": sample["output_text"]})


if __name__ == "__main__":
    import os

    faults = {name: float(value) for name, _, value in (argument.partition("=") for argument in sys.argv[2:])}
    deadline = faults.pop("deadline", 15.0)
    app = create_app(
        FlakyTools(CorpusTools(FILINGS, TOOLS), **faults),
        {"exact": Exact()},
        os.environ.get("TOOL_BEARER"),
        call_deadline_seconds=deadline,
        max_body_bytes=100_000,
    )
    serve(app, "127.0.0.1", int(sys.argv[1]))
