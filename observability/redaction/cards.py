"""Redacts a job card: every text in it that somebody wrote, said or was given. What it counts and names stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from agent_rft.contracts.grades import Grade
from agent_rft.contracts.jobcards import JobCard
from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Rollout, ToolResult, Turn
from observability.records import without_token_ids
from observability.redaction.detector import Detector
from observability.redaction.detectors import BUILT_IN
from observability.redaction.redact import Redacting, Removal


def redact_card(
    card: JobCard, detectors: Sequence[Detector] = BUILT_IN, after: Redacting | None = None
) -> tuple[JobCard, tuple[Removal, ...]]:
    """The card as it may be stored, and what was removed, by the path of the field.

    Token ids go, as they do at storing: they spell the same words. What names a thing stays, for others point at it: ids of
    cards, calls, rows and runs, names of tools and graders. `after`: what has gone through the spans that it was read from.
    """
    redacting = _OfCard(detectors, after, (card.rollout_id,))
    plain = without_token_ids(card)
    if redacting.passes(_written_in(plain)):
        return plain, ()
    redacted = replace(
        plain,
        rollout=redacting.rollout(plain.rollout),
        reference_answer=redacting.value(plain.reference_answer, "/reference_answer"),
        metadata=redacting.value(plain.metadata, "/metadata"),
        item=redacting.value(plain.item, "/item"),
        grade=None if plain.grade is None else redacting.grade(plain.grade, "/grade"),
    )
    return redacted, tuple(redacting.removed)


def redact_grade(grade: Grade, detectors: Sequence[Detector] = BUILT_IN) -> tuple[Grade, tuple[Removal, ...]]:
    """One that comes later than its card."""
    redacting = _OfCard(detectors)
    redacted = redacting.grade(grade, "")
    return redacted, tuple(redacting.removed)


def _written_in(card: JobCard) -> list[Any]:
    """All that is redacted."""
    rollout = card.rollout
    written = [card.reference_answer, card.metadata, card.item, rollout.answer, rollout.reason]
    for message in rollout.opening:
        written.append(message.content)
        written += [call.arguments for call in message.tool_calls]
    for tool in rollout.tools:
        written += (tool.description, tool.parameters)
    for turn in rollout.turns:
        written.append(turn.text)
        written += [call.arguments for call in turn.calls]
        for result in turn.results.values():
            written += (result.output, result.error)
    if card.grade is not None:
        written += (card.grade.parts, card.grade.errors)
    return written


class _OfCard(Redacting):
    def rollout(self, rollout: Rollout) -> Rollout:
        opening = [self._message(message, f"/rollout/opening/{place}") for place, message in enumerate(rollout.opening)]
        tools = [self._tool(tool, f"/rollout/tools/{place}") for place, tool in enumerate(rollout.tools)]
        turns = [self._turn(turn, f"/rollout/turns/{place}") for place, turn in enumerate(rollout.turns)]
        said = {name: self.value(getattr(rollout, name), f"/rollout/{name}") for name in ("answer", "reason")}
        return replace(rollout, opening=tuple(opening), tools=tuple(tools), turns=turns, **said)

    def _message(self, message: Message, path: str) -> Message:
        calls = tuple(self._call(call, f"{path}/tool_calls/{place}") for place, call in enumerate(message.tool_calls))
        return replace(message, content=self.value(message.content, f"{path}/content"), tool_calls=calls)

    def _tool(self, tool: ToolSpec, path: str) -> ToolSpec:
        description = self.value(tool.description, f"{path}/description")
        return replace(tool, description=description, parameters=self.value(tool.parameters, f"{path}/parameters"))

    def _turn(self, turn: Turn, path: str) -> Turn:
        text = self.value(turn.text, f"{path}/text")
        calls = tuple(self._call(call, f"{path}/calls/{place}") for place, call in enumerate(turn.calls))
        results = {call_id: self._result(result, f"{path}/results/{call_id}") for call_id, result in turn.results.items()}
        return replace(turn, text=text, calls=calls, results=results)

    def _call(self, call: ToolCall, path: str) -> ToolCall:
        return replace(call, arguments=self.value(call.arguments, f"{path}/arguments"))

    def _result(self, result: ToolResult, path: str) -> ToolResult:
        return replace(result, output=self.value(result.output, f"{path}/output"), error=self.value(result.error, f"{path}/error"))

    def grade(self, grade: Grade, path: str) -> Grade:
        return replace(grade, parts=self.value(grade.parts, f"{path}/parts"), errors=self.value(grade.errors, f"{path}/errors"))
