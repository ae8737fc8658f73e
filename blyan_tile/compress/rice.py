"""Rice codes: the `low` bits of a number plainly, the rest of it in unary.

The unary parts stand together behind all low parts, so both are read as whole arrays.
Positions in ascending order are sent as the gaps between them.
"""

from __future__ import annotations

import numpy as np

from blyan_proto.errors import DecodeError
from blyan_tile.compress.bits import Widths, packed, packed_bytes, unpacked

MAX_LOW = 12


def written(numbers: np.ndarray, lows: Widths) -> tuple[bytes, bytes]:
    """Return (low parts, unary parts) of numbers that are not negative."""
    ends = np.cumsum((numbers >> lows) + 1)
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    return packed(numbers, lows), np.packbits(unary, bitorder="little").tobytes()


def read(
    low_parts: memoryview, unary: memoryview, count: int, lows: Widths
) -> np.ndarray:
    """Return `count` numbers, at least one, int64. DecodeError.

    `low_parts` has exactly its bytes; `unary` is what the caller bounded.
    """
    ones = np.flatnonzero(
        np.unpackbits(np.frombuffer(unary, np.uint8), bitorder="little")
    )
    if len(ones) != count or ones[-1] // 8 != len(unary) - 1:
        raise DecodeError(f"{len(ones)} numbers in {len(unary)} bytes, not {count}")
    numbers: np.ndarray = (np.diff(ones, prepend=-1) - 1) << lows
    numbers += unpacked(low_parts, count, lows)
    return numbers


def most_bytes(count: int, total: int) -> int:
    """Return the bound on `count` positions below `total` at their best `low`."""
    low = _usual_low(count, total)
    return packed_bytes(count, low) + packed_bytes(count + (total >> low), 1)


def _usual_low(count: int, total: int) -> int:
    return min((total // count).bit_length() - 1, MAX_LOW)


def encode(positions: np.ndarray, total: int) -> tuple[int, bytes, bytes]:
    """Return (low, low parts, unary parts) of ascending positions, the shortest.

    Together at most `most_bytes`, because that is the length for one of the `low`.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    usual = _usual_low(len(gaps), total)
    lows = range(max(usual - 2, 0), min(usual + 2, MAX_LOW) + 1)
    low = min(lows, key=lambda low: _bytes(gaps, low))
    return low, *written(gaps, low)


def _bytes(gaps: np.ndarray, low: int) -> int:
    unary = len(gaps) + int((gaps >> low).sum())
    return packed_bytes(len(gaps), low) + packed_bytes(unary, 1)


def decode(
    low: int, low_parts: memoryview, unary: memoryview, count: int, total: int
) -> np.ndarray:
    """Return `count` ascending positions below `total`, int64. Errors as `read`."""
    gaps = read(low_parts, unary, count, low)
    positions: np.ndarray = np.cumsum(gaps + 1) - 1
    if positions[-1] >= total:
        raise DecodeError(f"position {positions[-1]} of {total}")
    return positions
