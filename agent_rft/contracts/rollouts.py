"""A rollout: one agent's whole try at one row, as plain data that pickles, from its first word to its ending."""

from __future__ import annotations

import enum

import msgspec

from agent_rft.contracts.messages import Message, ToolCall, ToolSpec


class Ending(enum.StrEnum):
    """A rollout ends as exactly one of these."""

    ANSWERED = "answered"
    """The model gave its final answer."""
    OUT_OF_BUDGET = "out_of_budget"
    """Turns, tool calls, tokens or seconds were spent before an answer. Graded: an agent must live within its means."""
    MALFORMED = "malformed"
    """The model's turn could not be read as an answer or as tool calls. The model's fault, graded."""
    INFRA_FAILED = "infra_failed"
    """Ours. Never graded, never trained on, never in a baseline; always counted and shown."""

    @property
    def graded(self) -> bool:
        return self is not Ending.INFRA_FAILED


class Limits(msgspec.Struct, frozen=True):
    """What a rollout may spend."""

    max_turns: int = 16
    """Model turns, the answer included."""
    max_tool_calls: int = 12
    max_trajectory_tokens: int = 4096
    """Everything the model reads and writes, the prompt included."""
    max_turn_tokens: int = 512
    """What one model turn may write."""
    max_seconds: float = 600.0


class ToolResult(msgspec.Struct, frozen=True):
    """What came back for one call, as the system observed it."""

    call_id: str
    output: str
    error: str | None = None
    """None, or why the tool would not: model_error, policy_denied."""
    seconds: float = 0.0
    attempts: int = 1


class Turn(msgspec.Struct):
    """The model spoke once, and what its calls returned."""

    text: str
    context_ids: list[int] = msgspec.field(default_factory=list)
    """Tokens put before the model in this turn: the prompt, or the tool results with the template's own tokens around."""
    sampled_ids: list[int] = msgspec.field(default_factory=list)
    """Tokens the model sampled, exactly these are trained on."""
    logprobs: list[float] = msgspec.field(default_factory=list)
    """Log-probability of each sampled token under the distribution that it was sampled from."""
    context_tokens: int = 0
    """How many context tokens, also where an endpoint tells only the number."""
    sampled_tokens: int = 0
    calls: tuple[ToolCall, ...] = ()
    results: dict[str, ToolResult] = msgspec.field(default_factory=dict)
    """By call_id."""


class Rollout(msgspec.Struct):
    """The state of the rollout machine, and its record once it has ended."""

    rollout_id: str
    opening: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    limits: Limits
    seed: int = 0
    """What the sampler draws from: same seed, same weights, same tool results: same rollout."""
    turns: list[Turn] = msgspec.field(default_factory=list)
    ending: Ending | None = None
    reason: str = ""
    """Why it ended so, in words: which budget, what was malformed, which part of the infrastructure."""
    failed_part: str = ""
    """Where the ending is infra_failed: the tool, grader or model server that failed."""
    answer: str = ""
    """The agent's claim: the text of its answer, empty unless answered."""
    started_at: str = ""
    """UTC, ISO 8601. The driver's clock: the machine has none."""
    seconds: float = 0.0

    @property
    def tool_calls(self) -> int:
        """Calls that were sent out."""
        return sum(len(turn.calls) for turn in self.turns)

    @property
    def total_tokens(self) -> int:
        return sum(turn.context_tokens + turn.sampled_tokens for turn in self.turns)

    @property
    def sampled_tokens(self) -> int:
        return sum(turn.sampled_tokens for turn in self.turns)

    def conversation(self) -> tuple[Message, ...]:
        """The whole exchange as messages: what a chat endpoint is sent and a reviewer reads."""
        said: list[Message] = list(self.opening)
        for turn in self.turns:
            said.append(Message("assistant", turn.text, turn.calls))
            said += answers_of(turn)
        return tuple(said)


def answers_of(turn: Turn) -> list[Message]:
    """The tool messages that answer a turn's calls, in the order of the calls."""
    return [Message("tool", turn.results[call.call_id].output, call_id=call.call_id) for call in turn.calls if call.call_id in turn.results]
