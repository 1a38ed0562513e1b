"""A key-value cache for rows of different lengths, as Hugging Face models take it.

Every token is written at its row's own position into room allocated beforehand, and attention reads a view of it. So a
token costs no copy of what is already there, rows need no holes between their turns, and a row may be dropped or lent
to a smaller batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 1.25
"""Room is allocated by this much more than asked for, so that a rollout's growth copies its cache only now and then."""


class Place:
    """Where the tokens of one forward pass go, and how far attention looks. Shared by all layers."""

    def __init__(self, rows: slice, positions: Tensor, device: torch.device) -> None:
        self.rows = rows
        self.row_index = torch.arange(rows.start, rows.stop, device=device)[:, None]
        self.positions = positions.to(device)
        self.upto = int(positions.max()) + 1

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Added to attention's scores: each token sees its row up to its own position, and no later leftovers."""
        seen = torch.arange(self.upto, device=self.positions.device) <= self.positions[:, None, :, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


class KeyValues(Cache):
    """The cache of all layers for `rows` rows."""

    def __init__(self, layers: int, rows: int, capacity: int) -> None:
        self._own = [Layer(rows, capacity) for _ in range(layers)]
        super().__init__(layers=list(self._own))
        self.rows = rows
        self.capacity = capacity

    def aim(self, place: Place) -> None:
        """The next forward pass writes and reads here."""
        for layer in self._own:
            layer.place = place

    def reserve(self, capacity: int) -> None:
        """Make room for rows of this length."""
        if capacity <= self.capacity:
            return
        self.capacity = int(capacity * GROWTH)
        for layer in self._own:
            layer.resize(self.capacity)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in this order; a row may be named twice."""
        self.rows = len(rows)
        for layer in self._own:
            layer.keep(rows)

    def lend(self, rows: Tensor) -> KeyValues:
        """A copy of some rows, for a smaller batch to work on."""
        copy = KeyValues(0, len(rows), self.capacity)
        copy._own = copy.layers = [layer.lend(rows) for layer in self._own]
        return copy

    def take_back(self, lent: KeyValues, rows: Tensor, starts: Tensor, longest: int) -> None:
        """What a lent copy has written from position `starts` on, `longest` tokens at most a row."""
        positions = (starts[:, None] + torch.arange(longest, device=starts.device)).clamp_(max=self.capacity - 1)
        for mine, theirs in zip(self._own, lent._own, strict=True):
            mine.copy_from(theirs, rows, positions)

    def join(self, other: KeyValues) -> KeyValues:
        """This cache with the other's rows after its own."""
        capacity = max(self.capacity, other.capacity)
        for cache in (self, other):
            cache.capacity = capacity
            for layer in cache._own:
                layer.resize(capacity)
        for mine, theirs in zip(self._own, other._own, strict=True):
            mine.join(theirs)
        self.rows += other.rows
        return self


class Layer(CacheLayerMixin):
    """One layer's keys and values, [rows, heads, capacity, size]."""

    supports_early_init = False

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.rows, self.capacity = rows, capacity
        self.place: Place | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The sizes of the heads are the model's own affair: known when it first writes."""
        self.keys, self.values = (
            # zeros, not garbage: attention multiplies what it must not see by 0, and 0 x NaN is NaN
            torch.zeros(self.rows, states.shape[1], self.capacity, states.shape[3], dtype=states.dtype, device=states.device)
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        (keys, values), place = self._both(), self.place
        if place is None:
            raise RuntimeError("the cache was not aimed before the forward pass")
        keys[place.row_index, :, place.positions] = key_states.transpose(1, 2)
        values[place.row_index, :, place.positions] = value_states.transpose(1, 2)
        return keys[place.rows, :, : place.upto], values[place.rows, :, : place.upto]

    def _both(self) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise RuntimeError("nothing was written to the cache yet")
        return self.keys, self.values

    def resize(self, capacity: int) -> None:
        if self.is_initialized and capacity != self.capacity:
            self.keys, self.values = (torch.nn.functional.pad(states, (0, 0, 0, capacity - self.capacity)) for states in self._both())
        self.capacity = capacity

    def keep(self, rows: Tensor) -> None:
        self.rows = len(rows)
        self.keys, self.values = (states.index_select(0, rows) for states in self._both())

    def lend(self, rows: Tensor) -> Layer:
        copy = Layer(self.rows, self.capacity)
        copy.keys, copy.values = self._both()
        copy.is_initialized = True
        copy.keep(rows)
        return copy

    def copy_from(self, other: Layer, rows: Tensor, positions: Tensor) -> None:
        theirs = torch.arange(len(rows), device=rows.device)[:, None]
        for states, written in zip(self._both(), other._both(), strict=True):
            states[rows[:, None], :, positions] = written[theirs, :, positions]

    def join(self, other: Layer) -> None:
        self.keys, self.values = (torch.cat(pair) for pair in zip(self._both(), other._both(), strict=True))
        self.rows += other.rows

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.place.upto if self.place else query_length), 0

    def get_seq_length(self) -> int:
        """What a model that is not told its positions would count on from; ours always are."""
        return 0

    def get_max_length(self) -> int:
        return self.capacity

    def get_max_cache_shape(self) -> int:
        """The name it had before transformers 5.12."""
        return self.capacity
