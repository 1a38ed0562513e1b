"""What one sees while it runs: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agent_rft.contracts.graded import GradedRollout
from agent_rft.contracts.guards import Finding
from agent_rft.contracts.training import StepMetrics
from agent_rft.evaluation.tries import score_of

RECENT_STEPS = 12
"""Steps without validation that stay in sight; validated ones all stay."""
COLUMNS = (("step", 4), ("val_reward", 10), ("tool_calls", 10), ("kl_to_ref", 9), ("loss", 6), ("infra", 6), ("tok/s", 6), ("left", 7))
"""Name and width."""
TRAIN_REWARD = "train_reward"

Clock = Callable[[], float]


class Line(msgspec.Struct, frozen=True):
    """One step as it is shown."""

    validated: bool
    cells: tuple[str, ...]
    """In the order of COLUMNS."""
    train_reward: str


def line_of(metrics: StepMetrics, seconds_left: float | None) -> Line:
    """The words of one step. A validated step shows the validation's tool calls, as its reward is the validation's. Under infra
    stands the share of the step's rollouts that infrastructure failed, graders included."""
    calls = metrics.tool_calls if metrics.val_tool_calls is None else metrics.val_tool_calls
    cells = (
        str(metrics.step),
        _number(metrics.val_reward, "{:.2f}"),
        _number(calls, "{:.1f}"),
        _number(metrics.kl_to_ref, "{:.3f}"),
        _number(metrics.loss, "{:.2f}"),
        _number(metrics.infra_failures / metrics.rollouts if metrics.rollouts else None, "{:.1%}"),
        _number(metrics.tokens / metrics.seconds if metrics.tokens and metrics.seconds else None, "{:.0f}"),
        spell_seconds(seconds_left),
    )
    return Line(metrics.val_reward is not None, cells, _number(metrics.train_reward, "{:.2f}"))


def _number(value: float | None, form: str) -> str:
    """Without the minus of a rounded nothing."""
    if value is None:
        return "·"
    text = form.format(value)
    return text.lstrip("-") if not text.strip("-0.") else text


def spell_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "·"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def warned(finding: Finding) -> str:
    """What a guard said, in a line: a run that it ends has its cure with its last words."""
    begins = f"{finding.guard} {'warns' if finding.action == 'warn' else 'ends the run'}: {finding.what}"
    return f"{begins} ({finding.cure})" if finding.action == "warn" else begins


def plain_line(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))


class LiveTable:
    """`with LiveTable(total) as table: ... table.step(metrics, total)`."""

    def __init__(self, total_steps: int | None, console: Console | None = None, clock: Clock = time.monotonic) -> None:
        self._total, self._console, self._clock = total_steps, console or Console(), clock
        self._lines: deque[Line] = deque()
        self._began, self._first_step = clock(), 0
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> LiveTable:
        self._began = self._clock()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def step(self, metrics: StepMetrics, total: int) -> None:
        """Take in one step: this is a training engine's `on_step`."""
        self._total = total
        line = line_of(metrics, self._seconds_left(metrics.step, total))
        if self._live:
            self._keep(line)
            self._live.update(self._table(), refresh=True)
        else:
            self._print(line)
        for finding in metrics.findings:
            self._console.print(f"step {metrics.step}, {warned(finding)}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _seconds_left(self, step: int, total: int) -> float | None:
        """By the pace of this sitting: a resumed run starts anywhere. The first step tells no pace yet."""
        if not self._lines:
            self._first_step, self._began = step, self._clock()
            return None
        done = step - self._first_step
        return (self._clock() - self._began) / done * max(total - step, 0) if done > 0 else None

    def _keep(self, line: Line) -> None:
        self._lines.append(line)
        passing = [one for one in self._lines if not one.validated]
        if len(passing) > RECENT_STEPS:
            self._lines.remove(passing[0])

    def _print(self, line: Line) -> None:
        """Logs get the validated steps; the others are in metrics.jsonl."""
        if not self._lines:
            self._console.out(plain_line(tuple(name for name, _ in COLUMNS)), highlight=False)
        self._lines.append(line)
        if line.validated:
            self._console.out(plain_line(line.cells), highlight=False)

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, title=f"training, {self._total} steps", title_justify="left", pad_edge=False)
        names = [name for name, _ in COLUMNS]
        for name in (*names[:2], TRAIN_REWARD, *names[2:]):
            table.add_column(name, justify="right", no_wrap=True)
        for line in self._lines:
            cells = (*line.cells[:2], line.train_reward, *line.cells[2:])
            table.add_row(*cells, style="bold" if line.validated else "dim")
        return table


class _Tally:
    """Counts what comes back, so that the bar tells more than how much."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.done = 0

    def take(self, graded: GradedRollout) -> None:
        self.done += 1
        reward = score_of(graded)
        if reward is not None:
            self.rewards.append(reward)

    def __str__(self) -> str:
        lost = self.done - len(self.rewards)
        said = f"reward {sum(self.rewards) / len(self.rewards):.2f}" if self.rewards else ""
        return said + (f"  infra failures {lost}" if lost else "")


@contextmanager
def progress(title: str, total: int, console: Console | None = None) -> Generator[Callable[[GradedRollout], None], None, None]:
    """A bar over `total` rollouts; what it gives is an evaluation's `on_done`. In a log: one line at the end."""
    shown, tally, began = console or Console(), _Tally(), time.monotonic()
    told, text = TextColumn("{task.fields[tally]}"), TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), told, TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=not shown.is_terminal) as bar:
        task = bar.add_task(title, total=total, tally="")

        def done(graded: GradedRollout) -> None:
            tally.take(graded)
            bar.update(task, advance=1, tally=str(tally))

        yield done
    shown.out(f"{title}: {tally.done} rollouts in {spell_seconds(time.monotonic() - began)}  {tally}".rstrip(), highlight=False)
