"""Rollouts batched over a whole step: one forward pass serves every live conversation, turn after turn.

What a row samples depends on its own seed and turn, not on who else is in the batch (but for rounding): each row draws
from a generator of its own. The log-probability of each sampled token is kept as it was sampled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agent_rft.contracts.errors import Diverged, UserError
from agent_rft.contracts.events import AskModel, InfraFailed, ModelSpoke
from agent_rft.rollouts.seeds import derive_seed
from agent_rft.rollouts.templates import ChatTemplate
from agent_rft.training.keyvalues import KeyValues, Place
from agent_rft.training.local.scoring import Scorer
from agent_rft.training.turns import Ready, Row, ready, spoken

FINE = 2**23
"""Uniform numbers come in steps of 1/FINE: float32 holds each exactly, and none of them rounds up to 1."""
OTHER_SAMPLER = "choose another sampler: model.sampler=vllm"
PREFILL_TOKENS = {True: 8192, False: 512}
"""Tokens read in one forward pass on a GPU, and on a CPU, where what does not fit its caches costs double."""
NARROW_AT = 0.75
"""On a CPU, a batch of which less than this share still speaks is made smaller."""


class Spent(msgspec.Struct):
    """Where the sampler's time went."""

    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ticks: int = 0
    prefill_tokens: int = 0
    sampled_tokens: int = 0


