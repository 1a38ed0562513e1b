"""One trace: who in it is the agent, what its model said turn by turn, and which result belongs to which call."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.messages import ToolCall
from agent_rft.contracts.rollouts import ToolResult, Turn
from observability.otlp import messages, names
from observability.otlp.names import Role
from observability.otlp.spans import Span

NS = 1_000_000_000
DEEPEST = 100  # parents looked at; what hangs deeper counts as lying as deep as this


class Trace:
    """The spans of one trace, merged, with their parts in it."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._by_id = {span.span_id: span for span in spans}
        self._roles = {span.span_id: names.role_of(span) for span in spans}
        self.main = self._main(spans)
        self.models = self._outermost(spans, Role.MODEL, (Role.MODEL, Role.TOOL))
        self.tools = self._outermost(spans, Role.TOOL, (Role.TOOL,))

    @property
    def main_has_come(self) -> bool:
        """False where spans hang under one that is not there and none of them is an agent: their root is still to come."""
        return self._roles[self.main.span_id] in {Role.AGENT, Role.CHAIN} or not self.main.parent_id

    @property
    def is_whole(self) -> bool:
        """True once the agent has ended and nothing above it can still come: another agent may have asked this one."""
        return bool(self.main.end_ns) and not (self._above(self.main) or [self.main])[-1].parent_id

    def _main(self, spans: Sequence[Span]) -> Span:
        for role in (Role.AGENT, Role.CHAIN):
            if found := [span for span in spans if self._roles[span.span_id] is role]:
                return found[0] if len(found) == 1 else min(found, key=self._height)
        roots = [span for span in spans if not span.parent_id]
        return min(roots or spans, key=self._height)

    def _height(self, span: Span) -> tuple[int, int, int, str]:
        """Topmost first; among equals the one that started first, then that which lasted longest."""
        return len(self._above(span)), span.start_ns, -span.end_ns, span.span_id

    def _above(self, span: Span) -> list[Span]:
        """Its parent, the parent's parent and so on, as far as they are there."""
        above: list[Span] = []
        parent = self._by_id.get(span.parent_id)
        while parent is not None and len(above) < DEEPEST:
            above.append(parent)
            parent = self._by_id.get(parent.parent_id)
        return above

    def _outermost(self, spans: Sequence[Span], role: Role, around: tuple[Role, ...]) -> list[Span]:
        """Those in this role that are not inside a span of one of the roles `around`."""
        ours = [span for span in spans if self._roles[span.span_id] is role]
        return [span for span in ours if not any(self._roles[each.span_id] in around for each in self._above(span))]


def turns_of(trace: Trace) -> list[Turn]:
    """What the model said, with what came back for its calls."""
    exchange = _Exchange(trace.models)
    for span in trace.tools:
        exchange.tool_ran(span)
    exchange.read_on(trace.models)
    return exchange.turns


class _Exchange:
    """Turns in the making. A result finds its call by id; without an id by the tool's name in the turn that was running; and
    a tool that ran unasked, as far as was told, makes the call that asked for it."""

    def __init__(self, models: Sequence[Span]) -> None:
        self.turns = [_turn(number, span) for number, span in enumerate(models, 1)]
        self._starts = [span.start_ns for span in models]
        self._asked: dict[str, deque[Turn]] = {}
        for turn in self.turns:
            for call in turn.calls:
                self._asked.setdefault(call.call_id, deque()).append(turn)

    def tool_ran(self, span: Span) -> None:
        turn, call_id = self._call_of(span)
        error = names.words(span.attributes, (names.ERROR,)) or (span.failed and (span.message or "error")) or None
        before = turn.results.get(call_id)
        attempts = span.attributes.get(names.OURS + "attempts")
        told = span.attributes.get(names.OURS + "seconds")
        seconds = float(told) if isinstance(told, float) else max(0, span.end_ns - span.start_ns) / NS
        turn.results[call_id] = ToolResult(
            call_id,
            messages.plain(names.first(span.attributes, names.RESULT)),
            error,
            seconds + (before.seconds if before else 0.0),
            attempts if isinstance(attempts, int) and 0 < attempts <= names.MOST else 1 + (before.attempts if before else 0),
        )

    def read_on(self, models: Sequence[Span]) -> None:
        """Results of tools that nobody watched: what the model was told next."""
        if not any(call.call_id not in turn.results for turn in self.turns for call in turn.calls):
            return
        for span in models:
            for said in messages.heard(span.attributes):
                for call_id, output in said.returned:
                    if (turn := self._waiting(call_id)) is not None:
                        turn.results[call_id] = ToolResult(call_id, output)

    def _call_of(self, span: Span) -> tuple[Turn, str]:
        turn = self._running_at(span.start_ns)
        call_id, name = names.words(span.attributes, names.CALL_ID), names.words(span.attributes, names.TOOL_NAME) or span.name
        for call in turn.calls:
            if call.call_id not in turn.results and (call.call_id == call_id if call_id else call.name == name):
                return turn, call.call_id
        if call_id and (asking := self._waiting(call_id) or self._latest(call_id)) is not None:
            return asking, call_id
        call = ToolCall(call_id or span.span_id, name, messages.arguments_of(names.first(span.attributes, names.ARGUMENTS)))
        turn.calls += (call,)
        self._asked.setdefault(call.call_id, deque()).append(turn)
        return turn, call.call_id

    def _running_at(self, at_ns: int) -> Turn:
        if not self.turns:
            self.turns.append(Turn(""))
            self._starts.append(at_ns)
        return self.turns[max(0, bisect.bisect_right(self._starts, at_ns) - 1)]

    def _waiting(self, call_id: str) -> Turn | None:
        """The first turn that asked so and has no answer."""
        asked = self._asked.get(call_id, deque())
        while len(asked) > 1 and call_id in asked[0].results:
            asked.popleft()
        return asked[0] if asked and call_id not in asked[0].results else None

    def _latest(self, call_id: str) -> Turn | None:
        """A call that ran again was tried again."""
        asked = self._asked.get(call_id)
        return asked[-1] if asked else None


def _turn(number: int, span: Span) -> Turn:
    said = messages.spoken(span.attributes)
    text = "\n".join(filter(None, (each.text for each in said)))
    thought = "\n".join(filter(None, (each.thought for each in said)))
    if not said:
        text = messages.plain(span.attributes.get(names.PLAIN_OUTPUT))
    calls: dict[str, ToolCall] = {}
    for call in (call for each in said for call in each.calls):
        call_id = call.call_id if call.call_id and call.call_id not in calls else f"call-{number}-{len(calls) + 1}"
        calls[call_id] = msgspec.structs.replace(call, call_id=call_id)
    own = span.attributes.get(names.OURS + "context_tokens")
    return Turn(
        f"<think>{thought}</think>\n{text}" if thought else text,
        context_tokens=own if isinstance(own, int) and 0 <= own <= names.MOST else names.count(span.attributes, names.TOKENS_READ),
        sampled_tokens=names.count(span.attributes, names.TOKENS_WRITTEN),
        calls=tuple(calls.values()),
    )
