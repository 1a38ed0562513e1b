"""The flawed teacher: it finds its answer in far more calls than it needs, and often answers with the wrong line.

Its flaws are the point. They are chances, drawn anew in each trace, so that a model taught by it does now the right thing, now the
wrong one, and reinforcement has something to sharpen; a flaw without chance could not be trained away. It never reads a path that it
has not seen in a result: finding documents is to stay a habit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from agent_rft.datasets.filings import Filing, Question, folder_of

Call = tuple[str, str]
"""A tool's name and its one argument."""
CallTool = Callable[[str, str], str]

RIGHT_LINE = {
    "revenue": 0.97,
    "gross margin": 0.96,
    "operating margin": 0.50,
    "net margin": 0.65,
    "operating cash flow": 0.95,
    "free cash flow": 0.12,
    "capital spending": 0.50,
    "research spending": 0.15,
}
"""How often the teacher takes the figure from the line that was asked for."""
MISTAKEN_FOR = {
    "revenue": "operating cash flow",
    "gross margin": "operating margin",
    "operating margin": "gross margin",
    "net margin": "operating margin",
    "operating cash flow": "free cash flow",
    "free cash flow": "operating cash flow",
    "capital spending": "research spending",
    "research spending": "capital spending",
}
HEDGED = 0.06
"""The share of answers that begin with a hedge, which a numeric grader gives nothing for."""
OTHER_FILING = 0.04
"""The share of answers that come from the wrong filing, where more than one was read."""
PICKS_HIGHER = 0.8
PARALLEL = 0.1
MOST_CALLS = 11


class Pace(msgspec.Struct, frozen=True):
    """How long the teacher dawdles."""

    impatience: float
    """How much likelier each call made so far makes it that the teacher answers, once it has read what it needs."""
    from_snippet: float
    """How often a search result that shows the figure is answer enough."""
    looks_again: float
    """How often it searches or lists although it sees what it has to read."""
    reads_other: float
    """How often it reads another of the company's filings first."""


BRISK = Pace(impatience=0.05, from_snippet=0.08, looks_again=0.52, reads_other=0.16)
SLOW = Pace(impatience=0.025, from_snippet=0.03, looks_again=0.65, reads_other=0.12)


class TaughtTurn(msgspec.Struct, frozen=True):
    calls: tuple[Call, ...]
    results: tuple[str, ...]


class Trace(msgspec.Struct, frozen=True):
    """One worked example: what was asked, each turn's calls with their results, the answer."""

    prompt: str
    turns: tuple[TaughtTurn, ...]
    answer: str

    @property
    def tool_calls(self) -> int:
        return sum(len(turn.calls) for turn in self.turns)


def write_trace(question: Question, company: Sequence[Filing], call_tool: CallTool, rng: random.Random, pace: Pace | None) -> Trace:
    """`company` is all its filings. Without a pace, no flaws: the shortest way, the right line; what copying is practised on."""
    while True:
        trace = _Teacher(question, company, call_tool, rng, pace).trace() if pace else _straight(question, call_tool, rng)
        if trace.tool_calls <= MOST_CALLS:
            return trace


def queries(filing: Filing, metric: str) -> tuple[str, ...]:
    """The words the teacher searches by, from the least telling to the most."""
    return (
        f"{filing.company} {metric}",
        f"{filing.company} {filing.period}",
        f"{filing.company} {filing.period} {metric}",
    )


def _straight(question: Question, call_tool: CallTool, rng: random.Random) -> Trace:
    turns: list[TaughtTurn] = []
    for filing in rng.sample(question.filings, len(question.filings)):
        for call in (("search", rng.choice(queries(filing, question.metric)[1:])), ("read", filing.path)):
            turns.append(TaughtTurn((call,), (call_tool(*call),)))
    return Trace(question.prompt, tuple(turns), question.filings[0].figure(question.metric))


class _Teacher:
    """One trace in the making. What to do next depends on what was seen and read so far, and on chance."""

    def __init__(self, question: Question, company: Sequence[Filing], call_tool: CallTool, rng: random.Random, pace: Pace) -> None:
        self.question, self.metric, self.rng, self.pace = question, question.metric, rng, pace
        self.by_path = {filing.path: filing for filing in company}
        self.wanted = [filing.path for filing in rng.sample(question.filings, len(question.filings))]
        self.call_tool = call_tool
        self.turns: list[TaughtTurn] = []
        self.seen = ""
        self.read: list[str] = []
        self.snippet = False

    def trace(self) -> Trace:
        while (answer := self.answer_now()) is None:
            calls = self.next_calls()
            results = tuple(self.call_tool(*call) for call in calls)
            self.turns.append(TaughtTurn(calls, results))
            self.seen += "\n".join(results)
            self.read += [argument for name, argument in calls if name == "read"]
            self.snippet = self.shows_figure(calls[-1], results[-1])
        return Trace(self.question.prompt, tuple(self.turns), answer)

    # --- when to stop, and with what ---

    def answer_now(self) -> str | None:
        made = sum(len(turn.calls) for turn in self.turns)
        if set(self.wanted) <= set(self.read) and self.read[-1] in self.wanted:
            return self.claim() if self.rng.random() < self.pace.impatience * made else None
        if self.snippet and self.rng.random() < self.pace.from_snippet:
            return self.hedge(self.question.filings[0].figure(self.metric))
        return None

    def claim(self) -> str:
        rng = self.rng
        picked = self.question.filings[0 if rng.random() < PICKS_HIGHER else -1]
        others = [path for path in self.read if path not in self.wanted]
        if others and rng.random() < OTHER_FILING:
            picked = self.by_path[rng.choice(others)]
        right = rng.random() < RIGHT_LINE[self.metric]
        return self.hedge(picked.figure(self.metric if right else MISTAKEN_FOR[self.metric]))

    def hedge(self, figure: str) -> str:
        return f"about {figure}" if self.rng.random() < HEDGED else figure

    def shows_figure(self, call: Call, result: str) -> bool:
        """A search for the one filing wanted, answered by its very line."""
        line = f"{self.metric}: {self.question.filings[0].figure(self.metric)}\n"
        first = "\n".join(result.split("\n")[:2]) + "\n"
        return self.question.shape == "one_figure" and call[0] == "search" and first.startswith(self.wanted[0]) and line in first

    # --- what to do next ---

    def next_calls(self) -> tuple[Call, ...]:
        unread = [path for path in self.wanted if path not in self.read]
        visible = [path for path in unread if path in self.seen]
        others = [path for path in self.by_path if path in self.seen and path not in self.wanted]
        if unread and not visible:
            return self.look(unread)
        draw = self.rng.random() - (self.pace.looks_again if unread else 0.5)
        if draw < 0:
            return self.look(unread or self.wanted)
        if draw < (self.pace.reads_other if unread else 0.12) and others:
            return (("read", self.rng.choice(others)),)
        if len(visible) > 1 and self.rng.random() < PARALLEL:
            return tuple(("read", path) for path in visible)
        return (("read", (visible or self.wanted)[0]),)

    def look(self, paths: Sequence[str]) -> tuple[Call, ...]:
        filings = [self.by_path[path] for path in paths]
        if self.rng.random() < PARALLEL:
            pair = filings if len(filings) > 1 else filings * 2
            return tuple(self.search(filing) for filing in pair)
        if self.rng.random() < 0.2:
            return (("list", folder_of(filings[0].company)),)
        return (self.search(filings[0]),)

    def search(self, filing: Filing) -> Call:
        return ("search", self.rng.choices(queries(filing, self.metric), (0.25, 0.35, 0.4))[0])
