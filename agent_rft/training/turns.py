"""What every sampler of ours does around its arithmetic: which tokens a turn is asked with, and what the reply says."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from transformers import PreTrainedTokenizerBase

from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke, StopReason
from agent_rft.rollouts.templates import ChatTemplate


class Row(msgspec.Struct):
    """A conversation that a sampler holds between turns."""

    turn: int = 0
    """The turn that comes next."""
    ids: list[int] = msgspec.field(default_factory=list)
    """Every token heard and said so far."""
    cached: int = 0
    """For how many of them keys and values are held: all but the last sampled one, which no forward pass has read."""


class Ready(msgspec.Struct):
    """An ask that the model will answer."""

    ask: AskModel
    row: Row
    context: list[int]
    budget: int
    """Tokens that the turn may have."""

    @property
    def unread(self) -> list[int]:
        return self.row.ids[self.row.cached :] + self.context


def ready(ask: AskModel, held: Row | None, template: ChatTemplate, longest: int) -> Ready | ModelSpoke | InfraFailed:
    """Look an ask over: the tokens it adds, or why the model cannot answer. `longest`: what the model can hold."""
    if ask.turn == 0:
        row, context = Row(), template.opening_ids(ask.new_messages, ask.tools)
    else:
        row, context = held, template.between_ids(ask.new_messages)
    if row is None or row.turn != ask.turn:
        return InfraFailed("model", f"turn {ask.turn} of {ask.rollout_id} was asked for, but the turn before it is not held")
    budget = min(ask.max_tokens, ask.room - len(context), longest - len(row.ids) - len(context))
    return Ready(ask, row, context, budget) if budget > 0 else ModelSpoke("", "no_room")


def spoken(one: Ready, ids: list[int], logprobs: list[float], tokenizer: PreTrainedTokenizerBase, turn_ends: Collection[int]) -> ModelSpoke:
    """The reply, and the row moved on to where its next turn begins."""
    ended = ids[-1] in turn_ends
    one.row.turn += 1
    one.row.ids += one.context + ids
    one.row.cached = len(one.row.ids) - 1
    # special tokens are words here: <tool_call> is one in many tokenizers; only the end of the turn is none
    text = str(tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    stop: StopReason = "stop" if ended else "length"
    return ModelSpoke(text, stop, one.context, ids, logprobs)
