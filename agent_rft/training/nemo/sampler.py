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
from agent_rft.training.nemo.failures import one_error
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
        asynchronous: bool,
        checkpoint: str,
    ) -> None:
        """`generation`: a GenerationInterface with its weights loaded. `asynchronous`: it takes one row a call, and many calls at once."""
        self._generation, self._tokenizer, self._template = generation, tokenizer, template
        self._turn_ends, self._longest, self._checkpoint = frozenset(turn_ends), longest, checkpoint
        self._asynchronous = asynchronous
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
        with one_error():
            outs = asyncio.run(self._side_by_side(batch)) if self._asynchronous else _apart(self._generation.generate(batch, greedy=False))
        answers: list[tuple[list[int], list[float]]] = []
        for one, ids, out in zip(wanted, inputs, outs, strict=True):
            start = len(ids)
            end = min(int(out["unpadded_sequence_lengths"][0]), start + one.budget)
            answers.append((out["output_ids"][0, start:end].tolist(), out["logprobs"][0, start:end].tolist()))
        return answers

    async def _side_by_side(self, batch: Any) -> list[Any]:
        async def only(row: Any) -> Any:
            async for _, out in self._generation.generate_async(row, greedy=False):
                return out
            raise RuntimeError("the generation answered nothing")

        return list(await asyncio.gather(*map(only, _apart(batch))))


def _apart(batch: Any) -> list[Any]:
    return [batch.slice(i, i + 1) for i in range(batch.size)]