class LocalSampler:
    """Our own sampler on a Hugging Face causal language model; see the port for what `batched` asks of drivers."""

    batched = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        turn_ends: Sequence[int],
        *,
        temperature: float,
        checkpoint: Callable[[], str],
        prefill_tokens: int | None = None,
    ) -> None:
        """`checkpoint` is asked for a name whenever one is wanted: the weights change under the sampler while it trains."""
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._ends = torch.tensor(sorted(turn_ends), device=model.device)
        self._turn_ends = frozenset(turn_ends)
        self._temperature = temperature
        self._checkpoint = checkpoint
        self._prefill_tokens = prefill_tokens or PREFILL_TOKENS[model.device.type == "cuda"]
        self._longest = longest_sequence(model)
        self._scorer = Scorer(model)
        self._rows: dict[str, Row] = {}
        self._cache: KeyValues | None = None
        self.spent = Spent()

    @property
    def checkpoint(self) -> str:
        return self._checkpoint()

    def weights_changed(self) -> None:
        """Nothing to do: it speaks through the very weights that are trained."""

    async def sample(self, asks: Sequence[AskModel]) -> Sequence[ModelSpoke | InfraFailed]:
        looked_at = [ready(ask, self._rows.get(ask.rollout_id), self._template, self._longest) for ask in asks]
        wanted = [one for one in looked_at if isinstance(one, Ready)]
        wanted.sort(key=lambda one: one.ask.turn == 0)  # those the cache holds come first, as it has them
        with torch.inference_mode():
            replies = dict(zip(map(id, wanted), self._speak(wanted), strict=True))
        return [replies[id(one)] if isinstance(one, Ready) else one for one in looked_at]

    # --- the arithmetic --------------------------------------------------------------------------------------------

    def _speak(self, wanted: list[Ready]) -> list[ModelSpoke]:
        """One turn of every conversation, and the cache left holding exactly these."""
        if not wanted:
            self._rows, self._cache = {}, None
            return []
        began = time.perf_counter()
        logits = self._prefill(wanted)
        read = time.perf_counter()
        said = self._decode(wanted, logits)
        self.spent.prefill_seconds += read - began
        self.spent.decode_seconds += time.perf_counter() - read
        return [spoken(one, ids, logprobs, self._tokenizer, self._turn_ends) for one, (ids, logprobs) in zip(wanted, said, strict=True)]

    def _prefill(self, wanted: list[Ready]) -> Tensor:
        """Read what was said since; answer the logits that follow, a row for each ask."""
        known, fresh = ([one for one in wanted if (one.ask.turn > 0) is held] for held in (True, False))
        cache, parts = self._only(known), list[Tensor]()
        if cache is not None:
            parts.append(self._read(cache, [one.row.cached for one in known], [one.unread for one in known]))
        if fresh:
            opened, logits = self._open(fresh)
            parts.append(logits)
            cache = cache.join(opened) if cache is not None else opened
        self._cache = cache
        self._rows = {one.ask.rollout_id: one.row for one in wanted}
        return torch.cat(parts)

    def _held(self) -> KeyValues:
        if self._cache is None:
            raise RuntimeError("nothing has been read yet")
        return self._cache

    def _only(self, known: list[Ready]) -> KeyValues | None:
        """The cache without those who are gone."""
        if not known or self._cache is None:
            return None
        slots = {rollout_id: slot for slot, rollout_id in enumerate(self._rows)}
        wanted = [slots[one.ask.rollout_id] for one in known]
        if wanted != list(range(self._cache.rows)):
            self._cache.keep(torch.tensor(wanted, device=self._model.device))
        return self._cache

    def _open(self, fresh: list[Ready]) -> tuple[KeyValues, Tensor]:
        """Rollouts of one group share their opening: it is read once."""
        slots: dict[tuple[int, ...], int] = {}
        copies = [slots.setdefault(tuple(one.context), len(slots)) for one in fresh]
        longest = max(len(one.context) + one.budget for one in fresh)
        cache = KeyValues(self._model.config.get_text_config().num_hidden_layers, len(slots), longest)
        logits = self._read(cache, [0] * len(slots), [list(context) for context in slots])
        rows = torch.tensor(copies, device=self._model.device)
        cache.keep(rows)
        return cache, logits[rows]

    def _read(self, cache: KeyValues, lengths: list[int], contexts: list[list[int]]) -> Tensor:
        """Run the contexts through the model, a few rows at a time; answer the logits after the last token of each."""
        cache.reserve(max(length + len(context) for length, context in zip(lengths, contexts, strict=True)))
        self.spent.prefill_tokens += sum(map(len, contexts))
        parts: list[Tensor] = []
        start = 0
        while start < len(contexts):
            stop, width = start + 1, len(contexts[start])
            while stop < len(contexts) and max(width, len(contexts[stop])) * (stop + 1 - start) <= self._prefill_tokens:
                width = max(width, len(contexts[stop]))
                stop += 1
            parts.append(self._forward(cache, slice(start, stop), lengths[start:stop], contexts[start:stop]))
            start = stop
        return torch.cat(parts)

    def _forward(self, cache: KeyValues, rows: slice, lengths: list[int], contexts: list[list[int]]) -> Tensor:
        width = max(map(len, contexts))
        ids = torch.tensor([context + [0] * (width - len(context)) for context in contexts], device=self._model.device)
        # what a short row has beyond its end goes where its next tokens will overwrite it, unseen until then
        positions = torch.tensor(lengths)[:, None] + torch.arange(width)
        last = torch.tensor([len(context) - 1 for context in contexts], device=ids.device)
        cache.reserve(int(positions.max()) + 1)
        return self._logits(cache, Place(rows, positions, ids.device), ids, (torch.arange(len(contexts), device=ids.device), last))

    def _logits(self, cache: KeyValues, place: Place, ids: Tensor, chosen: object) -> Tensor:
        cache.aim(place)
        mask = place.mask(self._model.dtype)
        return self._scorer.logits(ids, chosen, attention_mask=mask, position_ids=place.positions, past_key_values=cache, use_cache=True)

    def _decode(self, wanted: list[Ready], logits: Tensor) -> list[tuple[list[int], list[float]]]:
        """Sample until every row has ended its turn or spent its tokens."""
        cache, speech = self._held(), _Speech(wanted, logits.device)
        cache.reserve(int((speech.starts + speech.budgets).max()))
        desk = _Desk(cache, speech, narrows=logits.device.type == "cpu")
        while True:
            tokens, logprobs = draw(logits, speech.uniforms[desk.rows, speech.ticks], self._temperature)
            speech.note(desk.rows, tokens, logprobs, torch.isin(tokens, self._ends))
            if not speech.going.any():
                break
            tokens = tokens[desk.narrow()]
            place = Place(slice(0, len(tokens)), speech.positions(desk.rows), tokens.device)
            logits = self._logits(desk.cache, place, tokens[:, None], (slice(None), 0))
        desk.close()
        if not speech.finite:
            raise Diverged("the model's logits are not numbers: its weights are broken", "go on from an earlier checkpoint")
        self.spent.ticks += speech.ticks
        self.spent.sampled_tokens += int(speech.counts.sum())
        return speech.spoken()


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-probability. Temperature 0 takes the likeliest.

    The token is where the cumulated probability first passes the row's uniform number, so one number decides one row.
    """
    scaled = torch.log_softmax(logits / temperature if temperature else logits, -1)
    if temperature:
        cumulated = scaled.exp().cumsum(-1)
        tokens = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)
        tokens.clamp_(max=logits.shape[-1] - 1)  # only where logits are not numbers, which the turn's end finds out
    else:
        tokens = scaled.argmax(-1, keepdim=True)
    return tokens[:, 0], scaled.gather(1, tokens)[:, 0]


def uniforms_of(ask: AskModel, count: int) -> np.ndarray:
    """The row's own random numbers for this turn."""
    source = np.random.Generator(np.random.Philox(key=derive_seed(ask.seed, "turn", ask.turn)))
    return (source.integers(0, FINE, size=count) / FINE).astype(np.float32)


def longest_sequence(model: PreTrainedModel) -> int:
    """How many tokens a conversation may hold: what the model was made for, and no more than a sliding window sees."""
    config = model.config.get_text_config()
    longest = int(getattr(config, "max_position_embeddings", 1 << 30))
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        longest = min(longest, int(config.sliding_window))
    return longest


