"""The weighted sum of deltas, bit for bit the same on every machine (DEC-B1).

Only float32 ufuncs, one per operation, in the order of docs/block-format.md 9: no fused
multiply-add, no reduction, no BLAS.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import numpy as np

from blyan_proto.constants import PPM

_PPM = np.float32(PPM)


def fraction(ppm: int) -> np.float32:
    """Return parts per million as the float32 that all arithmetic uses."""
    return np.float32(ppm) / _PPM


def weighted_sum(
    parts: Iterable[tuple[int, np.ndarray]], clips_ppm: Iterable[int] | None = None
) -> np.ndarray:
    """Return the float32 mean of decoded deltas, weighted by integer ppm.

    `parts` are (weight_ppm, float64 values) in the order of the block: ascending
    learner id; they are used one at a time. A clip shrinks its delta and leaves the
    divisor alone; None means 10^6 for all. ValueError without a part or any weight.
    """
    total = np.float32(0)
    acc = term = None
    clips = repeat(PPM) if clips_ppm is None else clips_ppm
    # an overflow becomes inf, which delta.next_tiles refuses
    with np.errstate(over="ignore", invalid="ignore"):
        for (weight_ppm, values), clip_ppm in zip(parts, clips):
            rounded = values.astype(np.float32)
            if acc is None or term is None:
                acc, term = np.zeros_like(rounded), np.empty_like(rounded)
            if rounded.shape != acc.shape:
                raise ValueError(f"a part of {rounded.shape}, not {acc.shape}")
            np.multiply(rounded, fraction(weight_ppm * clip_ppm // PPM), out=term)
            np.add(acc, term, out=acc)
            total = total + fraction(weight_ppm)
        if acc is None or total == 0:
            raise ValueError("a sum without weight")
        return np.divide(acc, total, out=acc)


def check_arithmetic() -> None:
    """Raise ArithmeticError if this thread flushes subnormal float32 to zero.

    Some native libraries switch that on when they are loaded; roots would differ.
    """
    smallest = np.full(8, 2.0**-149, np.float32)
    if not (np.multiply(smallest, np.float32(1)) > 0).all():
        raise ArithmeticError("this processor is set to flush subnormals to zero")
    halved = np.multiply(np.full(8, 2.0**-126, np.float32), np.float32(0.5))
    if not (halved > 0).all():
        raise ArithmeticError("this processor is set to flush subnormals to zero")
