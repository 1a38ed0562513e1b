"""Rollouts on the CPU for NeMo RL, which asks with whole token sequences, turn after turn.

A turn's sequences extend what was read and said in the turn before. So keys and values are kept between turns and only
the new tokens are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agent_rft.contracts.errors import Diverged
from agent_rft.rollouts.seeds import derive_seed
from agent_rft.training.keyvalues import KeyValues, Place

PREFILL_TOKENS = 512
"""Read in one forward pass: what does not fit the CPU's caches costs double."""
NARROW_AT = 0.75
"""A batch of which less than this share still speaks is made smaller."""


class Said(msgspec.Struct):
    """What one row answered."""

    ids: list[int] = msgspec.field(default_factory=list)
    logprobs: list[float] = msgspec.field(default_factory=list)
    """As each token was sampled."""
    ended: bool = False
    """By a token that ends the turn, not by running out of room."""


class CpuSampler:
    """Samples from one model whose weights change now and then."""

    def __init__(
        self, model: PreTrainedModel, *, ends: Sequence[int], temperature: float, max_new_tokens: int, longest: int, seed: int
    ) -> None:
        self._model = model
        self._ends = frozenset(ends)
        self._temperature = temperature
        self._max_new_tokens, self._longest = max_new_tokens, longest
        self._seed = seed
        self._random = torch.Generator()
        self._held: list[list[int]] = []
        """The sequences in the cache; of each the last token has been said and not yet read."""
        self._cache = KeyValues(0, 0, 0)
        self.weights_changed(0)

    def weights_changed(self, version: int) -> None:
        """What was read with other weights is worth nothing. The draws start anew too, from the number of updates made:
        so those of a resumed run are not those of its first steps."""
        self._held = []
        self._random.manual_seed(derive_seed(self._seed, "generation", version))

    def generate(self, asked: list[list[int]], *, greedy: bool = False) -> list[Said]:
        with torch.inference_mode():
            said = self._speak([len(row) for row in asked], self._read(asked), greedy)
        self._held = [row + one.ids for row, one in zip(asked, said, strict=True)]
        return said

    # --- reading ---------------------------------------------------------------------------------------------------

    def _read(self, asked: list[list[int]]) -> Tensor:
        """Answers the logits that follow each row, and leaves the cache holding exactly these rows."""
        slots = followed(self._held, asked)
        if slots is None:
            return self._open(asked)
        if slots != list(range(self._cache.rows)):
            self._cache.keep(torch.tensor(slots))
        starts = [len(self._held[slot]) - 1 for slot in slots]
        return self._forward_all(starts, [row[start:] for row, start in zip(asked, starts, strict=True)])

    def _open(self, asked: list[list[int]]) -> Tensor:
        """Rollouts of one group share their opening, which is read once."""
        openings = sorted({tuple(row) for row in asked}, key=len)
        slots = {opening: slot for slot, opening in enumerate(openings)}
        layers = self._model.config.get_text_config().num_hidden_layers
        self._cache = KeyValues(layers, len(openings), len(openings[-1]) + self._max_new_tokens)
        logits = self._forward_all([0] * len(openings), [list(opening) for opening in openings])
        copies = torch.tensor([slots[tuple(row)] for row in asked])
        self._cache.keep(copies)
        return logits[copies]

    def _forward_all(self, starts: list[int], unread: list[list[int]]) -> Tensor:
        """A few rows at a time, which lie next to each other in the cache."""
        parts: list[Tensor] = []
        first = 0
        while first < len(unread):
            past, width = first + 1, len(unread[first])
            while past < len(unread) and max(width, len(unread[past])) * (past + 1 - first) <= PREFILL_TOKENS:
                width = max(width, len(unread[past]))
                past += 1
            parts.append(self._forward_some(slice(first, past), starts[first:past], unread[first:past]))
            first = past
        return torch.cat(parts)

    def _forward_some(self, rows: slice, starts: list[int], unread: list[list[int]]) -> Tensor:
        width = max(map(len, unread))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in unread])
        # what a short row has beyond its end lies where its next tokens will overwrite it, unseen until then
        positions = torch.tensor(starts)[:, None] + torch.arange(width)
        self._cache.reserve(int(positions.max()) + 1)
        columns, where = torch.tensor([len(row) - 1 for row in unread]).unique(return_inverse=True)
        return self._forward(self._cache, Place(rows, positions, ids.device), ids, columns)[torch.arange(len(unread)), where]

    def _forward(self, cache: KeyValues, place: Place, ids: Tensor, columns: Tensor) -> Tensor:
        cache.aim(place)
        mask = place.mask(self._model.dtype)
        read = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=place.positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=columns,
        )
        return read.logits.float()

    # --- speaking --------------------------------------------------------------------------------------------------

    def _speak(self, starts: list[int], logits: Tensor, greedy: bool) -> list[Said]:
        """Sample until every row has ended its turn or spent its room. Rows that ended are left out of the batch as soon as
        that is worth a copy of the others; until then they are computed along and not heard."""
        said = [Said() for _ in starts]
        room = [min(self._max_new_tokens, self._longest - start) for start in starts]
        if min(room) < 1:
            raise ValueError(f"a row of {max(starts)} tokens leaves no room to answer within {self._longest}")
        self._cache.reserve(max(start + space for start, space in zip(starts, room, strict=True)))
        rows, going, cache, ticks = list(range(len(said))), set(range(len(said))), self._cache, 0
        while True:
            tokens, logprobs = self._draw(logits, greedy)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                if row in going and self._note(said[row], token, logprob, room[row]):
                    going.discard(row)
            ticks += 1
            if not going:
                break
            if len(going) <= NARROW_AT * len(rows):
                self._bring_back(cache, rows, starts, ticks)
                tokens = tokens[[at for at, row in enumerate(rows) if row in going]]
                rows = [row for row in rows if row in going]
                cache = self._cache.lend(torch.tensor(rows))
            last = torch.tensor([starts[row] + len(said[row].ids) - 1 for row in rows])[:, None]
            logits = self._forward(cache, Place(slice(0, len(rows)), last, last.device), tokens[:, None], torch.tensor([0]))[:, 0]
        self._bring_back(cache, rows, starts, ticks)
        return said

    def _note(self, said: Said, token: int, logprob: float, room: int) -> bool:
        """Take one token; True when it was the last."""
        said.ids.append(token)
        said.logprobs.append(logprob)
        said.ended = token in self._ends
        return said.ended or len(said.ids) == room

    def _bring_back(self, lent: KeyValues, rows: list[int], starts: list[int], ticks: int) -> None:
        """What a lent copy has written, to where the next turn reads."""
        if lent is not self._cache:
            self._cache.take_back(lent, torch.tensor(rows), torch.tensor([starts[row] for row in rows]), ticks)

    def _draw(self, logits: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
        """One token a row, and its log-probability: where the cumulated probability first passes a uniform number."""
        scaled = torch.log_softmax(logits / self._temperature, -1)
        if not scaled.isfinite().all():
            raise Diverged("the model's logits are not numbers: its weights are broken", "go on from an earlier checkpoint")
        if greedy:
            tokens = scaled.argmax(-1, keepdim=True)
        else:
            cumulated = scaled.double().exp().cumsum(-1)
            uniforms = torch.rand(len(scaled), 1, generator=self._random, dtype=torch.float64)
            tokens = torch.searchsorted(cumulated, uniforms * cumulated[:, -1:], right=True).clamp_(max=scaled.shape[-1] - 1)
        return tokens[:, 0], scaled.gather(1, tokens)[:, 0]


def followed(held: list[list[int]], asked: list[list[int]]) -> list[int] | None:
    """Which held row each asked one goes on from; None unless every one goes on from one.

    NeMo RL asks for those still alive in their old order, so one pass finds them.
    """
    slots: list[int] = []
    slot = 0
    for row in asked:
        while slot < len(held) and row[: len(held[slot])] != held[slot]:
            slot += 1
        if slot == len(held):
            return None
        slots.append(slot)
        slot += 1
    return slots
