"""The way of weights from mapped files to an accelerator: one copy through pinned memory.

A mapping cannot be read by the device itself, and pinning it would copy it first (HZ-51).
So two pinned buffers take turns: while the device reads one, the other is filled.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

BUFFER_BYTES = 8 << 20  # a tile is at most half of it


class Staging:
    """Brings tensors to `device`; on the CPU they stay where they are. Any thread."""

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._device = device
        self._buffer_bytes = buffer_bytes
        self._lock = threading.Lock()  # of the buffers
        self._buffers: list[Tensor] = []
        self._read: list[torch.cuda.Event] = []  # the device is done with a buffer

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return `tensor` on the device, ready for whatever is queued there next."""
        if self._device.type == "cpu":
            return tensor
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        source = tensor.contiguous().view(-1).view(torch.uint8)
        target = made.view(-1).view(torch.uint8)
        with self._lock, torch.cuda.device(self._device):
            if not self._buffers:
                self._begin()
            starts = range(0, source.numel(), self._buffer_bytes)
            for turn, start in enumerate(starts):
                part = source[start : start + self._buffer_bytes]
                place = turn % len(self._buffers)
                self._read[place].synchronize()
                pinned = self._buffers[place][: part.numel()]
                pinned.copy_(part)
                target[start : start + part.numel()].copy_(pinned, non_blocking=True)
                self._read[place].record()
        return made

    def _begin(self) -> None:
        for _ in range(2):
            self._buffers.append(
                torch.empty(self._buffer_bytes, dtype=torch.uint8, pin_memory=True)
            )
            self._read.append(torch.cuda.Event())  # type: ignore[no-untyped-call]
