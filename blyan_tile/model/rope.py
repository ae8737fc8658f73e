"""Rotary positions: the angle by which each pair of a head turns, by position.

The formulas of docs/block-format.md 4.1, in float64: tables of different machines then
agree after the rounding to float32. Letters: w head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from blyan_proto.block.model import Architecture, RopeKind, RopeScaling

PPB = 1_000_000_000
ROWS_AT_ONCE = 1024  # positions; a number's place in its block never changes

Wave = Callable[[Tensor], Tensor]


class PositionTable:
    """A row (w/2,) float32 per position, made when it is first asked for.

    A model's context may be longer than anyone's memory.
    """

    def __init__(
        self, architecture: Architecture, wave: Wave, device: torch.device | None
    ) -> None:
        self._rates = rates(architecture)  # (w/2,)
        self._scale = amplitude(architecture)
        self._wave = wave
        self._device = device
        self._rows = torch.empty(0, len(self._rates), device=device)  # (made, w/2)

    def __getitem__(self, positions: slice) -> Tensor:
        """Return the rows of `positions`, (T, w/2); a slice with an end. In any thread."""
        rows = self._rows
        if positions.stop > len(rows):
            self._rows = rows = self._grown(rows, max(positions.stop, 2 * len(rows)))
        return rows[positions]

    def _grown(self, rows: Tensor, wanted: int) -> Tensor:
        starts = range(len(rows), wanted, ROWS_AT_ONCE)
        return torch.cat((rows, *(self._block(start) for start in starts)))

    def _block(self, start: int) -> Tensor:
        positions = torch.arange(start, start + ROWS_AT_ONCE, dtype=torch.float64)
        angles = torch.outer(positions, self._rates)  # (ROWS_AT_ONCE, w/2)
        return (self._wave(angles) * self._scale).float().to(self._device)


def rope_tables(
    architecture: Architecture, device: torch.device | None = None
) -> tuple[PositionTable, PositionTable]:
    """Return the cosines and the sines of an architecture's positions."""
    return (
        PositionTable(architecture, torch.cos, device),
        PositionTable(architecture, torch.sin, device),
    )


def rates(architecture: Architecture) -> Tensor:
    """Return by how much each pair turns per position, (w/2,) float64."""
    width = architecture.head_width
    pairs = torch.arange(0, width, 2, dtype=torch.float64)  # (w/2,)
    plain = architecture.rope_base ** (-pairs / width)  # (w/2,)
    rope = architecture.rope
    if rope is None:
        return plain
    stretched = plain / (rope.factor_ppb / PPB)  # (w/2,)
    if rope.kind is RopeKind.LINEAR:
        return stretched
    kept = (
        _kept_by_wavelength(rope, plain)
        if rope.kind is RopeKind.LLAMA3
        else _kept_by_turns(rope, architecture.rope_base, width)
    )  # (w/2,), 1 where a pair turns as before
    return plain * kept + stretched * (1 - kept)  # (w/2,)


def amplitude(architecture: Architecture) -> float:
    """Return what cosines and sines are multiplied with; 1 except for YaRN."""
    rope = architecture.rope
    if rope is None or rope.kind is not RopeKind.YARN:
        return 1.0
    if rope.attention_ppb:
        return rope.attention_ppb / PPB
    return 0.1 * math.log(max(1.0, rope.factor_ppb / PPB)) + 1.0


def _kept_by_wavelength(rope: RopeScaling, plain: Tensor) -> Tensor:
    """Llama 3: short waves stay, long ones are stretched, a ramp between them."""
    low, high = rope.low_ppb / PPB, rope.high_ppb / PPB
    turns = rope.original_context * plain / (2 * math.pi)  # (w/2,) in that context
    return ((turns - low) / (high - low)).clamp(0, 1)  # (w/2,)


def _kept_by_turns(rope: RopeScaling, base: int, width: int) -> Tensor:
    """YaRN (arXiv 2309.00071): a ramp over the number of the pair."""

    def pair_that_turns(times: float) -> float:
        ratio = rope.original_context / (times * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(base))

    start = pair_that_turns(rope.high_ppb / PPB)
    end = pair_that_turns(rope.low_ppb / PPB)
    if rope.whole_pairs:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, width - 1)
    if start == end:
        end += 0.001  # a step instead of a ramp
    pairs = torch.arange(width // 2, dtype=torch.float64)  # (w/2,)
    return 1 - ((pairs - start) / (end - start)).clamp(0, 1)  # (w/2,)
