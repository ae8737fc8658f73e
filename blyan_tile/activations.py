"""Hidden states as they travel: float32, or bfloat16 rounded to nearest even.

What comes from outside is checked here, in numpy, before torch sees it: whole rows,
finite numbers. Call it in a lane: a megabyte takes about a millisecond.
"""

from __future__ import annotations

import numpy as np
import torch

from blyan_proto.errors import DecodeError
from blyan_proto.protocols.expert import Numerics

Raw = bytes | memoryview

_EXPONENT = {4: np.uint32(0x7F80_0000), 2: np.uint16(0x7F80)}  # all ones: no number
_TOO_LARGE = np.uint32(0x7F7F_8000).view(np.float32)  # rounds to infinity in 16 bits
_BITS = {4: np.dtype("<u4"), 2: np.dtype("<u2")}


def write_rows(x: np.ndarray, numerics: Numerics) -> bytes:
    """Return rows (n, d) of float32 as they travel under `numerics`."""
    if numerics is Numerics.REFERENCE:
        return x.astype("<f4", copy=False).tobytes()
    rounded = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16)
    return rounded.view(torch.uint16).numpy().astype("<u2", copy=False).tobytes()


def read_rows(raw: Raw, width: int, numerics: Numerics) -> np.ndarray:
    """Return the rows (n, d) float32 that `raw` holds; read-only where it is a view.

    DecodeError for anything but whole rows, and for a number that is not finite.
    """
    size = numerics.element_bytes
    if not width or not len(raw) or len(raw) % (size * width):
        raise DecodeError(f"{len(raw)} bytes are no rows of {width} numbers")
    bits = np.frombuffer(raw, _BITS[size]).reshape(-1, width)  # (n, d)
    exponent = _EXPONENT[size]
    if ((bits & exponent) == exponent).any():
        raise DecodeError("a number is not finite")
    if size == 4:
        return bits.view("<f4")
    return (bits.astype("<u4") << np.uint32(16)).view("<f4")


def is_finite(x: np.ndarray, numerics: Numerics) -> bool:
    """True if every number of x (n, d) is finite, and still is as it travels."""
    limit = np.float32(np.inf) if numerics is Numerics.REFERENCE else _TOO_LARGE
    # max and min are nan if a number is
    return bool(x.size == 0 or (x.max() < limit and x.min() > -limit))
