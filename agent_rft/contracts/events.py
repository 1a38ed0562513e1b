"""What the rollout machine is told (events) and what it wants done (commands). No other words cross its edge."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent_rft.contracts.messages import Message, ToolCall, ToolSpec
from agent_rft.contracts.rollouts import Ending, ToolResult

StopReason = Literal["stop", "length", "no_room"]


# --- events -------------------------------------------------------------------------------------------------------


class ModelSpoke(msgspec.Struct, frozen=True):
    """A model turn came back."""

    text: str
    stop: StopReason = "stop"
    """stop: the model ended its turn. length: cut at max_tokens. no_room: the context alone left no room to speak."""
    context_ids: list[int] = msgspec.field(default_factory=list)
    sampled_ids: list[int] = msgspec.field(default_factory=list)
    logprobs: list[float] = msgspec.field(default_factory=list)
    context_tokens: int = 0
    sampled_tokens: int = 0
    calls: tuple[tuple[str, dict[str, object]], ...] | None = None
    """Name and arguments of each call where the endpoint has parsed them; else the machine reads them from the text."""
    lost_seconds: float = 0.0
    """That its server's trouble took before it spoke: they count against nobody."""


class ToolReturned(msgspec.Struct, frozen=True):
    result: ToolResult


class TimeUp(msgspec.Struct, frozen=True):
    """The rollout's seconds are spent."""


class InfraFailed(msgspec.Struct, frozen=True):
    """A part of the infrastructure gave up, after its own retries."""

    part: str
    """Which: tool:search, model, grader:numeric."""
    what: str


Event = ModelSpoke | ToolReturned | TimeUp | InfraFailed


# --- commands -----------------------------------------------------------------------------------------------------


class AskModel(msgspec.Struct, frozen=True):
    """Let the model speak next."""

    rollout_id: str
    turn: int
    seed: int
    new_messages: tuple[Message, ...]
    """What was said since the model last spoke; at turn 0 the opening."""
    conversation: tuple[Message, ...]
    """All of it, for samplers that hold nothing between turns."""
    tools: tuple[ToolSpec, ...]
    max_tokens: int
    """What this turn may write at most."""
    room: int
    """What context and turn together may still take of the trajectory's tokens."""
    used: int = 0
    """What the trajectory has taken of them so far: an endpoint that counts counts these again with each turn."""


class CallTools(msgspec.Struct, frozen=True):
    """Run these calls, in parallel."""

    rollout_id: str
    calls: tuple[ToolCall, ...]


class Finish(msgspec.Struct, frozen=True):
    """It is over; nothing else will be asked."""

    rollout_id: str
    ending: Ending


Command = AskModel | CallTools | Finish
