"""The white paper's own delta pipeline, byte-exact, as a control arm: int8, then the
largest fifth, then a singular value decomposition of rank 8 where it is a matrix.

It lives here and nowhere else: what the first two stages keep, the third throws away.
Nothing is fed back.
"""

from __future__ import annotations

from math import prod

import numpy as np

KEPT = 0.2
RANK = 8


def encode(x: np.ndarray) -> bytes:
    """Return the bytes of a float32 tile: two float16 factors, or map and int8."""
    levels, scale = _int8(x)
    kept = np.abs(levels) >= np.quantile(np.abs(levels), 1 - KEPT)
    levels = np.where(kept, levels, 0)
    if x.ndim != 2 or min(x.shape) < 4 * RANK:
        bitmap = np.packbits(kept.ravel()).tobytes()
        return scale.tobytes() + bitmap + levels[kept].astype(np.int8).tobytes()
    dense = levels.astype(np.float32) * scale
    u, s, v = np.linalg.svd(dense, full_matrices=False)
    root = np.sqrt(s[:RANK])
    left, right = u[:, :RANK] * root, v[:RANK].T * root
    return left.astype("<f2").tobytes() + right.astype("<f2").tobytes()


def decode(raw: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return what the receiver adds up, float32 of `shape`."""
    if len(shape) != 2 or min(shape) < 4 * RANK:
        count = prod(shape)
        start = 4 + (count + 7) // 8
        kept = np.unpackbits(np.frombuffer(raw[4:start], np.uint8))[:count].astype(bool)
        out = np.zeros(count, np.float32)
        out[kept] = np.frombuffer(raw, np.int8, offset=start)
        out *= np.frombuffer(raw, np.float32, 1)[0]
        return out.reshape(shape)
    factors = np.frombuffer(raw, "<f2").astype(np.float32)
    split = shape[0] * RANK
    left = factors[:split].reshape(shape[0], RANK)
    right = factors[split:].reshape(shape[1], RANK)
    return left @ right.T


def _int8(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Return (levels int16 -127..127, scale), symmetric; zeros have the scale 1."""
    peak = np.abs(x).max()
    scale = np.float32(peak / 127 if peak else 1)
    return np.rint(x / scale).clip(-127, 127).astype(np.int16), scale
