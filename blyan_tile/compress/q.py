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
    flat = fields.reshape(-1)[: y.size]
    per_byte = 8 // setting
    padded = np.zeros(-(-len(flat) // per_byte) * per_byte, np.uint8)
    padded[: len(flat)] = flat
    lanes = padded.reshape(-1, per_byte) << np.arange(0, 8, setting, dtype=np.uint8)
    levels = np.bitwise_or.reduce(lanes, axis=1)
    head = _HEADER.pack(Codec.Q, setting, exponent if scales.any() else 0)
    return head + scales.tobytes() + levels.tobytes(), None


def _steps(blocks: np.ndarray, counts: np.ndarray, bits: int) -> np.ndarray:
    """Return, per block, the scale whose levels lose least."""
    if bits == 1:
        mean: np.ndarray = np.abs(blocks).sum(axis=1) / counts
        return mean
    top = np.abs(blocks).max(axis=1) / np.float32((1 << bits) - 1)
    spread = np.sqrt(np.square(blocks).sum(axis=1) / counts)
    steps: np.ndarray = np.minimum(top, spread * np.float32(_HALF_STEPS[bits]))
    if bits == 8:
        return steps
    # given the levels, the scale by least squares
    fields = _fields(blocks, np.maximum(steps, _TINY), bits)
    levels = 2 * fields.astype(np.float32) - ((1 << bits) - 1)
    better: np.ndarray = (blocks * levels).sum(axis=1) / np.square(levels).sum(axis=1)
    return better


def _fields(blocks: np.ndarray, steps: np.ndarray, bits: int) -> np.ndarray:
    """Return the nearest levels as code words, uint8 (blocks, BLOCK)."""
    top = (1 << bits) - 1
    halves = blocks * (np.float32(0.5) / steps)[:, None] + np.float32(top / 2)
    nearest: np.ndarray = np.clip(np.rint(halves), 0, top).astype(np.uint8)
    return nearest


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
