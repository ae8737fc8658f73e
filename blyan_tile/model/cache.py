"""The keys and values of one sequence in a run of layers.

Held by whoever attends: the requester in expert mode, the server of a span (DEC-S3).
Memory grows with the sequence: `capacity` is what it may come to, not what it takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture
from blyan_proto.errors import LimitExceeded

PAGE_TOKENS = 64  # the first allocation; each further one doubles
ELEMENT_BYTES = 4  # float32


def cache_bytes(architecture: Architecture, tokens: int, layers: int) -> int:
    """Return the memory of `tokens` tokens in `layers` layers."""
    per_token = 2 * architecture.kv_heads * architecture.head_width * ELEMENT_BYTES
    return layers * tokens * per_token


class KeyValueCache:
    """Keys and values of up to `capacity` tokens in the layers first to end - 1.

    Layers are numbered as in the model; they fill one after the other.
    """

    def __init__(
        self,
        architecture: Architecture,
        capacity: int,
        device: torch.device | None = None,
        first: int = 0,
        end: int | None = None,
    ) -> None:
        """LimitExceeded when `capacity` is above the model's context."""
        if not 0 < capacity <= architecture.context:
            raise LimitExceeded(
                f"{capacity} tokens, the model's context is {architecture.context}"
            )
        self.first = first
        self.end = architecture.layers if end is None else end
        self.capacity = capacity
        shape = (architecture.kv_heads, 0, architecture.head_width)
        empty = torch.empty(shape, device=device)  # (G, 0, w)
        count = self.end - first
        self._keys = [empty] * count  # (G, room, w) each
        self._values = [empty] * count  # (G, room, w) each
        self._lengths = [0] * count

    @property
    def tokens(self) -> int:
        """Tokens that every layer has seen."""
        return min(self._lengths)

    @property
    def bytes(self) -> int:
        """Memory of the keys and values now."""
        return sum(part.nbytes for part in self._keys + self._values)

    def length(self, layer: int) -> int:
        """Tokens that `layer` has seen: the position of its next one."""
        return self._lengths[layer - self.first]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens, keys and values (G, T, w); return all of them (1, G, S, w).

        LimitExceeded when they do not fit.
        """
        place = layer - self.first
        start = self._lengths[place]
        end = start + keys.shape[1]
        if end > self.capacity:
            raise LimitExceeded(f"{end} tokens, this session has {self.capacity}")
        if end > self._keys[place].shape[1]:
            self._grow(place, end)
        all_keys, all_values = self._keys[place], self._values[place]
        all_keys[:, start:end] = keys
        all_values[:, start:end] = values
        self._lengths[place] = end
        return all_keys[None, :, :end], all_values[None, :, :end]  # (1, G, S, w)

    def rewind(
        self, tokens: int, first: int | None = None, end: int | None = None
    ) -> None:
        """Forget everything after the first `tokens`, so that a step can be redone.

        In the layers `first` to `end` - 1, by default all.
        """
        for layer in range(first or self.first, end or self.end):
            place = layer - self.first
            self._lengths[place] = min(self._lengths[place], tokens)

    def _grow(self, place: int, tokens: int) -> None:
        """Make room for `tokens`, at least twice what there was."""
        kept, old = self._lengths[place], self._keys[place]
        pages = -(-max(tokens, 2 * old.shape[1]) // PAGE_TOKENS)
        room = min(self.capacity, pages * PAGE_TOKENS)
        for parts in (self._keys, self._values):
            grown = old.new_empty(old.shape[0], room, old.shape[2])  # (G, room, w)
            grown[:, :kept] = parts[place][:, :kept]
            parts[place] = grown
