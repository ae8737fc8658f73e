"""The keys and values of one session, held by the requester (DEC-S3)."""

from __future__ import annotations

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture
from blyan_proto.errors import LimitExceeded


class KeyValueCache:
    """Room for `capacity` tokens in every layer; layers fill one after the other."""

    def __init__(
        self,
        architecture: Architecture,
        capacity: int,
        device: torch.device | None = None,
    ) -> None:
        """LimitExceeded when `capacity` is above the model's context."""
        if not 0 < capacity <= architecture.context:
            raise LimitExceeded(
                f"{capacity} tokens, the model's context is {architecture.context}"
            )
        shape = (
            architecture.layers,
            architecture.kv_heads,
            capacity,
            architecture.head_width,
        )
        self.capacity = capacity
        self._keys = torch.empty(shape, device=device)  # (L, G, capacity, w)
        self._values = torch.empty(shape, device=device)  # (L, G, capacity, w)
        self._lengths = [0] * architecture.layers

    @property
    def tokens(self) -> int:
        """Tokens that every layer has seen."""
        return min(self._lengths)

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return self._keys.nbytes + self._values.nbytes

    def length(self, layer: int) -> int:
        """Tokens that `layer` has seen: the position of its next one."""
        return self._lengths[layer]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add T tokens, keys and values (G, T, w); return all of them (1, G, S, w).

        LimitExceeded when they do not fit.
        """
        start = self._lengths[layer]
        end = start + keys.shape[1]
        if end > self.capacity:
            raise LimitExceeded(f"{end} tokens, this session has {self.capacity}")
        self._keys[layer, :, start:end] = keys
        self._values[layer, :, start:end] = values
        self._lengths[layer] = end
        return (
            self._keys[layer : layer + 1, :, :end],  # (1, G, S, w)
            self._values[layer : layer + 1, :, :end],  # (1, G, S, w)
        )

    def rewind(self, tokens: int) -> None:
        """Forget everything after the first `tokens`, so that a step can be redone."""
        self._lengths = [min(length, tokens) for length in self._lengths]
