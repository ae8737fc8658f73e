"""SC: the largest of each 4096 elements; their positions as gaps, 1 or 2 bits a value.

Chunks are runs of 4096 elements in row-major order. A value is a sign and, with 2 bits,
which of its chunk's two magnitudes: integers of 8 bits times one power of two per tile.
What is kept is the sender's choice: a receiver counts it per tile. docs/tile-layout.md.
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.block.sending import check, sparse_parts
from blyan_proto.errors import DecodeError
from blyan_tile.compress import rice
from blyan_tile.compress.bits import packed, packed_bytes, unpacked
from blyan_tile.compress.exponent import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    lifted,
    scales_of,
)
from blyan_tile.compress.scheme import Scheme

CHUNK = 4096
_SHIFT = 12
_STRIDE = 7  # of a sample; no divisor of the usual widths
_HEADER = struct.Struct("<BHhB")  # codec, setting, exponent, low bits of a gap


def _kept(setting: int, elements: int) -> tuple[int, int]:
    """Return (values of a whole chunk, values of the last, shorter one)."""
    kept, _ = sparse_parts(setting)
    return kept, -(-kept * (elements % CHUNK) // CHUNK)


def _count(setting: int, elements: int) -> int:
    whole, last = _kept(setting, elements)
    return whole * (elements // CHUNK) + last


def _scale_bytes(setting: int, elements: int) -> int:
    return sparse_parts(setting)[1] * -(-elements // CHUNK)


def encoded_bytes(setting: int, shape: tuple[int, ...]) -> int:
    """Return the bound on the length of an encoding. ValueError."""
    check(Codec.SC, setting)
    elements = prod(shape)
    count = _count(setting, elements)
    values = packed_bytes(count, sparse_parts(setting)[1])
    scales = _scale_bytes(setting, elements)
    return _HEADER.size + scales + values + rice.most_bytes(count, elements)


def encode(
    setting: int, x: np.ndarray, warm: np.ndarray | None
) -> tuple[bytes, np.ndarray | None]:
    """Return the bytes of `x`, float32. ValueError if not finite or out of range."""
    check(Codec.SC, setting)
    flat = x.reshape(-1)
    y, lift = lifted(flat)
    sizes = np.abs(y)
    positions = _largest(setting, sizes)
    _, bits = sparse_parts(setting)
    magnitudes = _magnitudes(sizes[positions], positions, len(flat), bits)
    scales, sent, exponent = scales_of(magnitudes, lift)  # (chunks, bits)
    fields = (y[positions] < 0).astype(np.uint16)
    if bits == 2:
        middles = sent.mean(axis=1)  # halfway between the chunk's two magnitudes
        fields |= (sizes[positions] > middles[positions >> _SHIFT]).astype("<u2") << 1
    low, low_parts, unary = rice.encode(positions, len(flat))
    head = _HEADER.pack(Codec.SC, setting, exponent if scales.any() else 0, low)
    parts = (head, scales.tobytes(), packed(fields, bits), low_parts, unary)
    return b"".join(parts), None


def _largest(setting: int, sizes: np.ndarray) -> np.ndarray:
    """Return the ascending positions of the largest of each chunk, int64."""
    whole, last = _kept(setting, len(sizes))
    cut = len(sizes) // CHUNK * CHUNK
    found = []
    if cut:
        places = _top(sizes[:cut].reshape(-1, CHUNK), whole)
        found.append((places + np.arange(0, cut, CHUNK)[:, None]).ravel())
    if last:
        found.append(cut + _top(sizes[None, cut:], last).ravel())
    return np.concatenate(found)


def _top(square: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending places of the `count` largest of each row, (rows, count).

    A sample of each row says above which size to look, which leaves few to compare.
    """
    sample = square[:, ::_STRIDE]
    rank = min(2 * -(-count // _STRIDE) + 4, sample.shape[1])
    floor = np.partition(sample, -rank, axis=1)[:, -rank]
    above = np.flatnonzero(square >= floor[:, None])  # in all rows
    rows = above // square.shape[1]
    counts = np.bincount(rows, minlength=len(square))
    if counts.min() < count or len(above) > square.size // 2:
        return np.sort(np.argpartition(square, -count, axis=1)[:, -count:], axis=1)
    starts = np.cumsum(counts) - counts
    table = np.full((len(square), counts.max()), -1, np.float32)
    table[rows, np.arange(len(rows)) - starts[rows]] = square.ravel()[above]
    chosen = np.argpartition(table, -count, axis=1)[:, -count:] + starts[:, None]
    places: np.ndarray = above[np.sort(chosen, axis=1)] % square.shape[1]
    return places


def _magnitudes(
    sizes: np.ndarray, positions: np.ndarray, elements: int, bits: int
) -> np.ndarray:
    """Return each chunk's one or two magnitudes (chunks, bits) that lose least."""
    chunks = -(-elements // CHUNK)
    counts = np.bincount(positions >> _SHIFT, minlength=chunks)
    table = np.zeros((chunks, int(counts.max())), np.float32)
    table[np.arange(table.shape[1]) < counts[:, None]] = sizes
    if bits == 1:
        mean: np.ndarray = table.sum(axis=1, keepdims=True) / counts[:, None]
        return mean.astype(np.float32)
    table = -np.sort(-table, axis=1)  # descending; the filling stays last
    sums = np.cumsum(table, axis=1)
    upper = np.arange(1, table.shape[1] + 1)
    lower = np.maximum(counts[:, None] - upper, 0)
    rest = sums[:, -1:] - sums
    captured = sums**2 / upper + rest**2 / np.maximum(lower, 1)
    cut = np.argmax(captured, axis=1)[:, None]  # last place of the upper class
    high = np.take_along_axis(sums, cut, 1) / (cut + 1)
    low = np.take_along_axis(rest, cut, 1) / np.maximum(counts[:, None] - cut - 1, 1)
    both: np.ndarray = np.concatenate([low, high], axis=1).astype(np.float32)
    return both


def _parts(
    raw: bytes, shape: tuple[int, ...]
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return (exponent, positions, magnitudes int64, negative). DecodeError."""
    if len(raw) < _HEADER.size:
        raise DecodeError(f"{len(raw)} bytes of SC")
    codec, setting, exponent, low = _HEADER.unpack_from(raw)
    try:
        bound = encoded_bytes(setting, shape)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    if codec != Codec.SC or low > rice.MAX_LOW or len(raw) > bound:
        raise DecodeError(f"{len(raw)} bytes of SC {setting} for {shape}")
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise DecodeError(f"exponent {exponent} of SC")
    elements = prod(shape)
    count, (_, bits) = _count(setting, elements), sparse_parts(setting)
    lengths = (
        _scale_bytes(setting, elements),
        packed_bytes(count, bits),
        packed_bytes(count, low),
    )
    if len(raw) <= _HEADER.size + sum(lengths):
        raise DecodeError(f"{len(raw)} bytes of SC {setting} for {shape}")
    view, parts = memoryview(raw)[_HEADER.size :], []
    for length in lengths:
        parts.append(view[:length])
        view = view[length:]
    positions = rice.decode(low, parts[2], view, count, elements)
    fields = unpacked(parts[1], count, bits)
    scales = np.frombuffer(parts[0], np.uint8).reshape(-1, bits)
    chosen = scales[positions >> _SHIFT, fields >> 1]
    return exponent, positions, chosen.astype(np.int64), (fields & 1).astype(bool)


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the exact values, float64 of `shape`. DecodeError."""
    exponent, positions, magnitudes, negative = _parts(raw, shape)
    values = np.where(negative, -magnitudes, magnitudes)
    out = np.zeros(prod(shape), np.float64)
    out[positions] = values * 2.0**exponent
    return out.reshape(shape)


def norm_squared(raw: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n, e) with the squared norm being exactly n * 2^e. DecodeError."""
    exponent, _, magnitudes, _ = _parts(raw, shape)
    return int((magnitudes * magnitudes).sum()), 2 * exponent


SCHEME = Scheme(encode, decode, encoded_bytes, norm_squared, 2, exact=False)
