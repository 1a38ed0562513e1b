"""One warm sandbox for all tests of graded code; where bubblewrap cannot run, they are skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent_rft.contracts.errors import UserError
from agent_rft.graders.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    try:
        started = Sandbox(workers=2)
    except UserError as error:
        pytest.skip(f"no sandbox here: {error.what}")
    with started:
        yield started
