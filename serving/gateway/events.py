"""A run as its caller follows it: numbered events, the same ones in the same order however often and wherever they are asked for. Pure.

run         it was accepted: its id, by which it may be asked for again
turn        the agent spoke
tool_call   it asked for a tool ...
tool_result ... and this came back
waiting     a call waits for a person
anew        the agent that had begun was withdrawn or failed; another begins, and what was told of the first counts no more
answer      its answer, whole
end         how it ended; nothing follows
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from agent_rft.contracts.messages import Message
from agent_rft.contracts.rollouts import Ending, Rollout

Kind = Literal["run", "turn", "tool_call", "tool_result", "waiting", "anew", "answer", "end"]
HEARTBEAT = b": still here\n\n"


class RunEvent(msgspec.Struct, frozen=True):
    kind: Kind
    data: dict[str, Any]


class Waiting(msgspec.Struct, frozen=True):
    """For a person."""

    call_id: str
    approval: int
    expires_at: dt.datetime


class Story(msgspec.Struct, kw_only=True):
    """All that whoever goes on with a run needs, as it is kept."""

    rollout: Rollout
    said: tuple[Message, ...]
    """By the caller, before any agent's own prompt."""
    item: dict[str, Any]
    """What graders see, and the agent never does."""
    metadata: dict[str, Any]
    caller: str
    """Whose key it came with: they allow none of its calls themselves."""
    events: list[RunEvent] = []
    turns_told: int = 0
    results_told: int = 0
    """Of the last turn that was told."""
    waiting: Waiting | None = None
    asked_for: list[str] = []
    """Ids of the calls that were put before a person."""
    given_up: str = ""
    """Why the candidate that began it did not end it."""

    def tell(self, kind: Kind, **data: Any) -> None:
        self.events.append(RunEvent(kind, data))

    def tell_news(self) -> None:
        """What has happened in the rollout since the last time."""
        turns = self.rollout.turns
        while True:
            if self.turns_told:
                self._tell_results()
            if self.turns_told >= len(turns):
                return
            turn = turns[self.turns_told]
            self.turns_told, self.results_told = self.turns_told + 1, 0
            if turn.calls:  # else it is the answer, which is told as such
                self.tell("turn", turn=self.turns_told, text=turn.text)
            for call in turn.calls:
                self.tell("tool_call", call_id=call.call_id, name=call.name, arguments=call.arguments)

    def _tell_results(self) -> None:
        results = list(self.rollout.turns[self.turns_told - 1].results.values())
        for result in results[self.results_told :]:
            self.tell("tool_result", call_id=result.call_id, output=result.output, error=result.error)
        self.results_told = len(results)

    def tell_waiting(self, waiting: Waiting) -> None:
        call = next(call for call in self.rollout.turns[-1].calls if call.call_id == waiting.call_id)
        self.waiting = waiting
        self.asked_for.append(waiting.call_id)
        expires = waiting.expires_at.isoformat()
        self.tell("waiting", approval=waiting.approval, expires_at=expires, call_id=call.call_id, name=call.name, arguments=call.arguments)

    def begin_anew(self, rollout: Rollout, why: str) -> None:
        self.rollout, self.given_up = rollout, why
        self.turns_told = self.results_told = 0
        self.waiting, self.asked_for = None, []
        self.tell("anew", why=why)

    def result(self) -> dict[str, Any]:
        """What a caller is told of a run that is over."""
        rollout = self.rollout
        return {
            "ending": rollout.ending.value if rollout.ending else None,
            "answer": rollout.answer if rollout.ending is Ending.ANSWERED else None,
            "reason": rollout.reason,
            "rollout_id": rollout.rollout_id,
            "seconds": round(rollout.seconds, 3),
            "usage": {
                "prompt_tokens": sum(turn.context_tokens for turn in rollout.turns),
                "completion_tokens": rollout.sampled_tokens,
                "total_tokens": rollout.total_tokens,
                "tool_calls": rollout.tool_calls,
            },
        }


def opening_of(system_prompt: str, said: tuple[Message, ...]) -> tuple[Message, ...]:
    """An agent's own prompt comes first, where the caller brings none."""
    if not system_prompt or any(message.role == "system" for message in said):
        return said
    return (Message("system", system_prompt), *said)


def packed(story: Story) -> bytes:
    return msgspec.msgpack.encode(story)


def unpacked(kept: bytes) -> Story:
    return msgspec.msgpack.decode(kept, type=Story)


def as_sse(number: int, event: RunEvent) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, event.kind.encode(), msgspec.json.encode(event.data))


def stream_of(first: int, events: Iterable[RunEvent]) -> bytes:
    """From number `first` on."""
    return b"".join(as_sse(number, event) for number, event in enumerate(events, first))
