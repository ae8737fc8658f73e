"""Weights of 8 and of 4 bits, multiplied with activations of 8 bits.

Strategy. Both sides become integers of 8 bits; their products, summed in 32 bits, round
nowhere. So a row comes out the same alone and among any others, on any machine, with any
number of threads; what rounds is one product with two scales per output. Activations
have a scale per token: an outlier in one spoils no other (DEC-S2).

Four bits: 64 neighbouring columns of a row share a small integer factor, and the factors
of a row one float scale; number x factor is again an integer of 8 bits.

Letters: n tokens, k inputs, m outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 127  # of an 8-bit integer; -128 is not used, so that signs are alike
GROUP = 64  # columns that share a factor of 4-bit weights
FACTOR = 15  # largest factor: 8 * 15 is within 8 bits
LEAST = torch.finfo(torch.float32).tiny  # a scale, of a row of zeros
EXACT_COLUMNS = 131_072  # 127 * 127 * this < 2^31
FLOAT_COLUMNS = 1024  # 127 * 127 * this < 2^24
ROWS = 8  # few shapes, because each costs oneDNN a compilation
CUDA_ROWS = 32  # torch._int_mm wants more than 16 rows there ...
CUDA_COLUMNS = 8  # ... and multiples of this for the other two sides


@dataclass(frozen=True)
class Tokens:
    """Activations as a recipe multiplies them."""

    values: Tensor  # (n, k) int8; float32 or bfloat16 when `scale` is None
    scale: Tensor | None = None  # (n, 1) float32: activation = value * scale


@dataclass(frozen=True)
class Int8:
    """A matrix of 8-bit integers with a scale per row: weight = value * scale."""

    values: Tensor  # (m, k) int8
    scale: Tensor  # (m,) float32

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) -> (n, m) float32."""
        return _scaled(products(tokens.values, self.values), self.scale, tokens)


@dataclass(frozen=True)
class Int4:
    """A matrix of 4-bit integers: weight = (nibble - 8) * factor * scale.

    A byte holds a column of the left half (low nibble) and of the right half (high).
    Columns are padded to halves of whole groups.
    """

    nibbles: Tensor  # (m, k padded / 2) uint8
    factors: Tensor  # (m, k padded / GROUP, 1) int8
    scale: Tensor  # (m,) float32

    def __call__(self, tokens: Tokens) -> Tensor:
        """tokens (n, k) -> (n, m) float32."""
        weight = self.unpacked()  # (m, k padded)
        missing = weight.shape[1] - tokens.values.shape[1]
        values = F.pad(tokens.values, (0, missing)) if missing else tokens.values
        return _scaled(products(values, weight), self.scale, tokens)

    def unpacked(self) -> Tensor:
        """Return nibble * factor as (m, k padded) int8."""
        rows, half = self.nibbles.shape
        made = self.nibbles.new_empty(rows, 2 * half)
        torch.bitwise_and(self.nibbles, 15, out=made[:, :half])
        torch.bitwise_right_shift(self.nibbles, 4, out=made[:, half:])
        signed = made.view(torch.int8).sub_(8)
        signed.view(rows, -1, GROUP).mul_(self.factors)
        return signed


def quantised(x: Tensor) -> Tokens:
    """Return activations (n, k) float32 as 8-bit integers with a scale per token."""
    scale = _scale(x, LARGEST)  # (n, 1)
    return Tokens((x / scale).round_().to(torch.int8), scale)


def int8_of(matrix: Tensor) -> Int8:
    """Return a matrix (m, k) of any float type with a scale per row."""
    weight = matrix.float()
    scale = _scale(weight, LARGEST)  # (m, 1)
    return Int8((weight / scale).round_().to(torch.int8), scale[:, 0].clone())


def int4_of(matrix: Tensor) -> Int4:
    """Return a matrix (m, k) of any float type in groups of 4-bit integers.

    The number of a group that is largest in size becomes -8, whatever its sign: that
    uses all sixteen values.
    """
    rows, columns = matrix.shape
    weight = F.pad(matrix.float(), (0, -columns % (2 * GROUP)))
    scale = _scale(weight, 8 * FACTOR)  # (m, 1)
    fine = (weight / scale).view(rows, -1, GROUP)  # within 8 * FACTOR
    high, low = fine.amax(2, keepdim=True), fine.amin(2, keepdim=True)
    factors = (torch.where(high > -low, high, low) / -8).round_()  # (m, groups, 1)
    factors[factors == 0] = 1
    numbers = (fine / factors).round_().clamp_(-8, 7).add_(8)
    flat = numbers.to(torch.uint8).view(rows, -1)  # (m, k padded)
    left, right = flat.chunk(2, dim=1)
    nibbles = left | (right << 4)
    return Int4(nibbles, factors.to(torch.int8), scale[:, 0].clone())


def bytes_of_int8(rows: int, columns: int) -> int:
    """Return what `int8_of` a matrix takes."""
    return rows * columns + 4 * rows


def bytes_of_int4(rows: int, columns: int) -> int:
    """Return what `int4_of` a matrix takes."""
    padded = columns + -columns % (2 * GROUP)
    return rows * (padded // 2 + padded // GROUP + 4)


def products(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T as float32, each element rounded from the exact integer.

    x (n, k), weight (m, k) int8 -> (n, m). More than EXACT_COLUMNS columns round once
    for each further part.
    """
    made = _exact(x[:, :EXACT_COLUMNS], weight[:, :EXACT_COLUMNS]).float()  # (n, m)
    for start in range(EXACT_COLUMNS, x.shape[1], EXACT_COLUMNS):
        part = slice(start, start + EXACT_COLUMNS)
        made += _exact(x[:, part], weight[:, part])
    return made


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    """Return the sums as int32."""
    rows = x.shape[0]
    if x.device.type == "cuda":
        fits = not (x.shape[1] % CUDA_COLUMNS or weight.shape[0] % CUDA_COLUMNS)
        least = CUDA_ROWS
    else:
        # torch takes a single column for a row of another matrix: wrong sums.
        fits, least = x.shape[1] > 1 and _is_exact(), ROWS
    if not fits:
        return _by_floats(x, weight)
    if rows > 1 or least > ROWS:
        x = F.pad(x, (0, 0, 0, -rows % least))
    return torch._int_mm(x, weight.t())[:rows]


def _by_floats(x: Tensor, weight: Tensor) -> Tensor:
    """The same sums where no unit multiplies 8-bit integers: floats hold them exactly."""
    made = torch.zeros(
        x.shape[0], weight.shape[0], dtype=torch.int32, device=x.device
    )  # (n, m)
    for start in range(0, x.shape[1], FLOAT_COLUMNS):
        part = slice(start, start + FLOAT_COLUMNS)
        made += F.linear(x[:, part].float(), weight[:, part].float()).to(torch.int32)
    return made


@cache
def _is_exact() -> bool:
    """Does this CPU sum 8-bit products in 32 bits? Older ones saturate at 16."""
    x = torch.full((ROWS, 2 * GROUP), LARGEST, dtype=torch.int8)
    sums = torch._int_mm(x, -x.t())
    return bool((sums == -2 * GROUP * LARGEST * LARGEST).all())


def _scale(x: Tensor, largest: int) -> Tensor:
    """Return the scale (n, 1) at which each row's largest number becomes `largest`."""
    return (x.abs().amax(1, keepdim=True) / largest).clamp_(min=LEAST)


def _scaled(sums: Tensor, scale: Tensor, tokens: Tokens) -> Tensor:
    assert tokens.scale is not None
    return sums.mul_(scale).mul_(tokens.scale)  # (n, m)
