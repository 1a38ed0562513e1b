"""What guards point at, and the random audit sample, wait for a reviewer while the run still goes on. None of it may hold a run up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from sqlalchemy.exc import SQLAlchemyError

from agent_rft.commands.access import me
from agent_rft.commands.parts import Parts, console
from agent_rft.contracts.errors import InfraError, UserError
from agent_rft.contracts.training import StepMetrics
from observability.dossier import NotThere
from observability.queue import flag_for
from observability.states import LONGEST_WORDS

AUDIT = "random_audit"
LAST_FLAGS_SECONDS = 60.0
"""That a run which is over waits for its last flags."""
PATIENCE = 20
"""Steps for which a card is waited for."""
Flag = Callable[[StepMetrics], None]


@contextmanager
def flagging(parts: Parts) -> Generator[Flag]:
    """What it gives is told of each step, and returns at once. A card server takes no flags; the findings are in metrics.jsonl."""
    lines = SimpleQueue[StepMetrics | None]()
    if parts.store is None:
        yield lambda line: None
        return
    thread = threading.Thread(target=_flag_all, args=(parts, lines), name="flags", daemon=True)
    thread.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        thread.join(LAST_FLAGS_SECONDS)
        if thread.is_alive():
            silent = f"the store has not answered for {LAST_FLAGS_SECONDS:.0f} s"
            console.print(f"warning: {silent}: what guards found last is in metrics.jsonl, and in no review queue", style="yellow")


def _flag_all(parts: Parts, lines: SimpleQueue[StepMetrics | None]) -> None:
    """A card that is not there yet may be another process's, which is still putting it down: asked for again after the next step."""
    late: list[StepMetrics] = []
    while line := lines.get():
        late = [one for one in (*late, line) if not _flagged(parts, one, last=line.step - one.step >= PATIENCE)]
    for line in late:
        _flagged(parts, line, last=True)


def _flagged(parts: Parts, line: StepMetrics, last: bool) -> bool:
    """False: it is to be tried again."""
    try:
        _flag(parts, line)
    except NotThere as error:
        if last:
            _tell(line, error)
        return last
    except (UserError, InfraError, SQLAlchemyError) as error:
        _tell(line, error)
    return True


def _tell(line: StepMetrics, error: Exception) -> None:
    told = str(error).splitlines()[0]
    console.print(f"warning: what guards found at step {line.step} was not put into the review queue: {told}", style="yellow")


def _flag(parts: Parts, line: StepMetrics) -> None:
    """A card can be flagged once it is in the store."""
    if parts.store is None or not (wanted := list(_wanted(line))):
        return
    parts.recorder.flush()
    for name, rollouts, why in wanted:
        flag_for(parts.store, me(parts.settings.store.tenant), rollouts, name, why[:LONGEST_WORDS])


def _wanted(line: StepMetrics) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Name of the flag, rollouts, why."""
    for finding in line.findings:
        if finding.rollouts:
            yield finding.guard, finding.rollouts, f"step {line.step}: {finding.what}"
    if line.audit:
        yield AUDIT, line.audit, f"drawn at random from step {line.step}"
