"""A key-value cache of slots for continuous decoding: sequences of different lengths join and leave between steps.

Occupied slots are always the first n, so a step reads views of the storage and copies nothing; when a sequence leaves,
the last one takes its place. Every slot has the columns that the longest sequence needs: the storage grows with that,
never past the context, and shrinks at the end of sequences that needed less than a quarter of it.
Shapes: S slots, H key-value heads, M columns of storage, B rows, L columns of a prompt, d head width.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

_COLUMNS, _KEPT = 64, 512


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values [S, H, M, d]; where to write is the cache's to know."""

    is_sliding = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Storage of the prompt's dtype and device, without any columns yet."""
        shape = (self.cache.num_slots, key_states.shape[1], 0)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def stored(self, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values with room for `columns`: grown, where they must be, to double, and not past the context."""
        assert self.keys is not None
        assert self.values is not None
        held = self.keys.shape[2]
        if columns > held:
            wanted = max(columns, min(_blocks(max(columns, 2 * held)), self.cache.context))
            self.keys, self.values = (F.pad(kept, (0, 0, 0, wanted - held)) for kept in (self.keys, self.values))
        return self.keys, self.values

    def fill(self, start: int, keys_BHLd: Tensor, values_BHLd: Tensor) -> None:
        """Take over the prompts of a prefill as slots from `start` on."""
        if not self.is_initialized:
            self.lazy_initialization(keys_BHLd, values_BHLd)
        keys, values = self.stored(keys_BHLd.shape[2])
        rows, columns = slice(start, start + keys_BHLd.shape[0]), slice(keys_BHLd.shape[2])
        keys[rows, :, columns] = keys_BHLd
        values[rows, :, columns] = values_BHLd

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append one column to every occupied slot; views of all that is stored, to be masked by length."""
        used, longest = self.cache.used, self.cache.longest
        keys, values = self.stored(longest)
        rows, columns = self.cache.rows[:used], self.cache.lengths[:used] - 1
        keys[rows, :, columns] = key_states[:, :, 0]
        values[rows, :, columns] = value_states[:, :, 0]
        return keys[:used, :, :longest], values[:used, :, :longest]

    def move(self, source: int, target: int, length: int) -> None:
        for stored in self.stored(length):
            stored[target, :, :length] = stored[source, :, :length]

    def clear(self, slot: int) -> None:
        """Zeros, as a mask multiplies what it hides by zero, and zero times NaN is NaN."""
        for stored in self.stored(0):
            stored[slot] = 0

    def trim(self, columns: int) -> None:
        """Give back what is far more than `columns` need."""
        if self.keys is not None and self.values is not None and self.keys.shape[2] > max(_KEPT, 4 * columns):
            self.keys, self.values = (kept[:, :, : _blocks(2 * columns)].clone() for kept in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest, 0

    def get_seq_length(self) -> int:
        return self.cache.longest

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """`num_slots` sequences of up to `context` columns; `lengths` counts those that each occupied slot holds."""

    def __init__(self, num_slots: int, num_layers: int, device: torch.device, context: int) -> None:
        self.num_slots, self.used, self.longest, self.context = num_slots, 0, 0, context
        self.rows = torch.arange(num_slots, device=device)
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._lengths = [0] * num_slots
        self._slots = [SlotLayer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self._slots))

    def fill(self, prompt: DynamicCache, lengths: Sequence[int]) -> None:
        """Take over a prefill of right-padded rows, `lengths` long, into the next free slots."""
        assert self.used + len(lengths) <= self.num_slots, f"{self.used} + {len(lengths)} of {self.num_slots} slots"
        layers: list[Any] = prompt.layers
        for slots, layer in zip(self._slots, layers, strict=True):
            slots.fill(self.used, layer.keys, layer.values)
        self._lengths[self.used : self.used + len(lengths)] = lengths
        self.used += len(lengths)
        self._note()

    def extend(self) -> tuple[Tensor, Tensor | None]:
        """Make room for one column in every occupied slot.

        Returns the positions [n, 1] of that column and the mask [n, 1, 1, longest] that hides what lies past each
        slot's own length, or None where all are of one length.
        """
        self._lengths[: self.used] = [length + 1 for length in self._lengths[: self.used]]
        self._note()
        lengths_n1 = self.lengths[: self.used, None]
        if min(self._lengths[: self.used]) == self.longest:
            return lengths_n1 - 1, None
        columns_M = torch.arange(self.longest, device=self.lengths.device)
        return lengths_n1 - 1, (columns_M < lengths_n1)[:, None, None]

    def release(self, slots: Collection[int]) -> list[int]:
        """Free slots; for each that is still occupied, in order, the slot it was before."""
        # Of those that leave too: where they leave none behind, the next ones will need about as much.
        needed = self.longest
        were = list(range(self.used))
        for slot in sorted(set(slots), reverse=True):
            last = self.used - 1
            if slot != last:
                for layer in self._slots:
                    layer.move(last, slot, self._lengths[last])
                self._lengths[slot] = self._lengths[last]
                were[slot] = were[last]
            for layer in self._slots:
                layer.clear(last)
            self.used = last
        self._note()
        for layer in self._slots:
            layer.trim(needed)
        return were[: self.used]

    def _note(self) -> None:
        held = self._lengths[: self.used]
        self.longest = max(held, default=0)
        self.lengths[: self.used] = torch.tensor(held, dtype=torch.long, device=self.lengths.device)


def _blocks(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS
