"""LR4: low rank with 4-bit factors. X = 2^e * sum over k of s_k * p_k * q_k^T.

p and q are integers in -7..7, s in 0..255: a product of the factors is an integer below
2^24, so one float32 GEMM gives the same bytes on every machine, whatever its order of
summation (DEC-B1). Encoding is the learner's own affair and may differ between
machines. docs/tile-layout.md.
"""

from __future__ import annotations

import struct

import numpy as np

from blyan_proto.block.model import Codec
from blyan_proto.block.sending import MAX_RANK
from blyan_proto.errors import DecodeError
from blyan_tile.compress.exponent import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    lifted,
    scales_of,
)
from blyan_tile.compress.scheme import Scheme

_HEADER = struct.Struct("<BBh")  # codec, rank, exponent
_TOP = 7  # largest nibble; -8 is not used

# Step of a 15-level quantiser relative to max / 7: which is best depends on the tails.
_STEPS = np.array([1.0, 0.87, 0.75, 0.65], np.float32)
_TINY = np.float32(2.0**-126)
_START_SEED = 4  # of the first Q where there is no warm one; any value will do


def rank_of(setting: int, shape: tuple[int, ...]) -> int:
    """Return the rank used for a tile: the run's, at most the shorter side."""
    return min(setting, *shape)


def encoded_bytes(setting: int, shape: tuple[int, ...]) -> int:
    """Return the exact length of the encoding of an (m, n) tile. ValueError."""
    if len(shape) != 2:
        raise ValueError("LR4 is for matrices")
    rank = rank_of(setting, shape)
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"rank {rank}, allowed 1..{MAX_RANK}")
    return _HEADER.size + rank + sum((side * rank + 1) // 2 for side in shape)


def encode(
    setting: int, x: np.ndarray, warm: np.ndarray | None
) -> tuple[bytes, np.ndarray | None]:
    """Return the bytes of `x` (m, n) float32 and the Q (n, r) to start from next time.

    `warm` is what the last call for this tile returned, or None; one of another shape
    is ignored. ValueError if `x` is not finite or beyond the exponent's range.
    """
    encoded_bytes(setting, x.shape)
    rank = rank_of(setting, x.shape)
    y, lift = lifted(x)
    if not y.any():
        m, n = x.shape
        empty = np.zeros((m, rank), np.int8), np.zeros((n, rank), np.int8)
        return _pack(0, np.zeros(rank, np.uint8), *empty), warm
    basis = basis_of(y, rank, warm)
    p = _quantised(basis, _best_steps(basis))
    right = _solve(p, y)  # (n, r) float32, the least-squares partner of p
    scales, steps, exponent = scales_of(_best_steps(right), lift, least=1)
    # q is quantised with the scale as sent, so rounding the scale costs no accuracy
    q = _quantised(right, steps)
    return _pack(exponent, scales, p, q), right


def basis_of(x: np.ndarray, rank: int, warm: np.ndarray | None) -> np.ndarray:
    """Return an orthonormal (m, r) basis near the top left singular vectors."""
    n = x.shape[1]
    if warm is None or warm.shape != (n, rank) or not np.isfinite(warm).all():
        generator = np.random.default_rng(_START_SEED)
        q = generator.standard_normal((n, rank), np.float32)
        q = _orthonormal(x.T @ (x @ q))
    else:
        q = warm
    return _orthonormal(x @ _orthonormal(x.T @ (x @ q)))


def _orthonormal(a: np.ndarray) -> np.ndarray:
    basis: np.ndarray = np.linalg.qr(a)[0]
    return basis


def _best_steps(columns: np.ndarray) -> np.ndarray:
    """Return, per column, the step (r,) whose 15 levels lose least."""
    full = np.maximum(np.abs(columns).max(axis=0) / np.float32(_TOP), _TINY)
    losses = [
        np.square(columns - _quantised(columns, full * step) * (full * step)).sum(
            axis=0
        )
        for step in _STEPS
    ]
    best: np.ndarray = full * _STEPS[np.argmin(losses, axis=0)]
    return best


def _quantised(columns: np.ndarray, steps: np.ndarray) -> np.ndarray:
    levels: np.ndarray = np.clip(np.rint(columns / steps), -_TOP, _TOP)
    return levels.astype(np.int8)


def _solve(p: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the (n, r) Q that makes p @ Q.T closest to x."""
    tall = p.astype(np.float32)
    gram = (tall.T @ tall).astype(np.float64)
    gram[np.diag_indices_from(gram)] += 1e-6 * gram.trace() / len(gram)
    return np.linalg.solve(gram, tall.T @ x).T.astype(np.float32)


def _pack(exponent: int, scales: np.ndarray, p: np.ndarray, q: np.ndarray) -> bytes:
    head = _HEADER.pack(Codec.LR4, len(scales), exponent)
    return head + scales.tobytes() + _nibbles(p) + _nibbles(q)


def _nibbles(factor: np.ndarray) -> bytes:
    """Column by column, two's complement, the first of two in the low half."""
    flat = factor.T.reshape(-1).view(np.uint8) & 0xF
    if len(flat) % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[::2] | flat[1::2] << 4).tobytes()


def _factor(raw: memoryview, rows: int, rank: int) -> np.ndarray:
    """Return an (r, rows) int8 factor of values -7..7."""
    packed = np.frombuffer(raw, np.uint8)
    flat = np.empty(2 * len(packed), np.int8)
    flat[::2] = (packed << 4).view(np.int8) >> 4
    flat[1::2] = packed.view(np.int8) >> 4
    if rows * rank % 2 and flat[-1]:
        raise DecodeError("padding of LR4 is not zero")
    if flat.min() < -_TOP:
        raise DecodeError("-8 is not a value of LR4")
    return flat[: rows * rank].reshape(rank, rows)


def _factors(
    raw: bytes, shape: tuple[int, ...]
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return (exponent, scales (r,), P^T (r, m), Q^T (r, n)). DecodeError."""
    if len(shape) != 2 or len(raw) < _HEADER.size:
        raise DecodeError(f"{len(raw)} bytes of LR4 for {shape}")
    codec, rank, exponent = _HEADER.unpack_from(raw)
    if codec != Codec.LR4 or not 1 <= rank <= min(shape):
        raise DecodeError(f"rank {rank} of LR4 for {shape}")
    if len(raw) != encoded_bytes(rank, shape):
        raise DecodeError(f"{len(raw)} bytes of LR4 rank {rank} for {shape}")
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise DecodeError(f"exponent {exponent} of LR4")
    m, n = shape
    view = memoryview(raw)[_HEADER.size :]
    middle = rank + (m * rank + 1) // 2
    scales = np.frombuffer(view[:rank], np.uint8)
    return (
        exponent,
        scales,
        _factor(view[rank:middle], m, rank),
        _factor(view[middle:], n, rank),
    )


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the exact values, float64 of `shape`. DecodeError."""
    exponent, scales, p, q = _factors(raw, shape)
    left = p.astype(np.float32) * scales.astype(np.float32)[:, None]
    product = left.T @ q.astype(np.float32)  # integers below 2^24: exact in any order
    wide = product.astype(np.float64)
    return np.multiply(wide, 2.0**exponent, out=wide)


def norm_squared(raw: bytes, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n, e) with the squared norm being exactly n * 2^e. DecodeError."""
    exponent, scales, p, q = _factors(raw, shape)
    wide_p, wide_q = p.astype(np.float64), q.astype(np.float64)
    grams = (wide_p @ wide_p.T).astype(np.int64) * (wide_q @ wide_q.T).astype(np.int64)
    weights = scales.astype(np.int64)
    # a row stays below 49^2 * 2^20 * 255^2 * 255 < 2^56; the rows are added as ints
    rows = (grams * weights[:, None] * weights[None, :]).sum(axis=1)
    return sum(rows.tolist()), 2 * exponent


SCHEME = Scheme(encode, decode, encoded_bytes, norm_squared)
