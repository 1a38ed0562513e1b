"""NeMo RL's generation as our sampler: what prior check and evaluation let speak, on the very engine that training rolls out with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from transformers import PreTrainedTokenizerBase

from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.turns import Ready, Row, ready, spoken


class GenerationSampler:
    """Conversations are held here; the generation is sent all tokens of each, and keeps what it likes."""

    batched = True

    def __init__(
        self,
        generation: Any,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        turn_ends: Sequence[int],
        *,
        longest: int,
        checkpoint: str,
    ) -> None:
        """`generation`: a GenerationInterface with its weights loaded."""
        self._generation, self._tokenizer, self._template = generation, tokenizer, template
        self._turn_ends, self._longest, self._checkpoint = frozenset(turn_ends), longest, checkpoint
        self._rows: dict[str, Row] = {}

    @property
    def checkpoint(self) -> str:
        return self._checkpoint

    async def sample(self, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        looked_at = [ready(ask, self._rows.get(ask.rollout_id), self._template, self._longest) for ask in asks]
        wanted = [one for one in looked_at if isinstance(one, Ready)]
        said = await asyncio.to_thread(self._generate, wanted) if wanted else []
        self._rows = {one.ask.rollout_id: one.row for one in wanted}
        replies = {
            id(one): spoken(one, ids, logprobs, self._tokenizer, self._turn_ends) for one, (ids, logprobs) in zip(wanted, said, strict=True)
        }
        return [replies[id(one)] if isinstance(one, Ready) else one for one in looked_at]

    def _generate(self, wanted: Sequence[Ready]) -> list[tuple[list[int], list[float]]]:
        """The ids that each conversation goes on with, at most its budget, and their log-probabilities."""
        inputs = [one.row.ids + one.context for one in wanted]
        lengths = torch.tensor([len(ids) for ids in inputs])
        pad = int(self._tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
        batch = BatchedDataDict(
            input_ids=torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in inputs], batch_first=True, padding_value=pad),
            input_lengths=lengths,
            stop_strings=[None] * len(inputs),
        )
        out = self._generation.generate(batch, greedy=False)
        answers: list[tuple[list[int], list[float]]] = []
        for i, one in enumerate(wanted):
            start = len(inputs[i])
            end = min(int(out["unpadded_sequence_lengths"][i]), start + one.budget)
            answers.append((out["output_ids"][i, start:end].tolist(), out["logprobs"][i, start:end].tolist()))
        return answers
