"""Hidden states as they travel: float32, or bfloat16 rounded to nearest even.

What comes from outside is checked here, in numpy, before torch sees it: whole rows,
finite numbers. A megabyte takes about a millisecond.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import Numerics

_EXPONENT = {4: np.uint32(0x7F80_0000), 2: np.uint16(0x7F80)}  # all ones: no number
_BITS: dict[int, np.dtype[Any]] = {4: np.dtype("<u4"), 2: np.dtype("<u2")}
_TOO_LARGE = np.uint32(0x7F7F_8000).view(np.float32)  # rounds to infinity in 16 bits

# Relative distance of rows from honest servers, over what was measured of the recipes:
# 1e-6, 0.008, 0.07 and 0.32, of weights with outliers. A wrong row is off by about 1.
TOLERANCE = {
    Numerics.REFERENCE: 1e-3,
    Numerics.BF16: 0.03,
    Numerics.INT8: 0.15,
    Numerics.INT4: 0.6,
}
LEAST_SIZE = 0.1  # of the largest row: below that, errors do not shrink with the row


def write_rows(x: np.ndarray, numerics: Numerics) -> bytes:
    """Return rows (n, d) of float32 as they travel under `numerics`."""
    x = np.ascontiguousarray(x, "<f4")
    if numerics is Numerics.REFERENCE:
        return x.tobytes()
    bits = x.view("<u4")
    # Half of the last place that stays, less one where that place is even.
    half = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
    half += bits  # wraps around for some that are no numbers
    rounded = (half >> np.uint32(16)).astype("<u2")  # (n, d)
    if not is_finite(x, Numerics.REFERENCE):
        rounded[np.isnan(x)] = 0x7FC0
    return rounded.tobytes()


def read_rows(raw: bytes, width: int, numerics: Numerics) -> np.ndarray:
    """Return the rows (n, d) float32 that `raw` holds; read-only where it is a view.

    DecodeError for anything but whole rows, and for a number that is not finite.
    """
    size = numerics.element_bytes
    if not width or not len(raw) or len(raw) % (size * width):
        raise DecodeError(f"{len(raw)} bytes are no rows of {width} numbers")
    bits: np.ndarray = np.frombuffer(raw, _BITS[size]).reshape(-1, width)  # (n, d)
    exponent = _EXPONENT[size]
    if ((bits & exponent) == exponent).any():
        raise DecodeError("a number is not finite")
    if size == 2:
        bits = bits.astype("<u4") << np.uint32(16)
    rows: np.ndarray = bits.view("<f4")
    return rows


def is_finite(x: np.ndarray, numerics: Numerics) -> bool:
    """True if every number of x (n, d) is finite, and still is as it travels."""
    limit = np.float32(np.inf) if numerics is Numerics.REFERENCE else _TOO_LARGE
    # max and min are nan if a number is
    return bool(x.size == 0 or (x.max() < limit and x.min() > -limit))


def is_close(one: np.ndarray, other: np.ndarray, numerics: Numerics) -> bool:
    """True if two honest servers may answer the same rows (n, d) like this.

    float32 differs by the order of sums between kinds of processors; further down by
    the rounding of what travels and by the recipes of the weights that may be used.
    """
    apart = np.linalg.norm(one - other, axis=1)  # (n,)
    size = np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    size = np.maximum(size, LEAST_SIZE * size.max())
    return bool((apart <= TOLERANCE[numerics] * size).all())
