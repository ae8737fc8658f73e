"""Q: every element in 1, 2, 4 or 8 bits, with one scale per 128 of them.

A level is an odd integer, so that no code word is wasted or forbidden: -1 and 1 with
one bit, -15 to 15 with four. A block of zeros has the scale 0. docs/tile-layout.md.
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.block.sending import Q_BITS, check
from blyan_proto.errors import DecodeError
from blyan_tile.compress.bits import packed_bytes
from blyan_tile.compress.exponent import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    lifted,
    scales_of,
)
from blyan_tile.compress.scheme import Scheme

BLOCK = 128
_HEADER = struct.Struct("<BBh")  # codec, bits, exponent
# Half a step over the root mean square that loses least of Gaussian values (Max 1960);
# with 8 bits the largest of a block decides.
_HALF_STEPS = {1: 0.7979, 2: 0.4979, 4: 0.1676, 8: 1.0}
_TINY = np.float32(2.0**-126)


def _levels(bits: int) -> np.ndarray:
    """Return the (256, 8 / bits) int32 levels that each byte stands for."""
    shifts = np.arange(0, 8, bits)
    fields = np.arange(256)[:, None] >> shifts & ((1 << bits) - 1)
    levels: np.ndarray = (2 * fields - ((1 << bits) - 1)).astype(np.int32)
    return levels


_LEVELS = {bits: _levels(bits) for bits in Q_BITS}


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK)


def encoded_bytes(setting: int, shape: tuple[int, ...]) -> int:
    """Return the exact length of the encoding. ValueError."""
    check(Codec.Q, setting)
    elements = prod(shape)
    return _HEADER.size + _blocks(elements) + packed_bytes(elements, setting)


def encode(
    setting: int, x: np.ndarray, warm: np.ndarray | None
) -> tuple[bytes, np.ndarray | None]:
    """Return the bytes of `x`, float32. ValueError if not finite or out of range."""
    check(Codec.Q, setting)
    y, lift = lifted(x.reshape(-1))
    blocks = np.zeros((_blocks(y.size), BLOCK), np.float32)
    blocks.reshape(-1)[: y.size] = y
    counts = np.full(len(blocks), BLOCK, np.float32)
    counts[-1] = y.size - BLOCK * (len(blocks) - 1)
    scales, sent, exponent = scales_of(_steps(blocks, counts, setting), lift)
    fields = _fields(blocks, np.maximum(sent, _TINY), setting)
    levels = _packed(fields.reshape(-1)[: y.size], setting)
    head = _HEADER.pack(Codec.Q, setting, exponent if scales.any() else 0)
    return head + scales.tobytes() + levels, None


def _steps(blocks: np.ndarray, counts: np.ndarray, bits: int) -> np.ndarray:
    """Return, per block, the scale whose levels lose least."""
    if bits == 1:
        mean: np.ndarray = np.abs(blocks).sum(axis=1) / counts
        return mean
    top = np.abs(blocks).max(axis=1) / np.float32((1 << bits) - 1)
    spread = np.sqrt(np.einsum("ij,ij->i", blocks, blocks) / counts)
    steps: np.ndarray = np.minimum(top, spread * np.float32(_HALF_STEPS[bits]))
    if bits > 2:
        return steps
    # given the levels, the scale by least squares
    levels = _fields(blocks, np.maximum(steps, _TINY), bits).astype(np.float32)
    levels *= 2
    levels -= (1 << bits) - 1
    inner = np.einsum("ij,ij->i", blocks, levels)
    better: np.ndarray = inner / np.einsum("ij,ij->i", levels, levels)
    return better


def _fields(blocks: np.ndarray, steps: np.ndarray, bits: int) -> np.ndarray:
    """Return the nearest levels as code words, uint8 (blocks, BLOCK)."""
    top = (1 << bits) - 1
    halves = blocks * (np.float32(0.5) / steps)[:, None]
    halves += np.float32(top / 2)
    np.rint(halves, out=halves)
    return np.clip(halves, 0, top, out=halves).astype(np.uint8)


def _packed(fields: np.ndarray, bits: int) -> bytes:
    """Return code words as fields of `bits`, a divisor of 8."""
    if bits == 1:
        return np.packbits(fields, bitorder="little").tobytes()
    each = 8 // bits
    padded = np.zeros(-(-len(fields) // each) * each, np.uint8)
    padded[: len(fields)] = fields
    whole = padded[::each].copy()
    for place in range(1, each):
        whole |= padded[place::each] << np.uint8(place * bits)
    return whole.tobytes()


def _parts(raw: bytes, shape: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray]:
    """Return (exponent, scales (blocks,) int64, levels (elements,) int32). DecodeError."""
    if len(raw) < _HEADER.size:
        raise DecodeError(f"{len(raw)} bytes of Q")
    codec, bits, exponent = _HEADER.unpack_from(raw)
    if codec != Codec.Q or bits not in Q_BITS or len(raw) != encoded_bytes(bits, shape):
        raise DecodeError(f"{len(raw)} bytes of Q {bits} for {shape}")
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise DecodeError(f"exponent {exponent} of Q")
    elements = prod(shape)
    start = _HEADER.size + _blocks(elements)
    used = elements * bits % 8
    if used and raw[-1] >> used:
        raise DecodeError("padding of Q is not zero")
    scales = np.frombuffer(raw, np.uint8, _blocks(elements), _HEADER.size)
    levels = _LEVELS[bits][np.frombuffer(raw, np.uint8, offset=start)]
    return exponent, scales.astype(np.int64), levels.reshape(-1)[:elements]


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the exact values, float64 of `shape`. DecodeError."""
    exponent, scales, levels = _parts(raw, shape)
    each: np.ndarray = np.repeat(scales * 2.0**exponent, BLOCK)[: len(levels)]
    np.multiply(each, levels, out=each)
    return each.reshape(shape)


def norm_squared(raw: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n, e) with the squared norm being exactly n * 2^e. DecodeError."""
    exponent, scales, levels = _parts(raw, shape)
    starts = np.arange(0, len(levels), BLOCK)
    squares = np.add.reduceat(levels * levels, starts).astype(np.int64)
    # a block is below 128 * 255^2 * 255^2 < 2^39, and there are at most 2^13
    return int((squares * scales * scales).sum()), 2 * exponent


SCHEME = Scheme(encode, decode, encoded_bytes, norm_squared)
