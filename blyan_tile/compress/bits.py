"""Fields of a few bits in bytes, the first in the lowest bits. Whole arrays at a time."""

from __future__ import annotations

import numpy as np

from blyan_proto.errors import DecodeError

Widths = int | np.ndarray  # one for all fields, or one for each


def packed(values: np.ndarray, widths: Widths) -> bytes:
    """Return integers as fields; what does not fit its width is cut off."""
    each = np.broadcast_to(widths, values.shape)
    starts = np.cumsum(each) - each
    bits = np.zeros(int(each.sum()), np.uint8)
    for place in range(int(each.max(initial=0))):
        wide = each > place
        bits[starts[wide] + place] = values[wide] >> place & 1
    return np.packbits(bits, bitorder="little").tobytes()


def packed_bytes(count: int, width: int) -> int:
    """Return how many bytes `count` fields of `width` bits take."""
    return (count * width + 7) // 8


def unpacked(raw: memoryview, count: int, widths: Widths) -> np.ndarray:
    """Return `count` fields, int64. DecodeError for padding.

    `raw` has exactly the bytes that they take.
    """
    each = np.broadcast_to(widths, (count,))
    starts = np.cumsum(each) - each
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    if bits[int(each.sum()) :].any():
        raise DecodeError("padding is not zero")
    values = np.zeros(count, np.int64)
    for place in range(int(each.max(initial=0))):
        wide = each > place
        values[wide] |= bits[starts[wide] + place].astype(np.int64) << place
    return values