class _Speech:
    """What the rows have said in this turn."""

    def __init__(self, wanted: Sequence[Ready], device: torch.device) -> None:
        self.starts = torch.tensor([one.row.cached + len(one.unread) for one in wanted], device=device)
        self.budgets = torch.tensor([one.budget for one in wanted], device=device)
        shape = len(wanted), int(self.budgets.max())
        drawn = np.zeros(shape, dtype=np.float32)
        for row, one in enumerate(wanted):
            drawn[row, : one.budget] = uniforms_of(one.ask, one.budget)
        self.uniforms = torch.from_numpy(drawn).to(device)
        self.going = torch.ones(len(wanted), dtype=torch.bool, device=device)
        self.counts = torch.zeros(len(wanted), dtype=torch.long, device=device)
        self.ticks = 0
        self._tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(shape, device=device)

    def note(self, rows: Tensor, tokens: Tensor, logprobs: Tensor, ended: Tensor) -> None:
        """Take one tick of these rows. Rows that ended earlier are computed along and not heard."""
        speaking = self.going[rows]
        self._tokens[rows, self.ticks] = tokens
        self._logprobs[rows, self.ticks] = logprobs
        self.counts[rows] += speaking.long()
        self.going[rows] = speaking & ~ended & (self.counts[rows] < self.budgets[rows])
        self.ticks += 1

    def positions(self, rows: Tensor) -> Tensor:
        """Where each row's last token goes. One that has ended stays there, where the next turn will begin."""
        return (self.starts[rows] + self.counts[rows] - 1)[:, None]

    @property
    def finite(self) -> bool:
        return bool(self._logprobs.isfinite().all())

    def spoken(self) -> list[tuple[list[int], list[float]]]:
        rows = zip(self._tokens.tolist(), self._logprobs.tolist(), self.counts.tolist(), strict=True)
        return [(tokens[:count], logprobs[:count]) for tokens, logprobs, count in rows]


class _Desk:
    """The rows that the next tick computes: all of them, or on a CPU soon only those who still speak.

    There a row costs its full price whether it speaks or not; on a GPU a small batch costs as much as a large one.
    """

    def __init__(self, cache: KeyValues, speech: _Speech, narrows: bool) -> None:
        self.cache = cache
        self._whole, self._speech, self._narrows = cache, speech, narrows
        self.rows = torch.arange(cache.rows, device=speech.starts.device)

    def narrow(self) -> Tensor | slice:
        """Leave behind who has ended, if that is worth a copy; answers which of the present rows stay."""
        going = self._speech.going[self.rows]
        if not self._narrows or int(going.sum()) > NARROW_AT * len(self.rows):
            return slice(None)
        kept = going.nonzero()[:, 0]
        self.close()
        self.rows = self.rows[kept]
        self.cache = self._whole.lend(self.rows)
        return kept

    def close(self) -> None:
        """Bring what a lent copy has written back to where the next turn reads."""
        if self.cache is not self._whole:
            self._whole.take_back(self.cache, self.rows, self._speech.starts[self.rows], self._speech.ticks)


def verify(model: PreTrainedModel) -> None:
    """Refuse, at load, a model whose state is more than keys and values: it would speak as another model than is trained."""
    vocabulary = model.config.get_text_config().vocab_size
    first, second = ([(7 * i + 3) % vocabulary for i in range(n)] for n in (5, 3))
    try:
        with torch.inference_mode():
            in_two, at_once = (
                _logits_in_two(model, first, second),
                Scorer(model).logits(_ids(model, first + second), (0, -1), use_cache=False),
            )
    except Exception as error:  # a model that wants a cache of its own kind may fail in any way
        raise UserError(f"{type(model).__name__} does not run on a plain key-value cache: {error}", OTHER_SAMPLER) from error
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not torch.allclose(in_two, at_once, rtol=0, atol=tolerance * float(at_once.abs().max())):
        raise UserError(f"{type(model).__name__} keeps more than keys and values from token to token", OTHER_SAMPLER)


def _logits_in_two(model: PreTrainedModel, first: list[int], second: list[int]) -> Tensor:
    cache = KeyValues(model.config.get_text_config().num_hidden_layers, 1, len(first) + len(second))
    scorer = Scorer(model)
    logits = torch.empty(0)
    for start, ids in ((0, first), (len(first), second)):
        place = Place(slice(0, 1), torch.arange(start, start + len(ids))[None], model.device)
        cache.aim(place)
        inputs = {"attention_mask": place.mask(model.dtype), "position_ids": place.positions, "past_key_values": cache, "use_cache": True}
        logits = scorer.logits(_ids(model, ids), (0, -1), **inputs)
    return logits


def _ids(model: PreTrainedModel, ids: list[int]) -> Tensor:
    return torch.tensor([ids], device=model.device)
