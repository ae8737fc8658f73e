"""Whether two deltas are nearly the same change: small sketches that keep distances.

A count sketch: element i goes, with a random sign, to sum i mod WIDTH. Distances stay
within a few percent. The signs come from a secret of whoever compares, so nobody can
make a copy that only looks different.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from blake3 import blake3

WIDTH = 1024
# Measured between honest learners of the presets: 0.10 to 1, least in a run's first round.
NEAR = 0.02  # 1 - cosine of a copy
CROWD = 3  # from so many others on, a copy also stands out among their distances
STANDS_OUT = 0.25
CERTAIN = 0.002  # among fewer, nothing says how near honest ones are


def sketch(tiles: Sequence[np.ndarray], secret: bytes) -> np.ndarray | None:
    """Return a unit vector (WIDTH,) float64 for a decoded change; None for no change."""
    total = np.zeros(WIDTH)
    for index, tile in enumerate(tiles):
        flat = tile.reshape(-1)
        rows = -(-flat.size // WIDTH)
        bits = blake3(secret + index.to_bytes(4, "little")).digest(rows * WIDTH // 8)
        is_minus = np.unpackbits(np.frombuffer(bits, np.uint8))[: flat.size]
        signed = np.zeros(rows * WIDTH)
        signed[: flat.size] = np.where(is_minus, -flat, flat)
        total += signed.reshape(rows, WIDTH).sum(axis=0)
    size = float(np.sqrt(np.square(total).sum()))
    return total / size if size else None


def nearest(one: np.ndarray, others: Sequence[np.ndarray]) -> int | None:
    """Return which of `others` is the same change as `one`, up to its scale; or None."""
    if not others:
        return None
    apart = np.square(np.stack(others) - one).sum(axis=1) / 2  # (n,) 1 - cosine
    first = int(apart.argmin())
    near = CERTAIN
    if len(others) >= CROWD:
        near = min(NEAR, STANDS_OUT * float(np.median(apart)))
    return first if apart[first] <= near else None
